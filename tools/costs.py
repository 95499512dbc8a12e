"""What each stage took when it last ran on this machine, and what that cost at the profile's rate.

Stages note it themselves under runs/, outside DVC's outs: an out is the same bytes on every run, a duration is not.
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
    "read_bytes": "read, MB",
    "written_bytes": "written, MB",
    "dollars": "US $",
}


@dataclass(frozen=True)
class Entry:
    """One stage's last run. flops and tokens are 0 for stages that train no network."""

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
    """The stages that have run here, in the order of the graph."""
    params = read_params(ROOT / "params.yaml")
    rate = getattr(params.profiles, params.profile).dollars_per_hour
    entries = []
    for name in definitions(ROOT, params.profile):
        path = ROOT / "runs" / f"{name}.json"
        if path.is_file():
            noted = json.loads(path.read_text())
            if noted.keys() == {field.name for field in fields(Entry)} - {
                "stage",
                "dollars",
            }:  # else an older version's
                entries.append(Entry(stage=name, dollars=noted["seconds"] / 3600 * rate, **noted))
    return entries


def total(entries: list[Entry]) -> Entry:
    """The sums; of memory the peak."""

    def added(name: str) -> float:
        return sum(getattr(entry, name) for entry in entries)

    def largest(name: str) -> float:
        return max((getattr(entry, name) for entry in entries), default=0)

    return Entry(
        "all",
        added("seconds"),
        added("tokens"),
        added("flops"),
        largest("peak_memory_mib"),
        largest("peak_card_mib"),
        added("read_bytes"),
        added("written_bytes"),
        added("dollars"),
    )


def ledger_table(entries: list[Entry]) -> str:
    """The entries and their total as an HTML table."""
    head = "".join(f"<th>{title}</th>" for title in COLUMNS.values())
    body = "".join(
        "<tr>"
        + "".join(f"<td>{html.escape(entry.cells()[name])}</td>" for name in COLUMNS)
        + "</tr>"
        for entry in [*entries, total(entries)]
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
