"""Results of benchmarks: numbers with the machine, the versions and the command that gave them."""

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from crawl2cart.core.files import read_json
from crawl2cart.core.metrics import write_metrics

FOLDER = Path(__file__).parent.parent / "metrics" / "speed"
PACKAGES = ("torch", "transformers")


def machine(packages: Iterable[str]) -> dict:
    """Processor or GPU, cores, threads in use, versions, and the command line."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":")[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        if cpuinfo.is_file()
        else []
    )
    return {
        "machine": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else (names or [platform.machine()])[0],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "command": shlex.join(
            ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
        ),
    }


def measured_before(name: str) -> dict:
    """What metrics/speed/<name>.json has of earlier calls, without `measured_on`, which is of the last call only."""
    path = FOLDER / f"{name}.json"
    return (
        {part: found for part, found in read_json(path).items() if part != "measured_on"}
        if path.is_file()
        else {}
    )


def write_report(name: str, results: dict, packages: Iterable[str] = PACKAGES) -> None:
    """Writes metrics/speed/<name>.json and says where."""
    write_metrics(FOLDER / f"{name}.json", results | {"measured_on": machine(packages)})
    print(f"metrics/speed/{name}.json", flush=True)


def write_rows(name: str, rows: dict[str, dict]) -> None:
    """Writes rows into metrics/speed/<name>.json, each with what it was measured on. Those of earlier calls stay as they are.

    A `measured_on` of the whole file, of calls before each row had its own, goes with the last row that has none.
    """
    path, about = FOLDER / f"{name}.json", machine(PACKAGES)
    found = (read_json(path) if path.is_file() else {}) | {
        row: values | {"measured_on": about} for row, values in rows.items()
    }
    if all("measured_on" in values for row, values in found.items() if row != "measured_on"):
        found.pop("measured_on", None)
    write_metrics(path, found)
    print(f"metrics/speed/{name}.json", flush=True)
