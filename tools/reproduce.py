"""Reproduce the committed metrics in a fresh clone from nothing: `make reproduce`.

Every metric is compared within its tolerance in metrics/tolerances.json: the spread over several
seeds, which is more than another processor's rounding can change. A metric that is the same for all
seeds must be equal.
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

# Two values that are rounded in different directions differ by at most this share.
LAST_DIGIT = 10.0 ** (1 - SIGNIFICANT_DIGITS)


def flat(values: object, prefix: str = "") -> dict[str, object]:
    """Flatten nested metrics to {dotted name: value}."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        name: value
        for key, inner in values.items()
        for name, value in flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def metrics_files(root: Path) -> list[Path]:
    """Return the files with all metrics. Those in metrics/headlines repeat some of them."""
    return sorted(
        path for path in (root / "metrics").glob("*.json") if path.name != "tolerances.json"
    )


def metrics_below(root: Path) -> dict[str, object]:
    """Return every metric as {file:dotted name: value}."""
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
    """Return a message for each metric that is missing, new or beyond its tolerance.

    tolerances: by name or pattern; the first match counts. A metric without one must be equal, a
    float up to its last rounded digit. free: names or patterns of metrics that a seed may change.
    """
    messages = []
    for name in sorted(committed.keys() | measured.keys()):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in free):
            continue
        if name not in committed or name not in measured:
            place = "committed" if name in committed else "measured"
            messages.append(f"{name} is only in the {place} metrics")
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
                messages.append(f"{name}: {old} committed, {new} measured")
        elif abs(new - old) > allowed:
            messages.append(f"{name}: {old} committed, {new} measured, {allowed:g} allowed")
    return messages


def fresh_clone(folder: Path) -> Path:
    """Clone the current commit, with this checkout's packages and without results of runs."""
    clone = folder / "crawl2cart"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, clone], check=True)
    (clone / ".venv").symlink_to(ROOT / ".venv")
    return clone


def compare_metrics(clone: Path, committed: dict[str, object]) -> str:
    """Compare the metrics in a clone with the committed ones and summarize.

    Raises UserError if a metric is beyond its tolerance.
    """
    allowed = json.loads((clone / "metrics" / "tolerances.json").read_text())
    measured = metrics_below(clone)
    messages = differences(committed, measured, allowed["tolerances"], allowed["free"])
    if messages:
        raise UserError(
            "the committed metrics were not reproduced:\n  "
            + "\n  ".join(messages)
            + "\nIf a change to the code or the parameters is meant to do this, run `make repro` "
            "and commit dvc.lock and metrics/."
        )
    command = ["git", "diff", "--quiet", "--", "dvc.lock", "metrics"]
    equal = subprocess.run(command, cwd=clone).returncode == 0
    bytes_ = "are the same bytes" if equal else "differ in bytes (processors round differently)"
    return f"{len(committed)} metrics within tolerance; dvc.lock and metrics {bytes_}."


def main() -> None:
    if commit().endswith("dirty"):
        print(
            "The working tree has uncommitted changes; the last commit is reproduced.",
            flush=True,
        )
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crawl2cart-reproduce-") as folder:
        clone = fresh_clone(Path(folder))
        committed = metrics_below(clone)
        for path in metrics_files(
            clone
        ):  # git has them, so a stage with no other out would not run
            path.unlink()
        jobs = read_params(clone / "params.yaml").active_profile.num_processes
        run_graph(jobs, "--no-run-cache", root=clone)
        summary = compare_metrics(clone, committed)
    print(f"{summary} Commit {commit()}, {time.monotonic() - started:,.0f} seconds.")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"make reproduce: {error}")
