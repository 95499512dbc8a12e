"""Write results of benchmarks with the machine, the versions and the command that gave them."""

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
    """Return processor or GPU, cores, threads in use, versions, and the command line."""
    words = ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
    return {
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "command": shlex.join(words),
    }


def processor() -> str:
    """Return the processor's name where Linux tells it, otherwise its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def measured_before(name: str) -> dict:
    """Return metrics/speed/<name>.json without `measured_on`, which belongs to the last call."""
    path = FOLDER / f"{name}.json"
    results = read_json(path) if path.is_file() else {}
    return {part: result for part, result in results.items() if part != "measured_on"}


def write_report(name: str, results: dict, packages: Iterable[str] = PACKAGES) -> None:
    """Write metrics/speed/<name>.json."""
    write_metrics(FOLDER / f"{name}.json", results | {"measured_on": machine(packages)})
    print(f"metrics/speed/{name}.json", flush=True)


def write_rows(name: str, rows: dict[str, dict]) -> None:
    """Write rows into metrics/speed/<name>.json, each with what it was measured on.

    Rows of earlier calls stay. A `measured_on` of the whole file goes with the last row that has
    none of its own.
    """
    path, about = FOLDER / f"{name}.json", machine(PACKAGES)
    table = read_json(path) if path.is_file() else {}
    table |= {row: values | {"measured_on": about} for row, values in rows.items()}
    if all("measured_on" in values for row, values in table.items() if row != "measured_on"):
        table.pop("measured_on", None)
    write_metrics(path, table)
    print(f"metrics/speed/{name}.json", flush=True)
