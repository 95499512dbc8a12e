"""Checks a shop's folder, its facts and what is said there, and names every fault by file, line and field.

python -m crawl2cart.dialogues.validate data/store
"""

import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import get_args

from crawl2cart.core.errors import UserError
from crawl2cart.dialogues.templates import TemplateStore
from crawl2cart.shop.confirmation import is_affirmation, requests_confirmation
from crawl2cart.shop.data_model import (
    SORTS,
    FollowUp,
    Hostile,
    Intent,
    Plan,
    Reason,
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

# The acts of replies with their slots, which every fragment of the act holds.
ACTS = {
    "search_found": "count categories",
    "search_item": "product id price rating",
    "search_none": "categories",
    "search_next": "",
    "facts": "product attribute value",
    "facts_missing": "product attribute",
    "compare_line": "product price rating",
    "compare_verdict": "product reason",
    "recommend": "product price rating",
    "stock_in": "product variant stock",
    "stock_out": "product variant",
    "stock_other": "variant stock",
    "price": "product price",
    "warranty": "product months",
    "order_placed": "order total",
    "order_packed": "order",
    "order_shipped": "order carrier tracking expected",
    "order_delayed": "order expected",
    "order_delivered": "order delivered",
    "order_partly_returned": "order",
    "order_cancelled": "order",
    "ask_order": "",
    "ask_email": "",
    "ask_variant": "product",
    "ask_address": "",
    "ask_product": "",
    "wrong_identity": "",
    "cancel_confirm": "order total",
    "cancel_done": "order total",
    "cancel_refused": "order state",
    "return_confirm": "order product",
    "return_done": "order product refund",
    "return_refused": "order product why",
    "exchange_confirm": "order product variant",
    "exchange_done": "order product variant",
    "exchange_refused": "order product why",
    "address_confirm": "order address",
    "address_done": "order address",
    "address_refused": "order state",
    "kept": "order",
    "policy": "section title text",
    "complaint": "",
    "handed_off": "",
    "unanswerable": "",
    "out_of_scope": "",
    "tool_error": "",
    "thanks": "",
    "product_unknown": "product",
}
CONFIRMS = {
    "cancel_confirm": "cancel_order",
    "return_confirm": "return_items",
    "exchange_confirm": "exchange_item",
    "address_confirm": "change_address",
}
ACTIONS = dict(zip(("cancel", "return", "exchange", "address"), WRITES, strict=True))
# What an answer may supply, each the slots of a line.
SUPPLIED = ("order", "email", "email order", "address", "variant", "product")
# A wording of another split that shares this much of its words with a training wording is the same one in other clothes.
MAX_SHARED_WORDS = 0.6


class TemplateCheck:
    """Appends to `faults`; `notes` says what a shop goes without, which is no fault."""

    def __init__(self, folder: Path, faults: Faults):
        self.folder, self.faults, self.notes, self.counts = folder, faults, [], {}
        try:
            speech = TemplateStore(folder)
        except UserError:  # a fault in the shop's own files, which is among the faults already
            self.notes.append(
                "what is said was not checked: the shop's own files have to be read first"
            )
            return
        self.lines: dict[type, list[tuple[str, object]]] = {}
        self.intents: dict[str, str] = {}
        ours = []
        for kind, name in (
            (Wording, "wordings"),
            (Plan, "plans.jsonl"),
            (FollowUp, "follow_ups.jsonl"),
            (Reply, "replies.jsonl"),
            (Reason, "reasons.jsonl"),
            (Hostile, "hostile.jsonl"),
            (Situation, "tone.jsonl"),
        ):
            found = faults.tried(lambda kind=kind, name=name: speech.lines(name, kind, faults), [])
            ours += [
                file.stem
                for file in faults.tried(lambda name=name: speech.files(name), [])
                if folder not in file.parents
            ]
            self.lines[kind] = [(f"{file}:{number}", record) for file, number, record in found]
            if kind is Wording:
                self.intents = {f"{file}:{number}": file.stem for file, number, _ in found}
        self._wordings()
        self._plans()
        self._follow_ups()
        self._replies()
        self._splits()
        self.counts = {kind.__name__.lower(): len(found) for kind, found in self.lines.items()}
        if ours:
            self.notes.append(f"not its own, so those of data/store: {', '.join(ours)}")
        if speech.left_out:
            self.notes.append(
                f"{speech.left_out.total()} lines are left out, since this shop does not have what they speak of: "
                + ", ".join(f"{what} ({count})" for what, count in sorted(speech.left_out.items()))
            )

    def _slots(self, place: str, field: str, text: str) -> None:
        unknown = slots(text) - Slots
        self.faults.expect(
            not unknown,
            place,
            f"{field}: expected slots among {', '.join(sorted(Slots))}, found {', '.join(sorted(unknown))}",
        )

    def _fixed(self, place: str, field: str, intent: str, fixed: dict[str, str]) -> None:
        if intent == "policy":
            self.faults.expect(
                set(fixed) <= {"topic", "section"},
                place,
                f"{field}: expected topic (the file name of a policy) and perhaps section (its heading), found {fixed}",
            )
        else:
            self.faults.expect(
                set(fixed) <= {"sort"} and fixed.get("sort", SORTS[0]) in SORTS,
                place,
                f"{field}: expected nothing, or sort with one of {', '.join(SORTS)}, found {fixed}",
            )

    def _wordings(self) -> None:
        lines, known = self.lines[Wording], get_args(Intent)
        for file in sorted((self.folder / "wordings").glob("*.jsonl")):
            self.faults.expect(
                file.stem in known,
                file,
                f"the file's name: expected an intent, one of {', '.join(known)}",
            )
        self.faults.unique("text", ((place, wording.text) for place, wording in lines))
        learnt: dict[str, list[set[str]]] = {}
        for place, wording in lines:
            self._fixed(place, "fixed", self.intents[place], wording.fixed)
            self._slots(place, "text", wording.text)
            if wording.split == "train":
                learnt.setdefault(self.intents[place], []).append(word_set(wording.text))
        for place, wording in lines:
            if wording.split != "train":
                own = word_set(wording.text)
                others = learnt.get(self.intents[place], ())
                share = max(
                    (len(own & other) / len(own | other) for other in others if own | other),
                    default=0.0,
                )
                self.faults.expect(
                    share < MAX_SHARED_WORDS,
                    place,
                    f"text: expected less than {MAX_SHARED_WORDS:.0%} of its words in a training wording, found {share:.0%}",
                )

    def _plans(self) -> None:
        self.faults.unique("id", ((place, plan.id) for place, plan in self.lines[Plan]))
        for place, plan in self.lines[Plan]:
            for number, turn in enumerate(plan.turns):
                self._fixed(place, f"turns.{number}.fixed", turn.intent, turn.fixed)
                self._slots(place, f"turns.{number}.text", turn.text)
            self._references(place, plan.turns)
            self._decisions(place, plan.turns)

    def _references(self, place: str, turns: list[Turn]) -> None:
        """A turn points back only at what an earlier one has shown."""
        listed = compared = spoken_of = False
        for number, turn in enumerate(turns):
            for field in ("product", "product_2", "product_3"):
                reference = getattr(turn, field)
                shown = not reference or (
                    listed
                    if reference.startswith("result")
                    else spoken_of
                    if reference == "same"
                    else compared
                )
                self.faults.expect(
                    shown,
                    place,
                    f"turns.{number}.{field}: expected an earlier turn that shows it, found {reference!r}",
                )
            listed |= turn.intent in ("search", "recommend", "gift")
            compared |= turn.intent == "compare"
            spoken_of |= turn.product is not None or "{product}" in turn.text or listed

    def _decisions(self, place: str, turns: list[Turn]) -> None:
        """A yes is understood as one by the rules of consent.py, and a no never is."""
        action = None
        for number, (before, turn) in enumerate(pairwise(turns), 1):
            action = ACTIONS.get(before.intent, action)
            if turn.intent in ("confirm", "refuse"):
                self.faults.expect(
                    action is not None,
                    place,
                    f"turns.{number}.intent: expected a change before it, found {turn.intent!r}",
                )
                self._answer(
                    place,
                    f"turns.{number}.text",
                    turn,
                    is_affirmation(turn.text, action) == (turn.intent == "confirm"),
                )

    def _answer(self, place: str, field: str, turn: Turn | FollowUp, understood: bool) -> None:
        expected = "a plain yes" if turn.intent == "confirm" else "no plain yes"
        self.faults.expect(understood, place, f"{field}: expected {expected}, found {turn.text!r}")

    def _follow_ups(self) -> None:
        lines = self.lines[FollowUp]
        self.faults.unique("text", ((place, line.text) for place, line in lines))
        for place, line in lines:
            found = " ".join(sorted(slots(line.text)))
            expected = SUPPLIED if line.intent == "answer" else ("",)
            self.faults.expect(
                found in expected,
                place,
                f"text: expected the slots {' or '.join(expected) or '(none)'}, "
                f"found {found or '(none)'}",
            )
            if line.intent in ("confirm", "refuse"):
                yes = [is_affirmation(line.text, action) for action in ACTIONS.values()]
                self._answer(place, "text", line, any(yes) == (line.intent == "confirm"))

    def _replies(self) -> None:
        heard = Counter((reply.act, reply.voice) for _, reply in self.lines[Reply])
        for act in ACTS if heard else ():
            for register in get_args(Register):
                self.faults.expect(
                    heard[act, register] > 0,
                    self.folder / "replies.jsonl",
                    f"act: expected at least one fragment of {act} in the register {register}, found none",
                )
        for place, reply in self.lines[Reply]:
            self.faults.expect(
                reply.act in ACTS,
                place,
                f"act: expected one of {', '.join(ACTS)}, found {reply.act!r}",
            )
            expected, found = set(ACTS.get(reply.act, "").split()), slots(reply.text)
            self.faults.expect(
                reply.act not in ACTS or found == expected,
                place,
                f"text: expected exactly the slots {', '.join(sorted(expected)) or '(none)'}, "
                f"found {', '.join(sorted(found)) or '(none)'}",
            )
            if reply.act in CONFIRMS and found == expected:
                self.faults.expect(
                    restates_itself(reply),
                    place,
                    "text: expected the whole change restated and no other, so that a yes "
                    f"means this one, found {reply.text!r}",
                )

    def _splits(self) -> None:
        """Every split has something to say."""
        heard = Counter(
            (self.intents[place], wording.split) for place, wording in self.lines[Wording]
        )
        for intent in get_args(Intent) if heard else ():
            lacking = [split for split in get_args(Split) if not heard[intent, split]]
            if lacking:
                self.notes.append(
                    f"no wording of {intent} fits in {', '.join(lacking)}, so no dialogue there begins with it"
                )
        for kind, name, splits in (
            (Plan, "plans", get_args(Split)),
            (Hostile, "hostile", get_args(Split)),
            (Situation, "tone", ("train", "test")),
        ):
            heard = Counter(line.split for _, line in self.lines[kind])
            for split in splits:
                self.faults.expect(
                    heard[split] > 0,
                    self.folder / f"{name}.jsonl",
                    f"split: expected at least one line of {split}, found none",
                )
        heard = Counter(
            (reason.split, fit) for _, reason in self.lines[Reason] for fit in reason.fits
        )
        for split in get_args(Split):
            for fit in ("return", "exchange", "complaint"):
                self.faults.expect(
                    heard[split, fit] > 0,
                    self.folder / "reasons.jsonl",
                    f"fits: expected at least one line of {split} for {fit}, found none",
                )
        for kind in (Reason, Hostile):
            self.faults.unique("text", ((place, line.text) for place, line in self.lines[kind]))
        self.faults.unique("id", ((place, line.id) for place, line in self.lines[Situation]))


def restates_itself(reply: Reply) -> bool:
    """Whether a question before a change names all of it, and no other change."""
    values = {
        "order": "TB-10101",
        "total": "12.34",
        "product": "Xyzzo Quorl lamp",
        "variant": "octarine",
        "address": "1 Zed Row, Zedton 99999",
    }
    text = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], reply.text)
    products = [(values["product"], ["octarine"] if reply.act != "exchange_confirm" else [])]
    detail = {"exchange_confirm": values["variant"], "address_confirm": values["address"]}.get(
        reply.act, ""
    )
    return requests_confirmation(
        text, CONFIRMS[reply.act], values["order"], values["total"], products, detail
    )


def slots(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


def word_set(text: str) -> set[str]:
    return set(re.findall(r"[\w']+", text.casefold()))


def check_folder(folder: Path) -> Check:
    """All that there is to check of a shop: its facts, and what is said there."""
    check = Check(folder)
    speech = TemplateCheck(folder, check.faults)
    check.notes += speech.notes
    check.counts |= speech.counts
    return check


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        sys.exit(__doc__)
    folder = Path(arguments[0])
    if not folder.is_dir():
        sys.exit(f"{folder} is no folder; expected that of a shop, such as data/store")
    check = check_folder(folder)
    print(", ".join(f"{count:,} of {kind}" for kind, count in check.counts.items()))
    print(f"held out: {sum(product.held_out for product in check.products.values()):,} products")
    for note in check.notes:
        print(note)
    if check.faults:
        sys.exit("\n".join(check.faults) + f"\n{len(check.faults)} faults in {check.folder}")
    print("no faults")


if __name__ == "__main__":
    main(sys.argv[1:])
