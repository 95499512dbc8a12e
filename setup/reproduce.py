"""Prove the committed result: run the cpu profile from nothing in a fresh clone and compare every metric.

`make reproduce`. Tolerances stand in metrics/tolerances.json with their origin: the spread over several seeds, so that a
difference beyond them is more than another processor's rounding could do.
"""

import fnmatch
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from setup.repro import DVC, ROOT


def flat(values: object, above: str = "") -> dict[str, object]:
    """Nested metrics as {dotted name: value}."""
    if not isinstance(values, dict):
        return {above: values}
    return {name: value for key, inner in values.items()
            for name, value in flat(inner, f"{above}.{key}" if above else key).items()}


def metrics_below(root: Path) -> dict[str, object]:
    """Every metric that dvc.yaml declares, as {file:dotted name: value}."""
    found = {}
    for path in sorted((root / "metrics").glob("*.json")):
        if path.name != "tolerances.json":
            found |= {f"{path.stem}:{name}": value for name, value in flat(json.loads(path.read_text())).items()}
    return found


def tolerance(name: str, tolerances: dict[str, float]) -> float:
    """The tolerance of the first pattern that fits; metrics that no pattern names must be equal."""
    return next((value for pattern, value in tolerances.items() if fnmatch.fnmatch(name, pattern)), 0.0)


def differences(committed: dict[str, object], measured: dict[str, object], tolerances: dict[str, float]) -> list[str]:
    """One sentence for each metric that is missing, new, or further from the committed one than its tolerance."""
    faults = []
    for name in sorted(committed.keys() | measured.keys()):
        if name not in committed or name not in measured:
            faults.append(f"{name} is only in the {'committed' if name in committed else 'measured'} metrics")
            continue
        old, new, allowed = committed[name], measured[name], tolerance(name, tolerances)
        if isinstance(old, bool) or not isinstance(old, int | float):
            if old != new and allowed == 0:
                faults.append(f"{name}: {old} committed, {new} measured")
        elif abs(new - old) > allowed:
            faults.append(f"{name}: {old} committed, {new} measured, {allowed} allowed")
    return faults


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="crawl2cart-reproduce-") as folder:
        clone = Path(folder) / "crawl2cart"
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, clone], check=True)
        (clone / ".venv").symlink_to(ROOT / ".venv")
        committed = metrics_below(clone)
        if subprocess.run([DVC, "repro", "--force", "--no-run-cache"], cwd=clone).returncode:
            sys.exit("make reproduce: a stage failed; its message is above.")
        tolerances = json.loads((clone / "metrics" / "tolerances.json").read_text())["tolerances"]
        faults = differences(committed, metrics_below(clone), tolerances)
        same_bytes = not subprocess.run(["git", "diff", "--quiet", "--", "dvc.lock", "metrics"], cwd=clone).returncode
    if faults:
        sys.exit("make reproduce: beyond tolerance:\n  " + "\n  ".join(faults))
    print(f"{len(committed)} metrics within tolerance; dvc.lock and metrics "
          f"{'are the same bytes' if same_bytes else 'differ in bytes (another processor rounds differently)'}.")


if __name__ == "__main__":
    main()
