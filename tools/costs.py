"""Tabulate what each stage cost when it last ran on this machine, at the profile's hourly rate.

Stages write their costs into runs/, outside DVC's outs: outs are the same bytes on every run, and
durations are not.
"""

import html
import json
from dataclasses import dataclass, fields

from crawl2cart.core.dvc_yaml import definitions
from crawl2cart.core.params import read_params
from tools.set_profile import ROOT

COLUMNS = {
    "stage": "stage",
    "seconds": "seconds",
    "tokens": "tokens trained on",
    "flops": "TFLOP",
    "peak_memory_mib": "peak memory, MiB",
    "peak_card_mib": "on the card, MiB",
    "read_bytes": "inputs, MB",
    "written_bytes": "outs, MB",
    "dollars": "US $",
}


@dataclass(frozen=True)
class Entry:
    """Costs of one stage's last run. flops and tokens are 0 for stages that train no network."""

    stage: str
    seconds: float
    tokens: int
    flops: float
    peak_memory_mib: float
    peak_card_mib: float
    read_bytes: int
    written_bytes: int
    dollars: float

    def cells(self) -> dict[str, str]:
        return {
            "stage": self.stage,
            "seconds": f"{self.seconds:,.1f}",
            "tokens": f"{self.tokens:,}" if self.tokens else "",
            "flops": f"{self.flops / 1e12:,.1f}" if self.flops else "",
            "peak_memory_mib": f"{self.peak_memory_mib:,.0f}",
            "peak_card_mib": f"{self.peak_card_mib:,.0f}" if self.peak_card_mib else "",
            "read_bytes": f"{self.read_bytes / 1e6:,.1f}",
            "written_bytes": f"{self.written_bytes / 1e6:,.1f}",
            "dollars": f"{self.dollars:,.4f}",
        }


def ledger() -> list[Entry]:
    """Return the costs of the stages that ran here, in the order of the graph."""
    params = read_params(ROOT / "params.yaml")
    rate = params.active_profile.dollars_per_hour
    expected = {field.name for field in fields(Entry)} - {"stage", "dollars"}
    entries = []
    for name in definitions(ROOT, params.profile):
        path = ROOT / "runs" / f"{name}.json"
        if path.is_file():
            costs = json.loads(path.read_text())
            if costs.keys() == expected:  # other keys are those of an older version
                entries.append(Entry(stage=name, dollars=costs["seconds"] / 3600 * rate, **costs))
    return entries


def total(entries: list[Entry]) -> Entry:
    """Add up the costs. Memory is the peak."""

    def aggregate(name: str) -> float:
        values = [getattr(entry, name) for entry in entries]
        return max(values, default=0) if name.startswith("peak_") else sum(values)

    names = [field.name for field in fields(Entry) if field.name != "stage"]
    return Entry("all", **{name: aggregate(name) for name in names})


def ledger_table(entries: list[Entry]) -> str:
    """Return the entries and their total as an HTML table."""
    head = "".join(f"<th>{title}</th>" for title in COLUMNS.values())
    rows = [[entry.cells()[name] for name in COLUMNS] for entry in [*entries, total(entries)]]
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
