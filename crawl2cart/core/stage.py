"""What every stage does around its work: parameters, hashes at both ends, locks, signals, errors in words.

A stage file ends with `run(main)`. `main` gets a Stage and the words of the command line.
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
STARTER = "CRAWL2CART_STARTER"  # in the environment of a process that a stage started: the process id of that stage
SECONDS_BETWEEN_LOOKS_AT_THE_PARENT = 0.5


class Stage:
    """One run of one stage in the current folder.

    name: as in dvc.yaml, `filter` or `pretrain@gru`. params: the parameters that dvc.yaml lists for it and no others
    (`stage.params.seed`, `stage.params.filter.min_words`, `stage.params.profile.threads`).
    key: hash of code, inputs and parameters. Equal keys mean equal outs.
    """

    def __init__(self, name: str):
        self.name = name
        self.root = Path.cwd()
        self._all_params: Params = read_params(self.root / "params.yaml")
        known = definitions(self.root, self._all_params.profile)
        if name not in known:
            raise UserError(f"dvc.yaml has no stage {name}. It has: {', '.join(known)}.")
        self.definition: Definition = known[name]
        self.params = Listed(self._all_params, self.definition.params)
        self.work: Counter = Counter()

    @property
    def program(self) -> list[str]:
        """What follows `python` to run this stage."""
        module, *words = self.name.split("@")
        return ["-m", f"stages.{module}", *words]

    def log_cost(self, tokens: int, flops: float) -> None:
        """Adds to what the ledger notes of this run: tokens that a model was trained on, and what that took in
        floating-point operations."""
        self.work.update(tokens=tokens, flops=flops)

    @property
    def repo_root(self) -> Path:
        """The folder in which work survives: the repository, also when DVC runs in a temporary copy of it."""
        return Path(os.environ.get("DVC_ROOT", self.root))

    @property
    def cache_dir(self) -> Path:
        """Where finished pieces of work are kept by content key, outside the outs that DVC deletes."""
        return self.repo_root / ".cache" / self.name

    def param_values(self) -> dict[str, object]:
        """The listed parameters by dotted key, as they stand in params.yaml now."""
        current = read_params(self.root / "params.yaml")
        return {key: current.get(key) for key in self.definition.params}

    @cached_property
    def inputs(self) -> dict[str, dict[str, tuple[int, int, str]]]:
        """Every file below the dependencies: size, time of change in ns, sha256. A missing one is a UserError."""
        found = {}
        for dependency in self.definition.deps:
            path = self.root / dependency
            if not path.exists():
                raise UserError(
                    f"{self.name} needs {dependency}, which is missing. `dvc repro {self.name}` makes it."
                )
            found[dependency] = {
                str(file.relative_to(self.root)): stat_file(file) for file in files_below(path)
            }
        return found

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
        """Raises UserError if code, inputs or parameters are not what they were at the start.

        DVC hashes dependencies after the command (treeverse/dvc#11058): without this it would record results of the
        old code under the hash of the new one.
        """
        changed = [
            key for key, value in self.param_values().items() if value != self._start_params[key]
        ]
        for dependency, before in self.inputs.items():
            now = {
                str(file.relative_to(self.root)): file
                for file in files_below(self.root / dependency)
            }
            for name in sorted(before.keys() | now.keys()):
                if name not in now or name not in before:
                    changed.append(name)
                    continue
                size, changed_ns, digest = before[name]
                stat = now[name].stat()
                if (stat.st_size, stat.st_mtime_ns) != (size, changed_ns) and file_hash(
                    now[name]
                ) != digest:
                    changed.append(name)
        if changed:
            raise UserError(
                f"{', '.join(changed)} changed while {self.name} was running, so its result belongs to no "
                "version of the project and is thrown away. Run it again."
            )


def stat_file(file: Path) -> tuple[int, int, str]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, file_hash(file)


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Holds a lock on `path`. The kernel lets go of it when the process dies, however it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"Another process is running {what} here. Wait for it or end it, then run again."
            ) from error
        yield


def is_first() -> bool:
    """Whether this process is the one that writes, speaks and holds locks, of those that torchrun, Accelerate or a stage started for one
    run; alone without them."""
    return os.environ.get("RANK", "0") == "0"


def die_with_parent() -> None:
    """Ends this process when the one that started it ends: DVC killed alone would leave its trainer running.

    The first of several processes has outs and locks to see to. The others have nothing, and are killed: they may be waiting for the
    first within torch, where Python answers no SIGTERM.
    """
    parent, ending = (
        int(os.environ.get(STARTER, os.getppid())),
        signal.SIGTERM if is_first() else signal.SIGKILL,
    )
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, ending)
        if os.getppid() != parent:  # it died before that call
            os.kill(os.getpid(), ending)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS_AT_THE_PARENT)
        os.kill(os.getpid(), ending)

    threading.Thread(target=watch, daemon=True).start()


def stop_on(number: int, _frame: object) -> None:
    """Turns a signal into SystemExit, so that every `finally` runs and the exit status is 128 + the signal's number."""
    raise SystemExit(128 + number)


def run(main: Callable[..., None]) -> None:
    """Runs a stage module as a program: `python -m stages.filter`, `python -m stages.pretrain gru`.

    `--help` prints the module's docstring. Any failure ends in a non-zero exit status, so that DVC records nothing:
    1 for a UserError, 130 for Ctrl-C, 143 for SIGTERM.
    """
    module = sys.modules[main.__module__]
    words = sys.argv[1:]
    if "--help" in words or "-h" in words:
        print(module.__doc__.strip())
        return
    signal.signal(signal.SIGTERM, stop_on)
    signal.signal(signal.SIGINT, stop_on)
    if "DVC_STAGE" in os.environ or "RANK" in os.environ:  # of DVC, of torchrun or of a stage
        die_with_parent()
    module_name = module.__spec__.name.removeprefix("stages.")
    name = "@".join([module_name, *words[:1]])
    try:
        with (
            exclusive(Path.cwd() / "runs" / f"{name}.lock", name)
            if is_first()
            else contextlib.nullcontext()
        ):
            try:
                started = time.monotonic()
                stage = Stage(name)
                check_machine(stage._all_params, stage.repo_root)
                print(f"{name}: key {stage.fingerprint}", flush=True)
                check_is_loaded(sys._getframe(1).f_code)
                main(stage, *words)
                stage.check_unchanged()
                if is_first():
                    note_cost(stage, time.monotonic() - started)
            except UserError:
                if is_first():
                    remove_outs(name)  # under the lock: the outs may be another run's
                raise
    except UserError as problem:
        sys.exit(f"{name}: {problem}")


def check_is_loaded(code: CodeType) -> None:
    """Raises UserError if a stage's file is not what runs: it was edited after Python read it and before it was hashed, while
    packages were imported, which takes seconds. code: what Python made of the file."""
    file = Path(code.co_filename)
    if compile(file.read_bytes(), file, "exec", dont_inherit=True) != code:
        raise UserError(f"{file.name} changed while it was starting. Run it again.")


def note_cost(stage: Stage, seconds: float) -> None:
    """Notes what the run took in runs/<stage>.json, which no out may hold: outs are the same bytes on every run.

    Memory is that of the largest process; read are the stage's inputs, written its outs.
    """
    cuda = sys.modules["torch"].cuda if "torch" in sys.modules else None
    outs = [file for out in stage.definition.outs for file in files_below(stage.root / out)]
    write_json(
        stage.repo_root / "runs" / f"{stage.name}.json",
        {
            "seconds": round(seconds, 2),
            "tokens": stage.work["tokens"],
            "flops": stage.work["flops"],
            "peak_memory_mib": round(peak_memory_bytes(children=True) / 2**20, 1),
            "peak_card_mib": round(cuda.max_memory_allocated() / 2**20, 1)
            if cuda and cuda.is_initialized()
            else 0,
            "read_bytes": sum(
                size for group in stage.inputs.values() for size, _, _ in group.values()
            ),
            "written_bytes": sum(file.stat().st_size for file in outs),
        },
    )


def remove_outs(name: str) -> None:
    """A failed stage leaves no outs: what it had finished before the failure would look complete."""
    root = Path.cwd()
    try:
        outs = definitions(root, read_params(root / "params.yaml").profile)[name].outs
    except (UserError, KeyError):
        return
    for out in outs:
        path = root / out
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
