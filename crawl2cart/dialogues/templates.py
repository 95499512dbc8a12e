"""What customers and the assistant say in a shop: its own lines where it has any, and otherwise those of data/store.

Lines that speak of what the shop does not have are left out, so that one shop's words can serve another.
"""

import re
from collections import Counter
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.shop.data_model import Customer, Plan, Record, Wording
from crawl2cart.shop.loader import (
    SHIPPED,
    Kind,
    own_or_shipped,
    read_lines,
    read_policy,
    read_text,
    rows,
)


class TemplateStore:
    """What is said in a shop. `left_out` counts by reason the lines that speak of what the shop does not have.

    A line's `needs` have to stand in the shop's facts, departments, policies or towns; a question about a policy has to find its
    topic and its section, which is known by the heading.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.left_out: Counter[str] = Counter()
        self._sections: dict[str, set[str | None]] = {}
        named = [read_text(folder / "shop.json"), read_text(folder / "departments.json")]
        for file in sorted((folder / "policies").glob("*.md")):
            named.append(read_text(file))
            self._sections[file.stem] = {None} | {section.heading for section in read_policy(file)}
        named += sorted(
            {customer.address.town for customer in rows(folder / "customers", Customer)}
        )
        self._named = "\n".join(named)

    def files(self, name: str) -> list[Path]:
        """The files of `plans.jsonl` or of the folder `wordings`; in a folder, ours for each name that the shop lacks."""
        if name.endswith(".jsonl"):
            return [own_or_shipped(self.folder, name)]
        names = {
            file.name
            for folder in (self.folder, SHIPPED)
            for file in (folder / name).glob("*.jsonl")
        }
        return [own_or_shipped(self.folder, f"{name}/{file}") for file in sorted(names)] or [
            own_or_shipped(self.folder, name)
        ]

    def lines(
        self, name: str, kind: type[Kind], faults: list[str] | None = None
    ) -> list[tuple[Path, int, Kind]]:
        """The lines that fit the shop, with file and line number. faults: as in `read_lines`."""
        found = [
            (file, number, record)
            for file in self.files(name)
            for number, record in read_lines(file, kind, faults)
        ]
        for file, number, record in found:
            if any("topic" not in fixed for fixed in policies(record, file.stem)):
                fault = f"{file}:{number}: fixed.topic: missing; expected the file name of a policy"
                if faults is None:
                    raise UserError(fault)
                faults.append(fault)
        return [line for line in found if self._fits(line[2], line[0].stem)]

    def _names(self, need: str) -> bool:
        """Whether the shop's files hold it as whole words: "3-5 working days" does not hold "5 working days"."""
        return (
            re.search(rf"(?<![\w-]){re.escape(need)}(?![\w-])", self._named, re.IGNORECASE)
            is not None
        )

    def _fits(self, record: Record, intent: str) -> bool:
        lacking = [need for need in getattr(record, "needs", ()) if not self._names(need)]
        for fixed in policies(record, intent):
            known = self._sections.get(fixed.get("topic"), set())
            if fixed.get("section") not in known:
                lacking.append(
                    f"{fixed.get('topic')}: {fixed['section']}"
                    if known
                    else f"a policy {fixed.get('topic')}"
                )
        self.left_out.update(lacking[:1])
        return not lacking


def policies(record: Record, intent: str) -> list[dict[str, str]]:
    """What a line's questions about policies imply: `topic` and perhaps `section`, once for each question. intent: of a wording."""
    if isinstance(record, Plan):
        return [turn.fixed for turn in record.turns if turn.intent == "policy"]
    return [record.fixed] if isinstance(record, Wording) and intent == "policy" else []
