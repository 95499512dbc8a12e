"""Check that dvc.lock belongs to this code and these parameters: `make lock`.

This takes seconds and runs or fetches nothing. `dvc repro --dry` exits with 0 also if stages would
run, so its output decides.
"""

import subprocess
import sys

from tools.repro import DVC, ROOT

CURRENT = "Data and pipelines are up to date"


def main() -> None:
    run = subprocess.run(
        [DVC, "repro", "--dry", "--allow-missing"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if CURRENT not in run.stdout:
        sys.exit(
            f"{run.stdout}\nmake lock: dvc.lock is stale. Run `make repro`, or `python -m "
            "tools.accept` if only code changed, and commit dvc.lock and metrics/."
        )
    print("dvc.lock belongs to this code and these parameters.")


if __name__ == "__main__":
    main()
