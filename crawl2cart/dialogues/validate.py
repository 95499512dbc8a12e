"""Check a shop's folder, its facts and its texts; name every fault by file, line and field.

crawl2cart shop check FOLDER
"""

import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import get_args

from crawl2cart.core.errors import UserError
from crawl2cart.dialogues.reply_sampler import ACTS
from crawl2cart.dialogues.templates import TemplateStore, slots
from crawl2cart.shop.confirmation import is_affirmation, requests_confirmation
from crawl2cart.shop.data_model import (
    SORTS,
    FollowUp,
    Hostile,
    Intent,
    Plan,
    Reason,
    Record,
    Register,
    Reply,
    Situation,
    Slots,
    Split,
    Turn,
    Wording,
)
from crawl2cart.shop.tool_schemas import WRITES
from crawl2cart.shop.validate import Check, Faults

FILES: dict[type[Record], str] = {
    Wording: "wordings",
    Plan: "plans.jsonl",
    FollowUp: "follow_ups.jsonl",
    Reply: "replies.jsonl",
    Reason: "reasons.jsonl",
    Hostile: "hostile.jsonl",
    Situation: "tone.jsonl",
}
# The write for which a reply of this act asks for a yes, and the write that an intent leads to.
CONFIRMS = {
    "cancel_confirm": "cancel_order",
    "return_confirm": "return_items",
    "exchange_confirm": "exchange_item",
    "address_confirm": "change_address",
}
WRITE_OF_INTENT = dict(zip(("cancel", "return", "exchange", "address"), WRITES, strict=True))
ANSWER_SLOTS = ("order", "email", "email order", "address", "variant", "product")
# Of the words of two wordings. A held-out wording that shares so many with a training wording is
# the same wording.
MAX_SHARED_WORDS = 0.6


class TemplateCheck:
    """Checks the texts of a shop. Appends to `faults`; `notes` says what the shop goes without."""

    def __init__(self, folder: Path, faults: Faults):
        self.folder, self.faults = folder, faults
        self.notes: list[str] = []
        self.counts: dict[str, int] = {}
        try:
            self.store = TemplateStore(folder)
        except UserError:  # a fault in the shop's own files, which is among the faults already
            self.notes.append("texts were not checked: mend the faults of the shop's facts first")
            return
        self.lines: dict[type, list[tuple[str, Record]]] = {}
        self.intents: dict[str, str] = {}  # of a wording, by its place
        shipped = [name for kind in FILES for name in self._read(kind)]
        self._check_wordings()
        self._check_plans()
        self._check_follow_ups()
        self._check_replies()
        self._check_coverage()
        self.counts = {kind.__name__.lower(): len(lines) for kind, lines in self.lines.items()}
        if shipped:
            self.notes.append(f"taken from data/store, since absent: {', '.join(shipped)}")
        if left_out := self.store.left_out:
            reasons = ", ".join(f"{what} ({count})" for what, count in sorted(left_out.items()))
            self.notes.append(
                f"left out, since they mention what the shop does not have: {left_out.total()} "
                f"lines: {reasons}"
            )

    def _read(self, kind: type[Record]) -> list[str]:
        """Read the lines of one kind; return the names of the files taken from data/store."""
        name = FILES[kind]
        lines = self.faults.collect(lambda: self.store.lines(name, kind, self.faults), [])
        self.lines[kind] = [(f"{file}:{number}", record) for file, number, record in lines]
        if kind is Wording:
            self.intents = {f"{file}:{number}": file.stem for file, number, _ in lines}
        files = self.faults.collect(lambda: self.store.files(name), [])
        return [file.stem for file in files if self.folder not in file.parents]

    def _expect_unique(self, kind: type[Record], field: str) -> None:
        entries = [(place, getattr(record, field)) for place, record in self.lines[kind]]
        self.faults.expect_unique(field, entries)

    def _check_slots(self, place: str, field: str, template: str) -> None:
        unknown = sorted(set(slots(template)) - Slots)
        self.faults.expect(
            not unknown,
            place,
            f"{field}: expected slots among {', '.join(sorted(Slots))}, found {', '.join(unknown)}",
        )

    def _check_fixed(self, place: str, field: str, intent: str, fixed: dict[str, str]) -> None:
        if intent == "policy":
            fits = set(fixed) <= {"topic", "section"}
            expected = "topic (the file name of a policy) and perhaps section (its heading)"
        else:
            fits = set(fixed) <= {"sort"} and fixed.get("sort", SORTS[0]) in SORTS
            expected = f"nothing, or sort with one of {', '.join(SORTS)}"
        self.faults.expect(fits, place, f"{field}: expected {expected}, found {fixed}")

    # Each kind of line

    def _check_wordings(self) -> None:
        known = get_args(Intent)
        for file in sorted((self.folder / "wordings").glob("*.jsonl")):
            self.faults.expect(
                file.stem in known,
                file,
                f"the file's name: expected an intent, one of {', '.join(known)}",
            )
        self._expect_unique(Wording, "text")
        train_words: dict[str, list[set[str]]] = {}
        for place, wording in self.lines[Wording]:
            intent = self.intents[place]
            self._check_fixed(place, "fixed", intent, wording.fixed)
            self._check_slots(place, "text", wording.text)
            if wording.split == "train":
                train_words.setdefault(intent, []).append(word_set(wording.text))
        for place, wording in self.lines[Wording]:
            if wording.split != "train":
                self._check_held_out(place, wording, train_words.get(self.intents[place], []))

    def _check_held_out(self, place: str, wording: Wording, train_words: list[set[str]]) -> None:
        words = word_set(wording.text)
        share = max((shared_words(words, other) for other in train_words), default=0.0)
        self.faults.expect(
            share < MAX_SHARED_WORDS,
            place,
            f"text: expected less than {MAX_SHARED_WORDS:.0%} of its words in a training wording, "
            f"found {share:.0%}",
        )

    def _check_plans(self) -> None:
        self._expect_unique(Plan, "id")
        for place, plan in self.lines[Plan]:
            for number, turn in enumerate(plan.turns):
                self._check_fixed(place, f"turns.{number}.fixed", turn.intent, turn.fixed)
                self._check_slots(place, f"turns.{number}.text", turn.text)
            self._check_references(place, plan.turns)
            self._check_decisions(place, plan.turns)

    def _check_references(self, place: str, turns: list[Turn]) -> None:
        """Expect that a turn refers only to what an earlier one has shown."""
        has_results = has_comparison = has_product = False
        for number, turn in enumerate(turns):
            for field in ("product", "product_2", "product_3"):
                reference = getattr(turn, field)
                if not reference:
                    continue
                if reference.startswith("result"):
                    shown = has_results
                else:
                    shown = has_product if reference == "same" else has_comparison
                self.faults.expect(
                    shown,
                    place,
                    f"turns.{number}.{field}: expected an earlier turn that shows it, "
                    f"found {reference!r}",
                )
            has_results |= turn.intent in ("search", "recommend", "gift")
            has_comparison |= turn.intent == "compare"
            names_product = turn.product is not None or "{product}" in turn.text
            has_product |= names_product or has_results

    def _check_decisions(self, place: str, turns: list[Turn]) -> None:
        """Expect a change before each yes or no, and a yes that is understood as one."""
        write = None
        for number, (before, turn) in enumerate(pairwise(turns), 1):
            write = WRITE_OF_INTENT.get(before.intent, write)
            if turn.intent in ("confirm", "refuse"):
                self.faults.expect(
                    write is not None,
                    place,
                    f"turns.{number}.intent: expected a change before it, found {turn.intent!r}",
                )
                is_yes = is_affirmation(turn.text, write)
                self._check_decision(place, f"turns.{number}.text", turn, is_yes)

    def _check_decision(self, place: str, field: str, turn: Turn | FollowUp, is_yes: bool) -> None:
        confirms = turn.intent == "confirm"
        expected = "a plain yes" if confirms else "no plain yes"
        self.faults.expect(
            is_yes == confirms, place, f"{field}: expected {expected}, found {turn.text!r}"
        )

    def _check_follow_ups(self) -> None:
        self._expect_unique(FollowUp, "text")
        for place, line in self.lines[FollowUp]:
            used = " ".join(slots(line.text))
            allowed = ANSWER_SLOTS if line.intent == "answer" else ("",)
            self.faults.expect(
                used in allowed,
                place,
                f"text: expected the slots {' or '.join(allowed) or '(none)'}, "
                f"found {used or '(none)'}",
            )
            if line.intent in ("confirm", "refuse"):
                is_yes = any(is_affirmation(line.text, write) for write in WRITES)
                self._check_decision(place, "text", line, is_yes)

    def _check_replies(self) -> None:
        counts = Counter((reply.act, reply.voice) for _, reply in self.lines[Reply])
        for act in ACTS if counts else ():
            for style in get_args(Register):
                self.faults.expect(
                    counts[act, style] > 0,
                    self.folder / "replies.jsonl",
                    f"act: expected at least one line of {act} in the register {style}, found none",
                )
        for place, reply in self.lines[Reply]:
            self._check_reply(place, reply)

    def _check_reply(self, place: str, reply: Reply) -> None:
        if reply.act not in ACTS:
            self.faults.expect(
                False, place, f"act: expected one of {', '.join(ACTS)}, found {reply.act!r}"
            )
            return
        expected, used = sorted(ACTS[reply.act].split()), slots(reply.text)
        self.faults.expect(
            used == expected,
            place,
            f"text: expected exactly the slots {', '.join(expected) or '(none)'}, "
            f"found {', '.join(used) or '(none)'}",
        )
        if reply.act in CONFIRMS and used == expected:
            self.faults.expect(
                restates_its_write(reply),
                place,
                "text: expected the whole change restated and no other, so that a yes means this "
                f"one, found {reply.text!r}",
            )

    def _check_coverage(self) -> None:
        """Expect texts of every split."""
        wordings = self.lines[Wording]
        counts = Counter((self.intents[place], wording.split) for place, wording in wordings)
        for intent in get_args(Intent) if counts else ():
            absent = [split for split in get_args(Split) if not counts[intent, split]]
            if absent:
                self.notes.append(
                    f"no wording of {intent} in {', '.join(absent)}: no dialogue there begins "
                    "with it"
                )
        splits = get_args(Split)
        for kind, expected in ((Plan, splits), (Hostile, splits), (Situation, ("train", "test"))):
            counts = Counter(line.split for _, line in self.lines[kind])
            self._expect_each(FILES[kind], "split", counts, {split: split for split in expected})
        reasons = self.lines[Reason]
        counts = Counter((reason.split, fit) for _, reason in reasons for fit in reason.fits)
        fits = ("return", "exchange", "complaint")
        expected = {(split, fit): f"{split} for {fit}" for split in splits for fit in fits}
        self._expect_each(FILES[Reason], "fits", counts, expected)
        for kind in (Reason, Hostile):
            self._expect_unique(kind, "text")
        self._expect_unique(Situation, "id")

    def _expect_each(self, name: str, field: str, counts: Counter, expected: dict) -> None:
        """expected: keys of `counts` that may not be zero, with their names."""
        for key, title in expected.items():
            self.faults.expect(
                counts[key] > 0,
                self.folder / name,
                f"{field}: expected at least one line of {title}, found none",
            )


def restates_its_write(reply: Reply) -> bool:
    """Return whether a question before a change states all of it, and no other change."""
    values = {
        "order": "TB-10101",
        "total": "12.34",
        "product": "Xyzzo Quorl lamp",
        "variant": "octarine",
        "address": "1 Zed Row, Zedton 99999",
    }
    text = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], reply.text)
    write = CONFIRMS[reply.act]
    other_variants = [] if write == "exchange_item" else [values["variant"]]
    detail = {"exchange_item": values["variant"], "change_address": values["address"]}.get(write)
    products = [(values["product"], other_variants)]
    return requests_confirmation(
        text, write, values["order"], values["total"], products, detail or ""
    )


def word_set(text: str) -> set[str]:
    """Return the words of a text in lower case; a slot counts as a word."""
    return set(re.findall(r"[\w']+", text.casefold()))


def shared_words(words: set[str], others: set[str]) -> float:
    """Return the Jaccard similarity of two sets of words, 0 if both are empty."""
    union = words | others
    return len(words & others) / len(union) if union else 0.0


def check_folder(folder: Path) -> Check:
    """Check everything of a shop: its facts and its texts."""
    check = Check(folder)
    texts = TemplateCheck(folder, check.faults)
    check.notes += texts.notes
    check.counts |= texts.counts
    return check


def main(arguments: list[str]) -> None:
    """Check the folder that the command line names, and exit with its faults."""
    if len(arguments) != 1:
        sys.exit(__doc__)
    folder = Path(arguments[0])
    if not folder.is_dir():
        sys.exit(f"{folder}: no such folder. Name the folder of a shop, such as data/store.")
    check = check_folder(folder)
    print(", ".join(f"{count:,} {kind}" for kind, count in check.counts.items()))
    print(f"held out: {sum(product.held_out for product in check.products.values()):,} products")
    print(*check.notes, sep="\n", end="\n" if check.notes else "")
    if check.faults:
        sys.exit("\n".join(check.faults) + f"\n{len(check.faults)} faults in {check.folder}")
    print("no faults")


if __name__ == "__main__":
    main(sys.argv[1:])
