"""Read the texts with slots that dialogues are made of, a shop's own or those of data/store.

A line that mentions what the shop does not have is left out. So one shop's texts can serve another.
"""

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import get_args

from crawl2cart.core.errors import UserError
from crawl2cart.shop.data_model import (
    Customer,
    FollowUp,
    FollowUpIntent,
    Intent,
    Plan,
    Reason,
    Record,
    Reply,
    Review,
    Split,
    Turn,
    Wording,
)
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
    """Reads the text files of a shop and leaves out the lines that do not fit it.

    A line fits if each of its `needs` stands in the shop's facts, departments, policies or towns.
    A question about a policy fits if the shop has the topic and a section with that heading.
    `left_out` counts the lines that do not fit, by what the shop lacks.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.left_out: Counter[str] = Counter()
        self._headings: dict[str, set[str | None]] = {}
        texts = [read_text(folder / "shop.json"), read_text(folder / "departments.json")]
        for file in sorted((folder / "policies").glob("*.md")):
            texts.append(read_text(file))
            sections = read_policy(file)
            self._headings[file.stem] = {None} | {section.heading for section in sections}
        customers = rows(folder / "customers", Customer)
        texts += sorted({customer.address.town for customer in customers})
        self._shop_text = "\n".join(texts)

    def files(self, name: str) -> list[Path]:
        """List the files of `plans.jsonl` or of the folder `wordings`.

        In a folder, a file that the shop lacks is taken from data/store.
        """
        if name.endswith(".jsonl"):
            return [own_or_shipped(self.folder, name)]
        folders = (self.folder / name, SHIPPED / name)
        names = {file.name for folder in folders for file in folder.glob("*.jsonl")}
        if not names:
            return [own_or_shipped(self.folder, name)]
        return [own_or_shipped(self.folder, f"{name}/{file}") for file in sorted(names)]

    def lines(
        self, name: str, kind: type[Kind], faults: list[str] | None = None
    ) -> list[tuple[Path, int, Kind]]:
        """Return the lines that fit the shop, each with its file and line number.

        Faults are appended to `faults`; without a list the first one raises UserError.
        """
        lines = [
            (file, number, record)
            for file in self.files(name)
            for number, record in read_lines(file, kind, faults)
        ]
        for file, number, record in lines:
            if any("topic" not in fixed for fixed in policy_questions(record, file.stem)):
                fault = f"{file}:{number}: fixed.topic: missing; expected the file name of a policy"
                if faults is None:
                    raise UserError(fault)
                faults.append(fault)
        return [line for line in lines if self._fits(line[2], line[0].stem)]

    def _mentions(self, need: str) -> bool:
        """Return whether the shop's files hold the text as whole words.

        "3-5 working days" does not hold "5 working days".
        """
        pattern = rf"(?<![\w-]){re.escape(need)}(?![\w-])"
        return re.search(pattern, self._shop_text, re.IGNORECASE) is not None

    def _fits(self, record: Record, intent: str) -> bool:
        lacking = [need for need in getattr(record, "needs", ()) if not self._mentions(need)]
        for fixed in policy_questions(record, intent):
            topic = fixed.get("topic")
            headings = self._headings.get(topic, set())
            if not headings:
                lacking.append(f"a policy {topic}")
            elif fixed.get("section") not in headings:
                lacking.append(f"{topic}: {fixed['section']}")
        self.left_out.update(lacking[:1])
        return not lacking


class Templates:
    """Hold all texts that customers and the assistant of one shop can say.

    wordings: first turns by intent and split. plans: multi-turn scripts by split. follow_ups: later
    turns of customers by split and intent ("confirm"), an answer by its slots ("answer order").
    """

    def __init__(self, folder: Path | str):
        folder = Path(folder)
        store = TemplateStore(folder)
        self.wordings: dict[tuple[Intent, Split], list[Wording]] = defaultdict(list)
        for file, _, wording in store.lines("wordings", Wording):
            self.wordings[file.stem, wording.split].append(wording)
        self.plans: dict[Split, list[Plan]] = defaultdict(list)
        self.follow_ups: dict[tuple[Split, str], list[str]] = defaultdict(list)
        for _, _, plan in store.lines("plans.jsonl", Plan):
            self.plans[plan.split].append(plan)
            for turn in plan.turns:
                self._add_follow_up(plan.split, turn)
        for _, _, line in store.lines("follow_ups.jsonl", FollowUp):
            self._add_follow_up(line.split, line)
        self.replies = [reply for _, _, reply in store.lines("replies.jsonl", Reply)]
        self.reasons = [reason for _, _, reason in store.lines("reasons.jsonl", Reason)]
        self.customers = rows(folder / "customers", Customer)
        self.plain_reviews: dict[str, list[str]] = defaultdict(list)
        for review in rows(folder / "reviews", Review):
            if not review.instructs:
                self.plain_reviews[review.product].append(review.text)

    def _add_follow_up(self, split: Split, turn: Turn | FollowUp) -> None:
        if turn.intent == "answer":
            self.follow_ups[split, "answer " + " ".join(slots(turn.text))].append(turn.text)
        elif turn.intent in get_args(FollowUpIntent) and not slots(turn.text):
            self.follow_ups[split, turn.intent].append(turn.text)


def slots(template: str) -> list[str]:
    """Return the names of the slots in a template, sorted, each once."""
    return sorted(set(re.findall(r"\{(\w+)\}", template)))


def policy_questions(record: Record, intent: str) -> list[dict[str, str]]:
    """Return what a line's questions about policies imply: `topic`, perhaps `section`.

    One entry for each question. intent: that of a wording.
    """
    if isinstance(record, Plan):
        return [turn.fixed for turn in record.turns if turn.intent == "policy"]
    return [record.fixed] if isinstance(record, Wording) and intent == "policy" else []
