"""Run a stage: read its parameters, hash its inputs before and after, lock, handle signals.

A stage file ends with `run(main)`. `main` gets a Stage and the arguments of the command line.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from types import CodeType

from crawl2cart.core.dvc_yaml import Definition, definitions
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import file_hash, files_below, write_json
from crawl2cart.core.machine import check_machine
from crawl2cart.core.memory import peak_memory_bytes
from crawl2cart.core.params import Listed, Params, read_params

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STARTER = "CRAWL2CART_STARTER"  # environment variable: process id of the stage that started us
PARENT_POLL_SECONDS = 0.5


class Stage:
    """One run of one stage in the current folder.

    name: as in dvc.yaml, `filter` or `pretrain@gru`.
    params: the parameters that dvc.yaml lists for it and no others (`stage.params.seed`,
    `stage.params.filter.min_words`, `stage.params.profile.threads`).
    fingerprint: hash of code, inputs and parameters. Equal fingerprints mean equal outs.
    """

    def __init__(self, name: str):
        self.name = name
        self.root = Path.cwd()
        self.definition = read_definition(self.root, name)
        self.params = Listed(self.read_params(), self.definition.params)
        self.work: Counter = Counter()

    @property
    def program(self) -> list[str]:
        """The arguments of `python` that run this stage."""
        module, *items = self.name.split("@")
        return ["-m", f"stages.{module}", *items]

    def log_cost(self, tokens: int, flops: float) -> None:
        """Add trained tokens and their floating-point operations to the costs of this run."""
        self.work.update(tokens=tokens, flops=flops)

    @property
    def repo_root(self) -> Path:
        """The repository, also when DVC runs the stage in a temporary copy of it."""
        return Path(os.environ.get("DVC_ROOT", self.root))

    @property
    def cache_dir(self) -> Path:
        """Where finished pieces of work survive a restart, outside the outs that DVC deletes."""
        return self.repo_root / ".cache" / self.name

    def read_params(self) -> Params:
        """Read params.yaml and check the sections that are listed for this stage."""
        return read_params(self.root / "params.yaml", self.definition.params)

    def param_values(self) -> dict[str, object]:
        """Return the listed parameters by dotted key, as they are in params.yaml now."""
        current = self.read_params()
        return {key: current.get(key) for key in self.definition.params}

    @cached_property
    def inputs(self) -> dict[str, dict[str, tuple[int, int, str]]]:
        """The files below each dependency: size, modification time in ns, SHA-256.

        Raises UserError if a dependency is missing.
        """
        inputs = {}
        for dependency in self.definition.deps:
            path = self.root / dependency
            if not path.exists():
                raise UserError(
                    f"{self.name} needs {dependency}, which is missing. "
                    f"`dvc repro {self.name}` makes it."
                )
            inputs[dependency] = {
                str(file.relative_to(self.root)): stat_file(file) for file in files_below(path)
            }
        return inputs

    @cached_property
    def fingerprint(self) -> str:
        hashes = {
            file: digest for group in self.inputs.values() for file, (_, _, digest) in group.items()
        }
        text = json.dumps([self.name, self._start_params, hashes], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def _start_params(self) -> dict[str, object]:
        return self.param_values()

    def check_unchanged(self) -> None:
        """Raise UserError if code, inputs or parameters changed since the start.

        DVC hashes dependencies after the command (treeverse/dvc#11058), so it would record results
        of the old code under the hash of the new one.
        """
        changed = [
            key for key, value in self.param_values().items() if value != self._start_params[key]
        ]
        for dependency, before in self.inputs.items():
            files = files_below(self.root / dependency)
            now = {str(file.relative_to(self.root)): file for file in files}
            for name in sorted(before.keys() | now.keys()):
                if name not in now or name not in before or is_changed(now[name], before[name]):
                    changed.append(name)
        if changed:
            raise UserError(
                f"{', '.join(changed)} changed while {self.name} was running, so its result "
                "belongs to no version of the project and is deleted. Run it again."
            )


def read_definition(root: Path, name: str) -> Definition:
    """Return a stage of dvc.yaml on the active profile. Raises UserError if there is none."""
    profile = read_params(root / "params.yaml", keys=()).profile
    stages = definitions(root, profile)
    if name not in stages:
        raise UserError(f"dvc.yaml has no stage {name}. It has: {', '.join(stages)}.")
    return stages[name]


def is_changed(file: Path, before: tuple[int, int, str]) -> bool:
    """Return whether a file's bytes differ. before: its size, modification time and SHA-256."""
    size, modified_ns, digest = before
    stat = file.stat()
    return (stat.st_size, stat.st_mtime_ns) != (size, modified_ns) and file_hash(file) != digest


def stat_file(file: Path) -> tuple[int, int, str]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, file_hash(file)


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a lock on `path`, which the kernel releases when the process dies.

    what: names the holder in the error. Raises UserError if another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"Another process is running {what} here. Wait for it or stop it, then run again."
            ) from error
        yield


def is_first() -> bool:
    """Return whether this process is the one of its run that writes, prints and holds locks.

    It is the only process, or that of rank 0 where torchrun, Accelerate or a stage started several.
    """
    return os.environ.get("RANK", "0") == "0"


def die_with_parent() -> None:
    """End this process when its parent ends, so that killing DVC does not leave a trainer running.

    The first of several processes gets SIGTERM, since it has outs and locks to clean up. The others
    get SIGKILL: they may wait inside torch for the first, where Python handles no signal.
    """
    parent = int(os.environ.get(STARTER, os.getppid()))
    number = signal.SIGTERM if is_first() else signal.SIGKILL
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before the call
            os.kill(os.getpid(), number)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_SECONDS)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


def stop_on(number: int, _frame: object) -> None:
    """Turn a signal into SystemExit with status 128 + its number, so that every `finally` runs."""
    raise SystemExit(128 + number)


def run(main: Callable[..., None]) -> None:
    """Run a stage module as a program: `python -m stages.filter`, `python -m stages.pretrain gru`.

    `--help` prints the module's docstring. Any failure ends with a non-zero exit status, so that
    DVC records nothing: 1 for a UserError, 130 for Ctrl-C, 143 for SIGTERM.
    """
    module = sys.modules[main.__module__]
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(module.__doc__.strip())
        return
    signal.signal(signal.SIGTERM, stop_on)
    signal.signal(signal.SIGINT, stop_on)
    if "DVC_STAGE" in os.environ or "RANK" in os.environ:  # started by DVC, torchrun or a stage
        die_with_parent()
    module_name = module.__spec__.name.removeprefix("stages.")
    name = "@".join([module_name, *arguments[:1]])
    code = sys._getframe(1).f_code
    lock = exclusive(Path.cwd() / "runs" / f"{name}.lock", name)
    try:
        with lock if is_first() else contextlib.nullcontext():
            try:
                run_checked(name, main, arguments, code)
            except UserError:
                if is_first():
                    remove_outs(name)  # under the lock, since another run may have made them
                raise
    except UserError as error:
        sys.exit(f"{name}: {error}")


def run_checked(name: str, main: Callable[..., None], arguments: list[str], code: CodeType) -> None:
    """Run `main` with all checks before and after. code: the stage's file as Python compiled it."""
    started = time.monotonic()
    stage = Stage(name)
    params_path = stage.root / "params.yaml"
    if read_params(params_path, keys=()).active_profile.device == "cuda":
        check_machine(read_params(params_path), stage.repo_root)
    print(f"{name}: key {stage.fingerprint}", flush=True)
    check_is_loaded(code)
    main(stage, *arguments)
    stage.check_unchanged()
    if is_first():
        write_cost(stage, time.monotonic() - started)


def check_is_loaded(code: CodeType) -> None:
    """Raise UserError if the stage's file was edited after Python read it.

    That can happen while packages are imported, which takes seconds and comes before the hashing.
    code: the file as Python compiled it.
    """
    file = Path(code.co_filename)
    if compile(file.read_bytes(), file, "exec", dont_inherit=True) != code:
        raise UserError(f"{file.name} changed while it was starting. Run it again.")


def write_cost(stage: Stage, seconds: float) -> None:
    """Write what the run cost into runs/<stage>.json.

    Outs may not hold it, since they are the same bytes on every run. Memory is that of the largest
    process; `read_bytes` are the stage's inputs, `written_bytes` its outs.
    """
    cuda = sys.modules["torch"].cuda if "torch" in sys.modules else None
    card_bytes = cuda.max_memory_allocated() if cuda and cuda.is_initialized() else 0
    inputs = [file for group in stage.inputs.values() for file in group.values()]
    outs = [file for out in stage.definition.outs for file in files_below(stage.root / out)]
    write_json(
        stage.repo_root / "runs" / f"{stage.name}.json",
        {
            "seconds": round(seconds, 2),
            "tokens": stage.work["tokens"],
            "flops": stage.work["flops"],
            "peak_memory_mib": round(peak_memory_bytes(children=True) / 2**20, 1),
            "peak_card_mib": round(card_bytes / 2**20, 1),
            "read_bytes": sum(size for size, _, _ in inputs),
            "written_bytes": sum(file.stat().st_size for file in outs),
        },
    )


def remove_outs(name: str) -> None:
    """Remove the outs of a failed stage, since the finished ones would look complete."""
    root = Path.cwd()
    try:
        outs = read_definition(root, name).outs
    except UserError:
        return
    for out in outs:
        path = root / out
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
