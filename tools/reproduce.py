"""Prove the committed result: run the committed profile from nothing in a fresh clone and compare every metric.

`make reproduce` does what `make repro` does, but from nothing, since a clone has no cache. Tolerances stand in
metrics/tolerances.json with their origin: the spread over several seeds, so that a difference beyond them is more than another
processor's rounding could do. A metric that no seed moves must be equal.
"""

import fnmatch
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.core.metrics import SIGNIFICANT_DIGITS
from crawl2cart.core.params import read_params
from tools.repro import ROOT, commit, run_graph

# Two values on either side of the border at which metrics are rounded differ by this share at most.
LAST_DIGIT = 10.0 ** (1 - SIGNIFICANT_DIGITS)


def flat(values: object, above: str = "") -> dict[str, object]:
    """Nested metrics as {dotted name: value}."""
    if not isinstance(values, dict):
        return {above: values}
    return {
        name: value
        for key, inner in values.items()
        for name, value in flat(inner, f"{above}.{key}" if above else key).items()
    }


def metrics_files(root: Path) -> list[Path]:
    """The files that hold every metric (those of metrics/headlines hold some of them again)."""
    return sorted(
        path for path in (root / "metrics").glob("*.json") if path.name != "tolerances.json"
    )


def metrics_below(root: Path) -> dict[str, object]:
    """Every metric, as {file:dotted name: value}."""
    return {
        f"{path.stem}:{name}": value
        for path in metrics_files(root)
        for name, value in flat(json.loads(path.read_text())).items()
    }


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def differences(
    committed: dict[str, object],
    measured: dict[str, object],
    tolerances: dict[str, float],
    free: list[str],
) -> list[str]:
    """One sentence for each metric that is missing, new, or further from the committed one than its tolerance.

    tolerances: by name or pattern, the first that fits counts; a metric without one must be equal, a float to the last of
    its rounded digits. free: names or patterns of metrics that may be anything, since a seed changes what they say.
    """
    faults = []
    for name in sorted(committed.keys() | measured.keys()):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in free):
            continue
        if name not in committed or name not in measured:
            faults.append(
                f"{name} is only in the {'committed' if name in committed else 'measured'} metrics"
            )
            continue
        old, new = committed[name], measured[name]
        allowed = next(
            (value for pattern, value in tolerances.items() if fnmatch.fnmatchcase(name, pattern)),
            0.0,
        )
        if isinstance(old, float):
            allowed = max(allowed, abs(old) * LAST_DIGIT)
        if not (is_number(old) and is_number(new)):
            if old != new:
                faults.append(f"{name}: {old} committed, {new} measured")
        elif abs(new - old) > allowed:
            faults.append(f"{name}: {old} committed, {new} measured, {allowed:g} allowed")
    return faults


def fresh_clone(folder: Path) -> Path:
    """A clone of what is committed, with this checkout's packages and nothing that a run made."""
    clone = folder / "crawl2cart"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, clone], check=True)
    (clone / ".venv").symlink_to(ROOT / ".venv")
    return clone


def verdict(clone: Path, committed: dict[str, object]) -> str:
    """What there is to say of the metrics that a run left in a clone. Raises UserError if one is beyond its tolerance."""
    said = json.loads((clone / "metrics" / "tolerances.json").read_text())
    faults = differences(committed, metrics_below(clone), said["tolerances"], said["free"])
    if faults:
        raise UserError(
            "the committed metrics do not come out again:\n  "
            + "\n  ".join(faults)
            + "\nIf a change to the code or "
            "the parameters is meant to do this, run `make repro` and commit dvc.lock and metrics/."
        )
    same = not subprocess.run(
        ["git", "diff", "--quiet", "--", "dvc.lock", "metrics"], cwd=clone
    ).returncode
    return (
        f"{len(committed)} metrics within tolerance; dvc.lock and metrics "
        f"{'are the same bytes' if same else 'differ in bytes (another processor rounds differently)'}."
    )


def main() -> None:
    if commit().endswith("dirty"):
        print(
            "The working tree has changes that are not committed; what is proved is the last commit.",
            flush=True,
        )
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crawl2cart-reproduce-") as folder:
        clone = fresh_clone(Path(folder))
        committed = metrics_below(clone)
        for path in metrics_files(
            clone
        ):  # in git, so that a stage that makes nothing else would be taken for done
            path.unlink()
        params = read_params(clone / "params.yaml")
        run_graph(getattr(params.profiles, params.profile).processes, "--no-run-cache", root=clone)
        said = verdict(clone, committed)
    print(f"{said} Commit {commit()}, {time.monotonic() - started:,.0f} seconds.")


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        sys.exit(f"make reproduce: {problem}")
