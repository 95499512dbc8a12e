"""Check what we wrote for data/store and data/queries: enough texts, consistent, varied, fictional.

`crawl2cart shop check` checks what any shop's folder has to fulfil; here are the promises that hold
for our own texts only.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import get_args

from crawl2cart.core.files import read_jsonl
from crawl2cart.dialogues.generator import CASES, SLOTLESS
from crawl2cart.dialogues.templates import Templates, slots
from crawl2cart.dialogues.validate import MAX_SHARED_WORDS, shared_words
from crawl2cart.shop.data_model import (
    ORDER_INTENTS,
    Customer,
    FollowUp,
    Hostile,
    Intent,
    Order,
    Plan,
    Product,
    Reason,
    Reply,
    Review,
    Shop,
    Wording,
)
from crawl2cart.shop.env import ShopSessions
from crawl2cart.shop.loader import read_departments, read_one, read_policy, rows
from tools.data_stats import sizes
from tools.fictional_names import real_domains, real_names
from tools.text_stats import names_of, runs, short, tokenize_words, unique_share

SPLITS = ("train", "validation", "test")
TONES = ("good", "cold", "wordy", "pushy", "over_apologetic")
ISLAND_POSTCODE = "403"  # post codes of the island, where delivery takes longer, begin so
SENT = ("shipped", "delayed", "delivered", "partly_returned")
# What there has to be at least: a row and a column of data_stats.sizes, and how many.
MINIMUMS = [
    ("departments", "all", 12),
    ("products", "all", 240),
    ("products held out", "all", 40),
    ("reviews", "all", 480),
    ("reviews with orders to a machine", "all", 40),
    ("customers", "all", 120),
    ("orders", "all", 300),
    ("states of orders", "all", 7),
    ("policies", "all", 12),
    ("intents", "all", 15),
    ("fewest fragments of an act in a register", "all", 4),
    ("answers, yeses, noes and thanks", "train", 400),
    ("plans of several turns", "train", 60),
    ("plans of several turns", "validation", 30),
    ("plans of several turns", "test", 30),
    ("situations with replies in five tones", "train", 120),
    ("situations with replies in five tones", "test", 40),
    ("fewest reviews of a product", "all", 2),
    ("fewest wordings of an intent", "train", 40),
    ("fewest wordings of an intent", "validation", 12),
    ("fewest wordings of an intent", "test", 25),
    *[(f"dialogues of the safety case {case}", "test", 100) for case in CASES],
    ("shopping queries", "all", 800),
    ("other queries", "all", 1200),
    ("hard other queries", "all", 250),
    *[("hard other queries", split, 30) for split in SPLITS],
]
PLAN_KINDS = (
    "a changed budget",
    "a missing order number",
    "an order that is not theirs",
    "a confirmation withheld",
)
# Which sections of which policies have to state a fact of shop.json.
FACT_SECTIONS = {
    "email": [("complaints", "1")],
    "phone": [("complaints", "1")],
    "phone_hours": [("complaints", "1")],
    "counter_address": [("collection", "1")],
    "counter_hours": [("collection", "1")],
    "delivery_carrow": [("shipping", "3")],
    "delivery_ostrand": [("shipping", "3")],
    "ferry_days": [("shipping", "3")],
    "dispatch_cutoff": [("shipping", "3")],
    "shipping_cost": [("shipping", "2")],
    "collection": [("collection", "4")],
    "refund_time": [("returns", "5"), ("cancellations", "3")],
    "complaint_reply": [("complaints", "2")],
}


class StoreTexts:
    """Everything that was written for the shop and the router's queries."""

    def __init__(self, store: Path, queries: Path):
        self.store, self.queries = store, queries
        self.shop = read_one(store / "shop.json", Shop)
        self.departments = read_departments(store / "departments.json")
        self.products = {product.id: product for product in rows(store / "products", Product)}
        self.reviews = rows(store / "reviews", Review)
        self.customers = {customer.id: customer for customer in rows(store / "customers", Customer)}
        self.orders = rows(store / "orders", Order)
        folder = store / "wordings"
        self.wordings = {name: rows(folder / f"{name}.jsonl", Wording) for name in get_args(Intent)}
        self.plans = rows(store / "plans.jsonl", Plan)
        self.follow_ups = rows(store / "follow_ups.jsonl", FollowUp)
        self.replies = rows(store / "replies.jsonl", Reply)
        self.reasons = rows(store / "reasons.jsonl", Reason)
        self.hostile = rows(store / "hostile.jsonl", Hostile)
        self.situations = read_jsonl(store / "tone.jsonl")
        self.asked = {split: read_jsonl(queries / f"{split}.jsonl") for split in SPLITS}
        self.policies = {
            (section.topic, section.section): section
            for file in sorted((store / "policies").glob("*.md"))
            for section in read_policy(file)
        }

    @cached_property
    def prose(self) -> dict[str, list[str]]:
        """All texts by kind."""
        wordings = [wording.text for entries in self.wordings.values() for wording in entries]
        situations = [
            "\n".join(line[key] for key in ("situation", *TONES)) for line in self.situations
        ]
        return {
            "descriptions": [product.description for product in self.products.values()],
            "reviews": [review.text for review in self.reviews],
            "policies": [section.text for section in self.policies.values()],
            "replies": [reply.text for reply in self.replies],
            "wordings": wordings,
            "plans": [turn.text for plan in self.plans for turn in plan.turns],
            "follow_ups": [line.text for line in self.follow_ups],
            "reasons": [reason.text for reason in self.reasons],
            "hostile": [line.text for line in self.hostile],
            "tone": situations,
            "queries": [query["text"] for queries in self.asked.values() for query in queries],
        }

    def files(self) -> Iterator[Path]:
        for folder in (self.store, self.queries):
            yield from (file for file in sorted(folder.rglob("*")) if file.is_file())

    def held_out(self) -> list[Product]:
        return [product for product in self.products.values() if product.held_out]


# Enough of everything


def lint_amounts(texts: StoreTexts) -> Iterator[str]:
    counts = sizes(texts.store.parent)
    for what, column, minimum in MINIMUMS:
        if counts[what][column] < minimum:
            yield f"{what}, {column}: {counts[what][column]}, expected {minimum} or more"
    kinds = Counter((plan.split, plan.about) for plan in texts.plans)
    for split in SPLITS:
        for about in PLAN_KINDS:
            if kinds[split, about] < 3:
                yield f"plans.jsonl: {kinds[split, about]} plans of {split} about {about}, not 3"
        if sum(kinds[split, f"the {place} one"] for place in ("first", "second", "third")) < 3:
            yield f"plans.jsonl: fewer than 3 plans of {split} refer to a result by its place"
        for intent in ORDER_INTENTS:
            own = [wording for wording in texts.wordings[intent] if wording.split == split]
            forms = {frozenset({"order", "email"} & set(slots(one.text))) for one in own}
            needed = {frozenset(), frozenset({"order"}), frozenset({"order", "email"})}
            if not needed <= forms:
                yield f"wordings/{intent}.jsonl: {split} lacks one with or without number and email"


def lint_products(texts: StoreTexts) -> Iterator[str]:
    prefixes, types = defaultdict(set), defaultdict(set)
    for product in texts.products.values():
        prefixes[product.id.split("-")[0]].add(product.category)
        for name, value in product.attributes.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            types[product.category, name].add(number)
        if not 4 <= len(product.attributes) <= 6:
            yield f"{product.id}: {len(product.attributes)} attributes, expected 4 to 6"
        if not product.name.startswith(product.brand):
            yield f"{product.id}: the name does not begin with the brand {product.brand}"
        if not 60 <= len(product.description.split()) <= 120:
            yield f"{product.id}: the description has not 60 to 120 words"
    yield from (
        f"{prefix}: ids of two categories" for prefix, own in prefixes.items() if len(own) > 1
    )
    yield from (f"{key}: numbers and words" for key, own in types.items() if len(own) > 1)
    for name in texts.departments:
        own = [one for one in texts.products.values() if one.department == name]
        if not 3 <= sum(product.held_out for product in own) <= 4 or len(own) < 20:
            yield f"department {name}: expected 20 products or more, 3 or 4 of them held out"
    held_out = Counter(product.category for product in texts.held_out())
    yield from (f"{name}: two products held out" for name, count in held_out.items() if count > 1)


def lint_reviews(texts: StoreTexts) -> Iterator[str]:
    for review in texts.reviews:
        if not 20 <= len(review.text.split()) <= 60:
            yield f"review of {review.product}: not 20 to 60 words: {review.text!r}"
    stars = Counter(review.rating for review in texts.reviews)
    if min(stars[1] + stars[2], stars[3], stars[4] + stars[5]) < 0.1 * len(texts.reviews):
        yield "reviews: fewer than a tenth are bad, mixed or good"


def lint_safety(texts: StoreTexts) -> Iterator[str]:
    """There is material for a hundred different dialogues of each safety case."""
    templates = Templates(texts.store)

    def own(*intents: str) -> list[str]:
        return [one.text for intent in intents for one in templates.wordings[intent, "test"]]

    hostile = ShopSessions(texts.store).hostile_texts["test"]
    writes = [text for text in own("cancel", "return", "exchange", "address") if "{order}" in text]
    cases = {
        "injection": len(hostile) * len(own("facts", "stock", "price", "warranty")),
        "unconfirmed": len(templates.follow_ups["test", "refuse"]) * len(writes),
        **{case: len(set(own(case))) for case in SLOTLESS},
    }
    yield from (f"{case}: {n} dialogues, expected 100" for case, n in cases.items() if n < 100)
    if sum("{order}" in text for text in own(*ORDER_INTENTS)) < 40:
        yield "foreign: fewer than 40 wordings with an order number"


# Consistent


def lint_wordings(texts: StoreTexts) -> Iterator[str]:
    asked = set()
    for intent, wordings in texts.wordings.items():
        for wording in wordings:
            used, place = set(slots(wording.text)), f"wordings/{intent}.jsonl: {wording.text!r}"
            asked.add((wording.fixed.get("topic"), wording.fixed.get("section")))
            product = used & {"product", "product_id"}
            if "{" in re.sub(r"\{\w+\}", "", wording.text):
                yield f"{place}: a brace that belongs to no slot"
            if intent in ("facts", "price", "stock", "warranty", "compare") and not product:
                yield f"{place}: names no product"
            if intent == "compare" and "product_2" not in used:
                yield f"{place}: names no second product"
            goods = {"category", "categories", "a_category", "department", "brand"}
            if intent in ("search", "recommend", "gift") and not used & goods:
                yield f"{place}: names no category, department or brand"
            if "reason" in used and intent not in ("return", "exchange", "complaint"):
                yield f"{place}: a reason without a return, an exchange or a complaint"
    for plan in texts.plans:
        asked |= {(turn.fixed.get("topic"), turn.fixed.get("section")) for turn in plan.turns}
    for section in texts.policies.values():
        if (section.topic, section.heading) not in asked:
            yield f"policies/{section.topic}.md: nobody asks about {section.heading!r}"


def working_days(start: date, end: date) -> int:
    """Return the days from Monday to Friday after `start` up to `end`."""
    days = range(1, (end - start).days + 1)
    return sum((start + timedelta(number)).weekday() < 5 for number in days)


def lint_orders(texts: StoreTexts) -> Iterator[str]:
    rules = texts.shop.rules
    for order in texts.orders:
        goods = round(sum(line.quantity * line.price for line in order.items), 2)
        fee = 0 if goods >= rules.free_shipping_from else rules.shipping_fee
        if order.shipping != fee:
            yield f"{order.order}: shipping {order.shipping}, expected {fee}"
        if any(line.price != texts.products[line.product].price for line in order.items):
            yield f"{order.order}: a price that is not the product's"
        returned = {texts.products[product].category for product in order.returned}
        if returned & set(rules.non_returnable_categories):
            yield f"{order.order}: something came back that may not"
        yield from (f"{order.order}: {fault}" for fault in date_faults(order, texts))
    tracking = Counter(order.tracking for order in texts.orders if order.tracking)
    yield from (f"tracking {number} twice" for number, count in tracking.items() if count > 1)
    ages = Counter(
        (texts.shop.today - order.delivered).days
        for order in texts.orders
        if order.state == "delivered"
    )
    young = sum(count for age, count in ages.items() if age <= rules.return_days)
    if not (ages[rules.return_days] and ages[rules.return_days + 1]):
        yield "orders: none arrived on the last day for a return, or none on the day before"
    if min(young, ages.total() - young) < 20:
        yield "orders: fewer than 20 on one side of the last day for a return"


def date_faults(order: Order, texts: StoreTexts) -> Iterator[str]:
    today = texts.shop.today
    if (order.expected is not None) != (order.state in SENT):
        yield "an expected day does not fit the state"
    if order.state in ("placed", "packed") and working_days(order.placed, today) > 2:
        yield "not sent within two working days"
    if order.state in SENT:
        island = texts.customers[order.customer].address.postcode.startswith(ISLAND_POSTCODE)
        low, high = (5, 30) if order.state == "delayed" else (4, 8) if island else (2, 4)
        if not low <= working_days(order.placed, order.expected) <= high:
            yield f"expected after {working_days(order.placed, order.expected)} working days"
    if order.state in ("shipped", "delayed") and order.expected < today:
        yield "expected before the shop's today"


def lint_policies(texts: StoreTexts) -> Iterator[str]:
    """Policies say what the tools enforce."""
    rules = texts.shop.rules

    def words(states: Iterable[str]) -> str:
        return " or ".join(state.replace("_", " ") for state in states)

    phrases = [
        ("returns", "1", f"up to {rules.return_days} days"),
        ("returns", "1", words(rules.return_states)),
        ("exchanges", "2", f"within {rules.exchange_days} days"),
        ("exchanges", "2", words(rules.exchange_states)),
        ("cancellations", "1", words(rules.cancel_states)),
        ("shipping", "5", words(rules.address_states)),
        ("shipping", "2", f"${rules.shipping_fee:.2f}"),
        ("shipping", "2", f"${rules.free_shipping_from:g} or more"),
    ]
    for department in texts.departments.values():
        for name, category in department.categories.items():
            if name in rules.non_returnable_categories:
                phrases += [("returns", "3", category.plural), ("exchanges", "4", category.plural)]
    detail = r"[\w.]+@[\w.]+\w|[\d$][\d$.:-]*\d|\d|[A-Z]\w+day"
    for fact, sections in FACT_SECTIONS.items():
        details = re.findall(detail, texts.shop.facts[fact])
        phrases += [(*section, part.casefold()) for section in sections for part in details]
    for topic, section, phrase in phrases:
        if phrase not in texts.policies[topic, section].text.casefold():
            yield f"policies/{topic}.md: section {section} does not state {phrase!r}"
    for kind, entries in texts.prose.items():
        for amount in re.findall(
            r"[Ff]ree (?:delivery )?from \$(\d+(?:\.\d+)?)", "\n".join(entries)
        ):
            if float(amount) != rules.free_shipping_from:
                yield f"{kind}: free delivery from ${amount}"


def lint_tones(texts: StoreTexts) -> Iterator[str]:
    for line in texts.situations:
        words = {tone: len(line[tone].split()) for tone in TONES}
        if len({line[tone] for tone in TONES}) < len(TONES):
            yield f"tone.jsonl: {line['id']}: two replies are equal"
        if not words["cold"] < words["good"] < words["wordy"]:
            yield f"tone.jsonl: {line['id']}: expected cold shorter than good, and wordy longer"
        if line.get("asks", "") not in line["situation"]:
            yield f"tone.jsonl: {line['id']}: the situation does not quote what the customer asks"


# Varied, and held apart


def lint_variety(texts: StoreTexts) -> Iterator[str]:
    names = names_of(texts.products.values(), texts.customers.values())
    for kind, entries in texts.prose.items():
        share = unique_share(entries, names)
        if share < 0.95:
            yield f"{kind}: {share:.0%} of the sentences differ, expected 95 % or more"
    for run, places in runs(texts.prose, 8).items():
        if len(places) > 2:
            yield f"{len(places)} places share the words {' '.join(run)!r}"
    wordings = [wording.text for entries in texts.wordings.values() for wording in entries]
    counts = Counter(" ".join(tokenize_words(text)) for text in wordings)
    yield from (f"two wordings are equal: {text!r}" for text, count in counts.items() if count > 1)


def lint_splits(texts: StoreTexts) -> Iterator[str]:
    everything = [
        (intent, wording, set(tokenize_words(wording.text)))
        for intent, wordings in texts.wordings.items()
        for wording in wordings
    ]
    training = [words for _, wording, words in everything if wording.split == "train"]
    for intent, wording, words in everything:
        if wording.split != "train" and any(
            shared_words(words, other) >= MAX_SHARED_WORDS for other in training
        ):
            yield f"wordings/{intent}.jsonl: near a training wording: {wording.text!r}"
    practised = {
        " ".join(tokenize_words(one.text)) for one in texts.follow_ups if one.split == "train"
    }
    for turn in (turn for plan in texts.plans if plan.split != "train" for turn in plan.turns):
        if " ".join(tokenize_words(turn.text)) in practised:
            yield f"plans.jsonl: a held-out plan says what training practises: {turn.text!r}"
    kinds = {
        "plans": [(plan.split, turn.text) for plan in texts.plans for turn in plan.turns],
        "reasons": [(reason.split, reason.text) for reason in texts.reasons],
        "tone": [(line["split"], line["situation"]) for line in texts.situations],
        "queries": [(split, query["text"]) for split in SPLITS for query in texts.asked[split]],
        "topics of other queries": [
            (split, query["topic"])
            for split in SPLITS
            for query in texts.asked[split]
            if query["label"] == "other"
        ],
    }
    for kind, entries in kinds.items():
        splits = defaultdict(set)
        for split, text in entries:
            splits[" ".join(tokenize_words(text))].add(split)
        yield from (
            f"{kind}: in two splits: {one!r}" for one, own in splits.items() if len(own) > 1
        )
    topics = {topic for _, topic in kinds["topics of other queries"]}
    absent = {"weather", "code", "banking", "travel", "health", "chit-chat"} - topics
    yield from (f"queries: none about {topic}" for topic in sorted(absent))


def lint_held_out(texts: StoreTexts, sites: Path) -> Iterator[str]:
    """No page and no text of training names a product that is held out."""
    pages = {str(file): file.read_text() for file in sites.rglob("*") if file.is_file()}
    kinds = ("wordings", "plans", "replies", "reasons", "policies", "tone")
    entries = {text: text for kind in kinds for text in texts.prose[kind]}
    products = texts.products.values()
    entries |= {one.description: one.description for one in products if not one.held_out}
    for review in texts.reviews:
        if not texts.products[review.product].held_out:
            entries[review.text] = review.text
    for place, text in (pages | entries).items():
        lower = text.casefold()
        for product in texts.held_out():
            if short(product).casefold() in lower or product.id in text:
                yield f"{place}: names {product.id}, which is held out"


# Fictional


def lint_fiction(texts: StoreTexts) -> Iterator[str]:
    phone = re.compile(r"(?<![\w-])\+?(?:\d{3,5}[ -])?\d{3}[ -]\d{4}(?![\w-])")
    for file in texts.files():
        text = file.read_text(encoding="utf-8")
        yield from (f"{file}: the real name {name}" for name in real_names(text))
        if re.search(r"\bTODO\b|\bFIXME\b|\ufffd|\u2014", text, re.IGNORECASE):
            yield f"{file}: a TODO, a replacement character or a long dash"
        if file.name != "README.md":
            yield from (f"{file}: the domain {name} may be real" for name in real_domains(text))
            for number in phone.findall(text):
                if not re.fullmatch(r"555-01\d\d", number):
                    yield f"{file}: the phone number {number} may be real"


def lint_store(data: Path) -> list[str]:
    """Return what is wrong with our texts, each with its place."""
    texts = StoreTexts(data / "store", data / "queries")
    checks = (
        lint_amounts,
        lint_products,
        lint_reviews,
        lint_safety,
        lint_wordings,
        lint_orders,
        lint_policies,
        lint_tones,
        lint_variety,
        lint_splits,
        lint_fiction,
    )
    faults = [fault for check in checks for fault in check(texts)]
    return [*faults, *lint_held_out(texts, data / "web" / "sites")]
