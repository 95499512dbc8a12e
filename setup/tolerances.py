"""Measure how far each metric moves with the seed, and write that as its tolerance: `python -m setup.tolerances 7 8 9 10 11`.

One run of the cpu profile from nothing for each seed, in clones of the committed state. The tolerance of a metric is the
distance of its largest from its smallest value. What another processor's rounding does is smaller than what a seed does.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from setup.repro import DVC, ROOT, commit
from setup.reproduce import metrics_below
from stages.common.files import write_json
from stages.common.metrics import rounded


def run_with_seed(seed: int) -> dict[str, object]:
    """Every metric of a run with this seed. Pretraining and all behind it start from nothing."""
    with tempfile.TemporaryDirectory(prefix=f"crawl2cart-seed-{seed}-") as folder:
        clone = Path(folder) / "crawl2cart"
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, clone], check=True)
        (clone / ".venv").symlink_to(ROOT / ".venv")
        params = clone / "params.yaml"
        params.write_text(re.sub(r"^seed: \d+", f"seed: {seed}", params.read_text(), flags=re.MULTILINE))
        subprocess.run([DVC, "repro", "--no-run-cache"], cwd=clone, check=True)
        return metrics_below(clone)


def main() -> None:
    seeds = [int(word) for word in sys.argv[1:]]
    if len(seeds) < 5:
        sys.exit("Give at least five seeds: python -m setup.tolerances 7 8 9 10 11")
    runs = [run_with_seed(seed) for seed in seeds]
    spread = {}
    for name in sorted(set().union(*runs)):
        values = [run.get(name) for run in runs]
        if all(isinstance(value, int | float) for value in values):
            spread[name] = max(values) - min(values)
    write_json(ROOT / "metrics" / "tolerances.json", {
        "origin": {"seeds": seeds, "commit": commit(), "profile": "cpu", "rule": "largest minus smallest value over the seeds"},
        "tolerances": rounded({name: float(value) for name, value in spread.items() if value})})


if __name__ == "__main__":
    main()
