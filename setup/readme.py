"""Write the generated parts of README.md: results, graph, sizes of the shipped data. `python -m setup.readme`.

The parts stand between `<!-- results -->` and `<!-- end -->` marks; a test compares them with metrics/ and dvc.yaml.
"""

import re
import subprocess
from pathlib import Path

from benchmarks.dedup import model as snapshot_table
from setup.repro import DVC, ROOT, results
from setup.sizes import crawl_table, prose_table, sizes_table

MACHINE = "2 cores of an AMD EPYC with AVX512-BF16, profile cpu"


def results_table() -> str:
    rows = "\n".join(f"| {what} | {value} |" for what, value in results())
    return f"| what | result |\n|---|---|\n{rows}\n\nMeasured on {MACHINE}; `make reproduce` compares."


def graph() -> str:
    said = subprocess.run([DVC, "dag", "--collapse-foreach-matrix", "--mermaid"], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout
    return f"```mermaid\n{said.strip()}\n```"


def filled(text: str) -> str:
    """README text with every generated part renewed."""
    for name, make in (("results", results_table), ("graph", graph), ("sizes", sizes_table), ("crawl", crawl_table),
                       ("prose", prose_table), ("snapshot", snapshot_table)):
        marks = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(marks, lambda match, make=make: f"{match[1]}{make()}\n{match[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    path = Path(ROOT / "README.md")
    path.write_text(filled(path.read_text()))
