"""Write the generated parts of README.md: results, graph, what the filter is measured by, sizes of the shipped data.
`python -m tools.render_docs`.

The parts stand between `<!-- results -->` and `<!-- end -->` marks; a test compares them with metrics/ and dvc.yaml.
"""

import re
import subprocess
from pathlib import Path

from benchmarks.dedup import model as snapshot_table
from crawl2cart.core.files import read_json
from tools.data_stats import crawl_table, prose_table, sizes_table
from tools.repro import DVC, ROOT, results

MACHINE = "2 cores of an AMD EPYC with AVX512-BF16, profile cpu"


def results_table() -> str:
    rows = "\n".join(f"| {what} | {value} |" for what, value in results())
    return (
        f"| what | result |\n|---|---|\n{rows}\n\nMeasured on {MACHINE}; `make reproduce` compares."
    )


def filter_table() -> str:
    """How near the filter comes to what people said about the embedded web's held-out sites, beside what was aimed at."""
    found = read_json(ROOT / "metrics/filter.json")
    copies, text = found["near_duplicates"], found["extraction"]

    def share(part: str, name: str) -> str:
        low, high = (found[part][f"{name}_{end}"] for end in ("low", "high"))
        return f"{found[part][name]:.2f} ({low:.2f} to {high:.2f}) | {found[part]['n']} pages"

    rows = [
        ("precision of what is kept", "0.95", share("keep", "precision")),
        ("recall of what is to be kept", "0.95", share("keep", "recall")),
        ("near-copies found", "0.95", f"{copies['recall']:.2f} | {copies['n']} copies"),
        ("pages merged that are no copies", "0", f"{copies['false_merges']} | the same"),
        ("personal data found", "0.98", share("pii", "recall").replace("pages", "spans")),
        ("token F1 of the text taken out", "0.95", f"{text['f1']:.3f} | {text['n']} pages"),
    ]
    return "\n".join(
        [
            "| held-out sites of the embedded web | aim | measured | on |",
            "|---|---|---|---|",
            *(f"| {what} | {aim} | {measured} |" for what, aim, measured in rows),
        ]
    )


def graph() -> str:
    said = subprocess.run(
        [DVC, "dag", "--collapse-foreach-matrix", "--mermaid"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return f"```mermaid\n{said.strip()}\n```"


def filled(text: str) -> str:
    """README text with every generated part renewed."""
    for name, make in (
        ("results", results_table),
        ("graph", graph),
        ("filter", filter_table),
        ("sizes", sizes_table),
        ("crawl", crawl_table),
        ("prose", prose_table),
        ("snapshot", snapshot_table),
    ):
        marks = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(
            marks, lambda match, make=make: f"{match[1]}{make()}\n{match[2]}", text, flags=re.DOTALL
        )
    return text


if __name__ == "__main__":
    path = Path(ROOT / "README.md")
    path.write_text(filled(path.read_text()))
