"""Record today's code for trained artefacts, if it gives the same bytes as the code that made them.

  python -m tools.accept midtrain pretrain@gpt_oss

A changed comment must not cost hours of training. For each stage this compares the current commit
with the one that made the artefact, in temporary clones: the outs of the smoke graph, and those
after 20 steps on the real inputs if the profile sets `max_steps`. If all bytes are equal, dvc.lock
records the current code and artifacts/ACCEPTED.md the two commits; otherwise nothing changes.
Changed parameters or data always need a new run.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from dvc.utils.serialize import modify_yaml
from ruamel.yaml import YAML

from crawl2cart.core.dvc_yaml import definitions, read_yaml
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import file_hash, files_below
from crawl2cart.core.params import current_name, read_params
from crawl2cart.core.stage import read_definition
from tools.reproduce import flat
from tools.set_profile import ROOT

STEPS = 20
ACCEPTED = "artifacts/ACCEPTED.md"


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program and return its output. Raises UserError with that output if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        text = " ".join(map(str, command))
        raise UserError(f"`{text}` failed in {cwd}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def git(*arguments: str) -> str:
    return run("git", *arguments, cwd=ROOT)


def dvc(*arguments: str, root: Path) -> str:
    return run(sys.executable, "-m", "dvc", *arguments, cwd=root)


def is_code(path: str) -> bool:
    return path == "requirements.txt" or path.startswith(("stages/", "crawl2cart/"))


def check_committed() -> None:
    """Raise UserError if the current code is not that of a commit."""
    dirty = {line[3:] for line in git("status", "--porcelain", "-uall").splitlines()}
    if dirty := dirty - {"dvc.lock", ACCEPTED}:
        raise UserError(f"{', '.join(sorted(dirty))} changed since the last commit. Commit first.")


def fetch_missing(paths: tuple[str, ...], root: Path) -> None:
    """Check out those of the paths that a checkout or clone lacks from this project's DVC cache."""
    if missing := [path for path in paths if not (root / path).exists()]:
        if root != ROOT:
            dvc("cache", "dir", "--local", str(ROOT / ".dvc" / "cache"), root=root)
        dvc("checkout", *missing, root=root)


def changes(stage: str, root: Path) -> dict[str, str]:
    """Return the deps and outs of a stage that differ from dvc.lock, with what DVC says of each."""
    changed = {}
    for entry in json.loads(dvc("status", "--json", stage, root=root)).get(stage, []):
        if isinstance(entry, dict):  # a text says that the command changed
            for group in entry.values():
                changed |= {path: state for path, state in group.items() if path != "params.yaml"}
    return changed


def refusals(stage: str, changed: dict[str, str]) -> list[str]:
    """Return what other than code differs from what dvc.lock records of a stage."""
    definition = read_definition(ROOT, stage)
    recorded = read_yaml(ROOT / "dvc.lock")["stages"].get(stage, {})
    messages = [f"{path}: {state}" for path, state in changed.items() if not is_code(path)]
    for kind, now in (("deps", definition.deps), ("outs", definition.outs)):
        before = {item["path"] for item in recorded.get(kind, [])}
        messages += [f"{path}: no longer listed" for path in before - set(now) if not is_code(path)]
    params = read_params(ROOT / "params.yaml", definition.params)
    new = flat({key: params.get(key) for key in definition.params})
    old = flat(recorded.get("params", {}).get("params.yaml", {}))
    old = {current_name(key): value for key, value in old.items()}
    for key in sorted({key for key, _ in old.items() ^ new.items()}):
        messages.append(f"{key}: {old.get(key, 'absent')} recorded, {new.get(key, 'absent')} now")
    return messages


def made_by(stage: str) -> str:
    """Return the last commit that changed a stage's entry in dvc.lock, by a run or by `accept`."""

    def record(commit: str) -> dict | None:
        command = ["git", "show", f"{commit}:dvc.lock"]
        text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
        return (YAML(typ="safe").load(text) or {"stages": {}})["stages"].get(stage)

    for commit in git("log", "--format=%H", "--", "dvc.lock").split():
        if record(commit) != record(f"{commit}^"):
            return commit
    raise UserError(f"No commit records {stage} in dvc.lock. Run `dvc repro {stage}` and commit.")


def clone_at(commit: str, folder: Path) -> Path:
    """Clone the project at a commit, with the packages that its requirements.txt pins."""
    git("clone", "-q", str(ROOT), str(folder))
    run("git", "checkout", "-q", commit, cwd=folder)
    if file_hash(folder / "requirements.txt") == file_hash(ROOT / "requirements.txt"):
        (folder / ".venv").symlink_to(ROOT / ".venv")
    else:
        run("make", "setup", cwd=folder)
    return folder


def smoke_outs(stage: str, clone: Path) -> Path:
    """Run the smoke graph up to a stage and return the clone."""
    with modify_yaml(clone / "params.yaml") as params:
        params["profile"] = "smoke"
    dvc("repro", stage, root=clone)
    return clone


def step_outs(stage: str, clone: Path) -> Path | None:
    """Run the first steps of a stage on the real inputs. Returns None if it has no `max_steps`."""
    name, *item = stage.split("@")
    with modify_yaml(clone / "params.yaml") as params:
        profile = params["profile"]
        section = f"profiles.{profile}.{name}"
        scale = params["profiles"][profile].get(name, {})
        keys = [key for key in scale if current_name(f"{section}.{key}") == f"{section}.max_steps"]
        for key in keys:
            scale[key] = min(STEPS, scale[key])
    if not keys:
        return None
    fetch_missing(definitions(clone, profile)[stage].deps, clone)
    run(clone / ".venv" / "bin" / "python", "-m", f"stages.{name}", *item, cwd=clone)
    return clone


def digests(root: Path, outs: tuple[str, ...]) -> set[tuple[str, str]]:
    """Return path and SHA-256 of every file of the outs."""
    files = [file for out in outs for file in files_below(root / out)]
    return {(str(file.relative_to(root)), file_hash(file)) for file in files}


def compare(stage: str, maker: str, current: str, folder: Path) -> str:
    """Compare a stage's outs between two commits and return what was compared.

    folder: for clones, empty. Raises UserError that names the files that differ.
    """
    outs, compared = read_definition(ROOT, stage).outs, []
    for what, make_outs in (("smoke graph", smoke_outs), (f"{STEPS} steps", step_outs)):
        clones = [
            make_outs(stage, clone_at(commit, folder / what.replace(" ", "-") / name))
            for commit, name in ((maker, "maker"), (current, "current"))
        ]
        if all(clones):
            if different := digests(clones[0], outs) ^ digests(clones[1], outs):
                files = ", ".join(sorted({file for file, _ in different}))
                raise UserError(
                    f"{stage}: the current code gives other bytes than {maker[:12]} ({what}): "
                    f"{files}. Nothing was recorded. Run `dvc repro {stage}`."
                )
            compared.append(what)
    return " and ".join(compared)


def accept(stage: str, folder: Path) -> str:
    """Record the current code for a stage's outs if it gives equal ones; return what was done.

    folder: for clones, empty. Raises UserError if more than code changed, or if outs differ.
    """
    definition = read_definition(ROOT, stage)
    fetch_missing(definition.deps + definition.outs, ROOT)
    changed = changes(stage, ROOT)
    if messages := refusals(stage, changed):
        lines = "\n  ".join(messages)
        raise UserError(f"{stage} must run again, since more than code changed:\n  {lines}")
    if not changed:
        return f"{stage}: dvc.lock records this code already"
    maker, current = made_by(stage), git("rev-parse", "HEAD").strip()
    compared = compare(stage, maker, current, folder)
    dvc("commit", "-f", stage, root=ROOT)
    with (ROOT / ACCEPTED).open("a") as file:
        file.write(f"- `{stage}`: {maker[:12]} and {current[:12]} ({compared})\n")
    return f"{stage}: accepted; {compared} gave the same bytes as {maker[:12]}"


def main() -> None:
    stages = sys.argv[1:]
    if not stages or "--help" in stages:
        print(__doc__)
        return
    check_committed()
    for stage in stages:
        with tempfile.TemporaryDirectory(prefix="crawl2cart-accept-") as folder:
            print(accept(stage, Path(folder)), flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"accept: {error}")
