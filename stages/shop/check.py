"""Checks a shop's folder and names every fault by file, line and field, with what is expected.

  python -m stages.shop.check data/store
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from stages.common.problem import Problem
from stages.shop.consent import restates
from stages.shop.records import (
    SORTS,
    Customer,
    Order,
    Plan,
    Product,
    Reason,
    Record,
    Reply,
    Review,
    Section,
    Shop,
    Slots,
    Wording,
    read_departments,
    read_lines,
    read_one,
    read_policy,
)

# The acts of replies with their slots, which every fragment of the act holds.
ACTS = {
    "search_found": "count categories", "search_item": "product id price rating", "search_none": "categories", "search_next": "",
    "facts": "product attribute value", "facts_missing": "product attribute", "compare_line": "product price rating",
    "compare_verdict": "product reason", "recommend": "product price rating", "stock_in": "product variant stock",
    "stock_out": "product variant", "stock_other": "variant stock", "price": "product price", "warranty": "product months",
    "order_placed": "order total", "order_packed": "order", "order_shipped": "order carrier tracking expected",
    "order_delayed": "order expected", "order_delivered": "order delivered", "order_partly_returned": "order", "order_cancelled": "order",
    "ask_order": "", "ask_email": "", "ask_variant": "product", "ask_address": "", "ask_product": "", "wrong_identity": "",
    "cancel_confirm": "order total", "cancel_done": "order total", "cancel_refused": "order state",
    "return_confirm": "order product", "return_done": "order product refund", "return_refused": "order product why",
    "exchange_confirm": "order product variant", "exchange_done": "order product variant", "exchange_refused": "order product why",
    "address_confirm": "order address", "address_done": "order address", "address_refused": "order state", "kept": "order",
    "policy": "section title text", "complaint": "", "handed_off": "", "unanswerable": "", "out_of_scope": "", "tool_error": "",
    "thanks": "", "product_unknown": "product"}
CONFIRMS = {"cancel_confirm": "cancel_order", "return_confirm": "return_items", "exchange_confirm": "exchange_item",
            "address_confirm": "change_address"}
REGISTERS = ("brief", "warm", "formal", "plain")
# A wording of another split that shares this much of its words with a training wording is the same one in other clothes.
MAX_SHARED_WORDS = 0.6


class Check:
    """Reads a folder; `faults` and `counts` are what it found, `foreign_topics` what is left out without being wrong."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.faults: list[str] = []
        self.foreign_topics: Counter[str] = Counter()  # policies that wordings ask for and this shop does not have
        self.shop: Shop | None = self._tried(lambda: read_one(folder / "shop.json", Shop))
        self.departments = self._tried(lambda: read_departments(folder / "departments.json")) or {}
        self.categories = {name: category for department in self.departments.values() for name, category in department.categories.items()}
        self.policies = {(section.topic, section.section): section for file in sorted((folder / "policies").glob("*.md"))
                         for section in self._tried(lambda file=file: read_policy(file)) or []}
        self.lines = {kind: self._lines(name, kind) for kind, name in (
            (Product, "products"), (Review, "reviews"), (Customer, "customers.jsonl"), (Order, "orders.jsonl"),
            (Wording, "wordings"), (Plan, "plans.jsonl"), (Reply, "replies.jsonl"), (Reason, "reasons.jsonl"))}
        self.products = {product.id: product for _, product in self.lines[Product]}
        self._products()
        self._orders()
        self._wordings()
        self._plans()
        self._replies()
        if not self.policies:
            self.faults.append(f"{folder / 'policies'}: no policy; at least one file topic.md with numbered sections")
        self.counts = {kind.__name__.lower(): len(found) for kind, found in self.lines.items()} | {
            Section.__name__.lower(): len(self.policies), "department": len(self.departments), "category": len(self.categories)}

    def _tried(self, read):
        try:
            return read()
        except Problem as problem:
            self.faults += str(problem).splitlines()
            return None

    def _lines(self, name: str, kind: type[Record]) -> list[tuple[str, Record]]:
        """Each record with its place, `file:line`."""
        path = self.folder / name
        files = sorted(path.glob("*.jsonl")) if path.suffix != ".jsonl" else [path]
        if not files:
            self.faults.append(f"{path}: missing; a folder of .jsonl files with one {kind.__name__.lower()} a line")
        return [(f"{file}:{number}", record) for file in files for number, record in read_lines(file, kind, self.faults)]

    def _expect(self, holds: bool, place: str, fault: str) -> None:
        if not holds:
            self.faults.append(f"{place}: {fault}")

    def _unique(self, what: str, entries: Iterable[tuple[str, str]]) -> None:
        first: dict[str, str] = {}
        for place, value in entries:
            key = " ".join(value.casefold().split())
            self._expect(key not in first, place, f"{what}: {value!r} stands at {first.get(key)} already; each must be another")
            first.setdefault(key, place)

    def _products(self) -> None:
        lines = self.lines[Product]
        self._unique("id", ((place, product.id) for place, product in lines))
        self._unique("name", ((place, " ".join(product.name.split()[:2])) for place, product in lines))
        for place, product in lines:
            department = self.departments.get(product.department)
            self._expect(department is not None, place, f"department: {product.department!r} is not in departments.json")
            category = department.categories.get(product.category) if department else None
            self._expect(not department or category is not None, place,
                         f"category: {product.category!r} is not one of the department {product.department!r}")
            for name, value in product.attributes.items() if category else ():
                self._expect(name in category.attributes, place,
                             f"attributes.{name}: departments.json does not list it for {product.category}")
                if category.attributes.get(name):
                    number = isinstance(value, int | float) and not isinstance(value, bool)
                    self._expect(number, place, f"attributes.{name}: a number of {category.attributes[name]}, found {value!r}")
            self._expect(not self.shop or product.currency == self.shop.currency, place,
                         f"currency: {product.currency!r}, unlike shop.json")
            self._unique("variants", ((place, variant.name) for variant in product.variants))
            for other in product.related:
                self._expect(other in self.products and other != product.id, place, f"related: {other} is no other product of the shop")
        for place, review in self.lines[Review]:
            self._expect(review.product in self.products, place, f"product: {review.product} is no product of the shop")

    def _orders(self) -> None:
        customers = {customer.id for _, customer in self.lines[Customer]}
        self._unique("id", ((place, customer.id) for place, customer in self.lines[Customer]))
        self._unique("email", ((place, customer.email) for place, customer in self.lines[Customer]))
        self._unique("order", ((place, order.order) for place, order in self.lines[Order]))
        for place, order in self.lines[Order]:
            self._expect(order.customer in customers, place, f"customer: {order.customer} is not in customers.jsonl")
            bought = [line.product for line in order.items]
            self._expect(len(set(bought)) == len(bought), place, "items: a product in two lines; use quantity")
            for number, line in enumerate(order.items):
                product = self.products.get(line.product)
                self._expect(product is not None, place, f"items.{number}.product: {line.product} is no product of the shop")
                if product:
                    known = [variant.name for variant in product.variants]
                    self._expect(line.variant in known, place,
                                 f"items.{number}.variant: one of {', '.join(known)}, found {line.variant!r}")
            total = round(sum(line.price * line.quantity for line in order.items) + order.shipping, 2)
            self._expect(abs(total - order.total) < 0.005, place,
                         f"total: lines and shipping add up to {total:.2f}, found {order.total:.2f}")
            self._expect(set(order.returned) <= set(bought), place, "returned: only products of this order")
            arrived = order.state in ("delivered", "partly_returned", "returned")
            self._expect((order.delivered is not None) == arrived, place,
                         f"delivered: a date if and only if it has arrived ({order.state})")
            self._expect((order.carrier is None) == (order.tracking is None), place, "tracking: together with carrier")
            if order.state in ("shipped", "delayed"):
                self._expect(order.carrier is not None and order.expected is not None, place,
                             f"carrier, expected: needed when {order.state}")
            last = max(day for day in (order.placed, order.delivered) if day)
            self._expect(not self.shop or last <= self.shop.today, place, "placed, delivered: not after the shop's today")

    def _fixed(self, place: str, intent: str, fixed: dict[str, str]) -> None:
        if intent == "policy":
            topic, section = fixed.get("topic"), fixed.get("section")
            self._expect(topic is not None, place, "fixed.topic: the file name of a policy, needed with the intent policy")
            if topic not in {known for known, _ in self.policies}:
                self.foreign_topics[topic] += 1
            else:
                self._expect(section is None or (topic, section) in self.policies, place,
                             f"fixed.section: {topic} has no section {section!r}")
        else:
            self._expect(set(fixed) <= {"sort"} and fixed.get("sort", SORTS[0]) in SORTS, place, f"fixed: sort, one of {', '.join(SORTS)}")

    def _wordings(self) -> None:
        learnt: dict[str, list[set[str]]] = {}
        self._unique("text", ((place, f"{self._intent(place)}: {wording.text}") for place, wording in self.lines[Wording]))
        for place, wording in self.lines[Wording]:
            self._fixed(place, self._intent(place), wording.fixed)
            unknown = slots(wording.text) - Slots
            self._expect(not unknown, place, f"text: no slot is called {', '.join(sorted(unknown))}")
            if wording.split == "train":
                learnt.setdefault(self._intent(place), []).append(words(wording.text))
        for place, wording in self.lines[Wording]:
            if wording.split != "train":
                own = words(wording.text)
                others = learnt.get(self._intent(place), ())
                share = max((len(own & other) / len(own | other) for other in others if own | other), default=0.0)
                self._expect(share < MAX_SHARED_WORDS, place,
                             f"text: shares {share:.0%} of its words with a training wording, at most 60 %")

    def _intent(self, place: str) -> str:
        return Path(place.rpartition(":")[0]).stem

    def _plans(self) -> None:
        self._unique("id", ((place, plan.id) for place, plan in self.lines[Plan]))
        for place, plan in self.lines[Plan]:
            for number, turn in enumerate(plan.turns):
                if turn.intent == "policy" or turn.fixed:
                    self._fixed(f"{place}: turns.{number}", turn.intent, turn.fixed)
                unknown = slots(turn.text) - Slots
                self._expect(not unknown, place, f"turns.{number}.text: no slot is called {', '.join(sorted(unknown))}")
        for place, reason in self.lines[Reason]:
            self._expect(bool(reason.fits), place, "fits: at least one of return, exchange, complaint")

    def _replies(self) -> None:
        heard = Counter((reply.act, reply.voice) for _, reply in self.lines[Reply])
        for act in ACTS if heard else ():
            for register in REGISTERS:
                self._expect(heard[act, register] > 0, str(self.folder / "replies.jsonl"),
                             f"no fragment of {act} in the register {register}")
        for place, reply in self.lines[Reply]:
            self._expect(reply.act in ACTS, place, f"act: {reply.act!r} is not one of those that replies are made of")
            expected = set(ACTS.get(reply.act, "").split())
            found = slots(reply.text)
            self._expect(reply.act not in ACTS or found == expected, place,
                         f"text: exactly the slots {', '.join(sorted(expected)) or '(none)'}, found {', '.join(sorted(found)) or '(none)'}")
            if reply.act in CONFIRMS and found == expected:
                self._expect(restates_itself(reply), place,
                             "text: does not restate the change so that a yes to it can only mean this one")


def restates_itself(reply: Reply) -> bool:
    """Whether a question before a change names all of it, and no other change."""
    values = {"order": "TB-10101", "total": "12.34", "product": "Xyzzo Quorl lamp", "variant": "octarine",
              "address": "1 Zed Row, Zedton 99999"}
    text = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], reply.text)
    products = [(values["product"], ["octarine"] if reply.act != "exchange_confirm" else [])]
    detail = {"exchange_confirm": values["variant"], "address_confirm": values["address"]}.get(reply.act, "")
    return restates(text, CONFIRMS[reply.act], values["order"], values["total"], products, detail)


def slots(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w']+", text.casefold()))


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        sys.exit(__doc__)
    check = Check(Path(arguments[0]))
    print(", ".join(f"{count:,} of {kind}" for kind, count in check.counts.items()))
    print(f"held out: {sum(product.held_out for product in check.products.values()):,} products")
    for topic, count in sorted(check.foreign_topics.items()):
        print(f"{count} wordings ask for the policy {topic}, which this shop does not have; they are left out of the dialogues")
    if check.faults:
        sys.exit("\n".join(check.faults) + f"\n{len(check.faults)} faults in {check.folder}")
    print("no faults")


if __name__ == "__main__":
    main(sys.argv[1:])
