"""Check the data that ships: `python -m tools.lint_data` prints each fault and exits 1 on any.

LINTERS has one function for each data folder. It takes the folder `data` and returns its faults,
one a line.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from tools.lint_queries import lint_queries
from tools.lint_store import lint_store
from tools.lint_web import lint_web
from tools.repro import ROOT

LINTERS: dict[str, Callable[[Path], list[str]]] = {
    "web": lint_web,
    "store": lint_store,
    "queries": lint_queries,
}


def main() -> int:
    """Print all faults; return the exit status."""
    faults = [fault for lint in LINTERS.values() for fault in lint(ROOT / "data")]
    checked = ", ".join(f"data/{name}" for name in LINTERS)
    print("\n".join(faults) or f"no fault in {checked}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
