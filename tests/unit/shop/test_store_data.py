"""The shop and the queries that ship: enough of each, every reference met, nothing stamped, nothing let slip, nothing real."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import date, timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from crawl2cart.core.files import read_jsonl
from crawl2cart.dialogues.generator import CASES, SLOTLESS
from crawl2cart.shop.confirmation import is_affirmation, requests_confirmation
from crawl2cart.shop.data_model import (
    ORDER_INTENTS,
    Customer,
    FollowUp,
    Hostile,
    Order,
    Plan,
    Product,
    Reason,
    Reply,
    Review,
    Section,
    Shop,
    Slots,
    Wording,
)
from crawl2cart.shop.db import open_store
from crawl2cart.shop.env import ShopSessions
from crawl2cart.shop.loader import read_departments, read_one, read_policy, rows
from crawl2cart.shop.tools import Session
from tests.conftest import ROOT
from tools.data_stats import SPLITS, sizes, sizes_table
from tools.fictional_names import real_domains, real_names
from tools.text_stats import names_of, runs, short, tokenize_words, unique_share

STORE, QUERIES, WEB = ROOT / "data/store", ROOT / "data/queries", ROOT / "data/web"
TONES = ("good", "cold", "wordy", "pushy", "over_apologetic")
ISLAND = "403"  # post codes on Ostrand begin so
INTENTS = sorted(file.stem for file in (STORE / "wordings").glob("*.jsonl"))

PRODUCTS = {product.id: product for product in rows(STORE / "products", Product)}
HELD_OUT = [product for product in PRODUCTS.values() if product.held_out]
REVIEWS = rows(STORE / "reviews", Review)
CUSTOMERS = {customer.id: customer for customer in rows(STORE / "customers.jsonl", Customer)}
ORDERS = rows(STORE / "orders.jsonl", Order)
WORDINGS = {intent: rows(STORE / "wordings" / f"{intent}.jsonl", Wording) for intent in INTENTS}
PLANS = rows(STORE / "plans.jsonl", Plan)
FOLLOW_UPS = rows(STORE / "follow_ups.jsonl", FollowUp)
REPLIES = rows(STORE / "replies.jsonl", Reply)
REASONS = rows(STORE / "reasons.jsonl", Reason)
SHOP = read_one(STORE / "shop.json", Shop)
DEPARTMENTS = read_departments(STORE / "departments.json")
POLICIES: dict[tuple[str, str], Section] = {
    (section.topic, section.section): section
    for file in sorted((STORE / "policies").glob("*.md"))
    for section in read_policy(file)
}
HEADINGS: dict[str, list[str]] = defaultdict(list)
for found in POLICIES.values():
    HEADINGS[found.topic].append(found.heading)
HOSTILE = rows(STORE / "hostile.jsonl", Hostile)
SIZES = sizes()
SITUATIONS = read_jsonl(STORE / "tone.jsonl")
ASKED = {split: read_jsonl(QUERIES / f"{split}.jsonl") for split in SPLITS}


@cache
def prose() -> dict[str, list[str]]:
    """All that was written, by kind, a text for each place."""
    return {
        "descriptions": [product.description for product in PRODUCTS.values()],
        "reviews": [review.text for review in REVIEWS],
        "policies": [section.text for section in POLICIES.values()],
        "replies": [reply.text for reply in REPLIES],
        "wordings": [wording.text for wordings in WORDINGS.values() for wording in wordings],
        "plans": [turn.text for plan in PLANS for turn in plan.turns],
        "follow_ups": [line.text for line in FOLLOW_UPS],
        "reasons": [reason.text for reason in REASONS],
        "hostile": [line.text for line in HOSTILE],
        "tone": ["\n".join(line[key] for key in ("situation", *TONES)) for line in SITUATIONS],
        "queries": [query["text"] for queries in ASKED.values() for query in queries],
    }


def files() -> Iterator[Path]:
    return (
        file for folder in (STORE, QUERIES) for file in sorted(folder.rglob("*")) if file.is_file()
    )


# Enough of everything


@pytest.mark.parametrize(
    ("what", "column", "least"),
    [
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
    ],
)
def test_there_is_enough(what, column, least):
    assert SIZES[what][column] >= least


def test_the_table_of_sizes_shows_every_count():
    table = sizes_table()
    assert table.splitlines()[0] == "| what | all | train | validation | test |"
    assert f"| products | {len(PRODUCTS)} |" in table
    assert len(table.splitlines()) == len(SIZES) + 2


@pytest.mark.parametrize("intent", INTENTS)
@pytest.mark.parametrize(("split", "least"), [("train", 40), ("validation", 12), ("test", 25)])
def test_every_intent_is_said_in_enough_ways(intent, split, least):
    assert sum(wording.split == split for wording in WORDINGS[intent]) >= least


def test_every_product_has_two_reviews_and_a_description_of_some_length():
    reviewed = Counter(review.product for review in REVIEWS)
    assert not [product for product in PRODUCTS if reviewed[product] < 2]
    assert not [
        product.id
        for product in PRODUCTS.values()
        if not 60 <= len(product.description.split()) <= 120
    ]
    assert not [review.text for review in REVIEWS if not 20 <= len(review.text.split()) <= 60]


def test_reviews_are_good_bad_and_mixed():
    stars = Counter(review.rating for review in REVIEWS)
    assert min(stars[1] + stars[2], stars[3], stars[4] + stars[5]) >= 0.1 * len(REVIEWS)


def test_about_a_sixth_of_every_department_is_held_out():
    for name in DEPARTMENTS:
        inside = [product for product in PRODUCTS.values() if product.department == name]
        assert 3 <= sum(product.held_out for product in inside) <= 4 and len(inside) >= 20
    assert max(Counter(product.category for product in HELD_OUT).values()) == 1


def test_every_register_has_fragments_of_every_act():
    heard = {(reply.act, reply.voice) for reply in REPLIES}
    acts = {act for act, _ in heard}
    assert heard == {(act, voice) for act in acts for voice in ("brief", "warm", "formal", "plain")}
    assert min(Counter((reply.act, reply.voice) for reply in REPLIES).values()) >= 4


def test_every_fragment_of_an_act_gives_the_same_facts():
    given = defaultdict(set)
    for reply in REPLIES:
        given[reply.act].add(frozenset(slots(reply.text)))
    assert not {act: found for act, found in given.items() if len(found) > 1}


def test_every_split_has_plans_of_every_kind():
    kinds = Counter((plan.split, plan.about) for plan in PLANS)
    for split in SPLITS:
        for about in (
            "a changed budget",
            "a missing order number",
            "an order that is not theirs",
            "a confirmation withheld",
        ):
            assert kinds[split, about] >= 3, (split, about)
        assert (
            sum(
                kinds[split, about]
                for about in ("the first one", "the second one", "the third one")
            )
            >= 3
        ), split


def test_other_queries_are_about_what_people_ask():
    topics = {
        query["topic"]
        for queries in ASKED.values()
        for query in queries
        if query["label"] == "other"
    }
    assert {"weather", "code", "banking", "travel", "health", "chit-chat"} <= topics


def test_queries_of_other_matters_share_no_topic_between_splits():
    topics = Counter(
        topic
        for split in SPLITS
        for topic in {query["topic"] for query in ASKED[split] if query["label"] == "other"}
    )
    assert not [topic for topic, splits in topics.items() if splits > 1]


def test_each_safety_metric_has_material_for_a_hundred_cases():
    """Of what customers say in test times what tempts the agent; tests/unit/dialogues/test_build_sft.py makes them."""
    said = {
        intent: [wording.text for wording in WORDINGS[intent] if wording.split == "test"]
        for intent in INTENTS
    }
    about_products = [
        text for intent in ("facts", "stock", "price", "warranty") for text in said[intent]
    ]
    attacks = ShopSessions(STORE).attacks["test"]
    assert len(attacks) >= 15 and len(attacks) * len(about_products) >= 100
    assert (
        sum("{order}" in text for intent in ORDER_INTENTS for text in said[intent])
        + sum(plan.order == "foreign" for plan in PLANS if plan.split == "test")
        >= 40
    )
    refusals = {
        turn.text
        for plan in PLANS
        if plan.split == "test"
        for turn in plan.turns
        if turn.intent == "refuse"
    }
    writes = [
        text
        for intent in ("cancel", "return", "exchange", "address")
        for text in said[intent]
        if "{order}" in text
    ]
    assert len(refusals) * len(writes) >= 100
    assert (
        min(len(set(said[case])) for case in SLOTLESS) >= 100
    )  # nothing is filled in: each has to be said in its own words


# Everything refers to something


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def test_products_are_of_their_category():
    prefixes = defaultdict(set)
    for product in PRODUCTS.values():
        units = DEPARTMENTS[product.department].categories[product.category].attributes
        assert 4 <= len(product.attributes) <= 6 and set(product.attributes) <= set(units), (
            product.id
        )
        for name, value in product.attributes.items():
            assert not units[name] or is_number(value), f"{product.id}: {name} is in {units[name]}"
        assert product.name.startswith(product.brand) and product.currency == SHOP.currency
        assert product.id not in product.related and set(product.related) <= set(PRODUCTS), (
            product.id
        )
        prefixes[product.id.split("-")[0]].add(product.category)
    assert all(len(categories) == 1 for categories in prefixes.values())


def test_products_are_told_apart_by_two_words():
    assert len({short(product).casefold() for product in PRODUCTS.values()}) == len(
        rows(STORE / "products", Product)
    )


def test_an_attribute_is_of_one_type_in_its_category():
    types = defaultdict(set)
    for product in PRODUCTS.values():
        for name, value in product.attributes.items():
            types[product.category, name].add(is_number(value))
    assert not [key for key, found in types.items() if len(found) > 1]


def test_reviews_and_orders_are_of_products_and_customers():
    assert {review.product for review in REVIEWS} <= set(PRODUCTS)
    assert {order.customer for order in ORDERS} <= set(CUSTOMERS)
    assert len({order.order for order in ORDERS}) == len(ORDERS)
    assert len({customer.email.casefold() for customer in CUSTOMERS.values()}) == len(CUSTOMERS)
    tracked = [order.tracking for order in ORDERS if order.tracking]
    assert len(tracked) == len(set(tracked))


def fixed_entries() -> Iterator[tuple[str, dict[str, str]]]:
    yield from ((intent, wording.fixed) for intent in INTENTS for wording in WORDINGS[intent])
    yield from ((turn.intent, turn.fixed) for plan in PLANS for turn in plan.turns)


def test_what_words_imply_exists():
    topics = {topic for topic, _ in POLICIES}
    for intent, fixed in fixed_entries():
        if intent == "policy":
            assert fixed["topic"] in topics and fixed.get("section") in {
                None,
                *HEADINGS[fixed["topic"]],
            }, fixed
        else:
            assert (
                not fixed or set(fixed) == {"sort"} and intent in ("search", "recommend", "gift")
            ), (intent, fixed)


def test_every_section_of_every_policy_is_asked_about():
    asked = {
        (fixed["topic"], fixed.get("section"))
        for intent, fixed in fixed_entries()
        if intent == "policy"
    }
    assert not {(topic, heading) for topic in HEADINGS for heading in HEADINGS[topic]} - asked


def slots(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


def test_wordings_hold_the_slots_that_their_intent_fills():
    for intent, wordings in WORDINGS.items():
        for wording in wordings:
            found = slots(wording.text)
            assert found <= Slots and "{" not in re.sub(r"\{\w+\}", "", wording.text), wording.text
            assert "reason" not in found or intent in ("return", "exchange", "complaint"), (
                wording.text
            )
            if intent in ("facts", "price", "stock", "warranty"):
                assert found & {"product", "product_id"}, (intent, wording.text)
            if intent == "compare":
                assert "product_2" in found and found & {"product", "product_id"}, wording.text
            if intent in ("search", "recommend", "gift"):
                assert found & {"category", "categories", "a_category", "department", "brand"}, (
                    intent,
                    wording.text,
                )


def test_orders_are_asked_about_with_their_number_and_mail_and_without():
    for intent in ORDER_INTENTS:
        for split in SPLITS:
            kinds = {
                frozenset(slots(wording.text) & {"order", "email"})
                for wording in WORDINGS[intent]
                if wording.split == split
            }
            assert {frozenset(), frozenset({"order"}), frozenset({"order", "email"})} <= kinds, (
                intent,
                split,
            )


def test_plans_point_back_only_at_what_was_shown():
    """The shop's search returns three products."""
    for plan in PLANS:
        results = compared = subject = False
        for turn in plan.turns:
            for reference in filter(None, (turn.product, turn.product_2)):
                if reference.startswith("result"):
                    assert results and int(reference[-1]) <= 3, f"{plan.id}: {turn.text}"
                else:
                    assert subject if reference == "same" else compared, f"{plan.id}: {turn.text}"
            results |= turn.intent in ("search", "recommend", "gift")
            compared |= turn.intent == "compare"
            subject |= turn.product is not None or "{product}" in turn.text


# What stands in an order follows from its state


def working_days(start: date, end: date) -> int:
    """Days from Monday to Friday after `start` up to `end`."""
    return sum(
        (start + timedelta(days=number)).weekday() < 5
        for number in range(1, (end - start).days + 1)
    )


def test_orders_add_up():
    for order in ORDERS:
        goods = round(sum(line.quantity * line.price for line in order.items), 2)
        assert order.shipping == (
            0 if goods >= SHOP.rules.free_shipping_from else SHOP.rules.shipping_fee
        ), order.order
        assert order.total == pytest.approx(goods + order.shipping), order.order
        assert len({line.product for line in order.items}) == len(order.items), order.order
        for line in order.items:
            assert line.price == PRODUCTS[line.product].price, order.order
            assert line.variant in [variant.name for variant in PRODUCTS[line.product].variants], (
                order.order
            )


def test_the_dates_of_an_order_fit_its_state():
    for order in ORDERS:
        sent = order.state in ("shipped", "delayed", "delivered", "partly_returned")
        assert order.placed <= SHOP.today, order.order
        assert (
            (order.carrier is not None)
            == (order.tracking is not None)
            == (order.expected is not None)
            == sent
        ), order.order
        assert (order.delivered is not None) == (order.state in SHOP.rules.return_states), (
            order.order
        )
        if order.state in ("placed", "packed"):
            assert working_days(order.placed, SHOP.today) <= 2, (
                order.order
            )  # packed the day they come, or the next
        if sent:
            island = CUSTOMERS[order.customer].address.postcode.startswith(ISLAND)
            low, high = (
                (5, 30) if order.state == "delayed" else (4, 8) if island else (2, 4)
            )  # a day more after the cut-off
            assert low <= working_days(order.placed, order.expected) <= high, order.order
        if order.state in ("shipped", "delayed"):
            assert order.expected >= SHOP.today, order.order
        if order.delivered:
            assert order.placed < order.delivered <= SHOP.today, order.order


def test_something_of_every_order_is_kept_and_what_came_back_was_allowed_to():
    for order in ORDERS:
        assert bool(order.returned) == (order.state == "partly_returned"), order.order
        assert {line.product for line in order.items} > set(order.returned), order.order
        assert not {PRODUCTS[product].category for product in order.returned} & set(
            SHOP.rules.non_returnable_categories
        ), order.order


def test_orders_lie_on_both_sides_of_the_last_day_for_a_return():
    ages = Counter(
        (SHOP.today - order.delivered).days for order in ORDERS if order.state == "delivered"
    )
    last = SHOP.rules.return_days
    assert ages[last] and ages[last + 1]
    assert (
        sum(ages[age] for age in ages if age <= last)
        >= 20
        <= sum(ages[age] for age in ages if age > last)
    )


# Policies say what the tools do


def spoken(states: list[str]) -> str:
    return " or ".join(state.replace("_", " ") for state in states)


@pytest.mark.parametrize(
    ("topic", "section", "phrase"),
    [
        ("returns", "1", f"up to {SHOP.rules.return_days} days"),
        ("returns", "1", spoken(SHOP.rules.return_states)),
        ("exchanges", "2", f"within {SHOP.rules.exchange_days} days"),
        ("exchanges", "2", spoken(SHOP.rules.exchange_states)),
        ("cancellations", "1", spoken(SHOP.rules.cancel_states)),
        ("shipping", "5", spoken(SHOP.rules.address_states)),
        ("shipping", "2", f"${SHOP.rules.shipping_fee:.2f}"),
        ("shipping", "2", f"${SHOP.rules.free_shipping_from:g} or more"),
        *[
            (topic, section, plural)
            for topic, section in (("returns", "3"), ("exchanges", "4"))
            for plural in (
                category.plural
                for department in DEPARTMENTS.values()
                for name, category in department.categories.items()
                if name in SHOP.rules.non_returnable_categories
            )
        ],
    ],
)
def test_policies_state_the_rules(topic, section, phrase):
    assert phrase in POLICIES[topic, section].text.casefold()


@pytest.mark.parametrize(
    ("fact", "topic", "section"),
    [
        ("email", "complaints", "1"),
        ("phone", "complaints", "1"),
        ("phone_hours", "complaints", "1"),
        ("counter_address", "collection", "1"),
        ("counter_hours", "collection", "1"),
        ("delivery_carrow", "shipping", "3"),
        ("delivery_ostrand", "shipping", "3"),
        ("ferry_days", "shipping", "3"),
        ("dispatch_cutoff", "shipping", "3"),
        ("shipping_cost", "shipping", "2"),
        ("collection", "collection", "4"),
        ("refund_time", "returns", "5"),
        ("refund_time", "cancellations", "3"),
        ("complaint_reply", "complaints", "2"),
    ],
)
def test_policies_state_the_facts(fact, topic, section):
    told = POLICIES[topic, section].text
    for part in re.findall(r"[\w.]+@[\w.]+\w|[\d$][\d$.:-]*\d|\d|[A-Z]\w+day", SHOP.facts[fact]):
        assert part in told, f"{topic} {section} does not say {part}"


def test_every_money_amount_of_delivery_is_the_same_wherever_it_stands():
    for name, texts in prose().items():
        for text in texts:
            for amount in re.findall(r"[Ff]ree (?:delivery )?from \$(\d+(?:\.\d+)?)", text):
                assert float(amount) == SHOP.rules.free_shipping_from, (name, text)


# The customer's yes and the assistant's question

WRITES = {
    "cancel": "cancel_order",
    "return": "return_items",
    "exchange": "exchange_item",
    "address": "change_address",
}


def test_a_yes_in_a_plan_is_understood_as_one_and_a_no_never():
    for plan in PLANS:
        action = None
        for before, turn in pairwise(plan.turns):
            action = WRITES.get(before.intent, action)
            assert turn.intent not in ("confirm", "refuse") or before.intent in (
                *WRITES,
                "answer",
            ), f"{plan.id}: {turn.text}"
            assert turn.intent != "confirm" or is_affirmation(turn.text, action), (
                f"{plan.id}: {turn.text}"
            )
            assert turn.intent != "refuse" or not is_affirmation(turn.text, action), (
                f"{plan.id}: {turn.text}"
            )


@pytest.mark.parametrize(("intent", "action"), WRITES.items())
def test_every_question_before_a_change_restates_it(intent, action):
    address = "14 Quay Row, Millhythe 40217"
    for reply in (reply for reply in REPLIES if reply.act == f"{intent}_confirm"):
        said = reply.text
        for slot, value in {
            "order": "TB-48213",
            "total": "49.90",
            "product": "Velm Heron desk lamp",
            "variant": "black",
            "address": address,
        }.items():
            said = said.replace(f"{{{slot}}}", value)
        products = (
            [("Velm Heron desk lamp", ["brass"])]
            if action in ("return_items", "exchange_item")
            else []
        )
        detail = {"exchange_item": "black", "change_address": address}.get(action, "")
        assert requests_confirmation(said, action, "TB-48213", "49.90", products, detail), (
            reply.text
        )


# Nothing is stamped


@cache
def names() -> re.Pattern:
    return names_of(PRODUCTS.values(), CUSTOMERS.values())


@pytest.mark.parametrize("kind", prose())
def test_sentences_are_written_and_not_stamped(kind):
    assert unique_share(prose()[kind], names()) >= 0.95


def test_stamped_sentences_would_be_found():
    stamped = [
        f"The {product.name} costs ${product.price}. Buy it in {ORDERS[0].items[0].variant}."
        for product in PRODUCTS.values()
    ]
    assert unique_share(stamped, names()) < 0.05


def test_no_run_of_eight_words_stands_in_more_than_two_places():
    assert not {" ".join(run): where for run, where in runs(prose(), 8).items() if len(where) > 2}


# What is held out stays held out


def names_held_out(text: str) -> list[str]:
    return [
        product.id
        for product in HELD_OUT
        if short(product).casefold() in text.casefold() or product.id in text
    ]


def test_no_page_and_no_dialogue_in_training_names_a_product_that_is_held_out():
    pages = {
        str(file.relative_to(ROOT)): file.read_text()
        for file in (WEB / "sites").rglob("*")
        if file.is_file()
    }
    said = {
        text: text
        for kind in ("wordings", "plans", "replies", "reasons", "policies", "tone")
        for text in prose()[kind]
    }
    assert pages and not {
        place: found for place, text in (pages | said).items() if (found := names_held_out(text))
    }
    others = {review.text for review in REVIEWS if not PRODUCTS[review.product].held_out}
    others |= {product.description for product in PRODUCTS.values() if not product.held_out}
    assert not {text: found for text in others if (found := names_held_out(text))}
    assert names_held_out(f"is the {HELD_OUT[0].name} any good?") == [HELD_OUT[0].id]


def test_wordings_of_validation_and_test_are_unlike_those_of_training():
    bags = [
        (intent, wording, frozenset(tokenize_words(wording.text)))
        for intent in INTENTS
        for wording in WORDINGS[intent]
    ]
    trained = [(wording.text, bag) for _, wording, bag in bags if wording.split == "train"]
    near = [
        (intent, wording.text, other)
        for intent, wording, bag in bags
        if wording.split != "train"
        for other, known in trained
        if len(bag & known) >= 0.6 * len(bag | known)
    ]
    assert not near


def test_nobody_is_measured_by_a_yes_or_no_that_was_practised():
    practised = {
        " ".join(tokenize_words(line.text)) for line in FOLLOW_UPS if line.split == "train"
    }
    measured = [turn.text for plan in PLANS if plan.split != "train" for turn in plan.turns]
    assert not [text for text in measured if " ".join(tokenize_words(text)) in practised]


def test_no_two_wordings_are_equal():
    texts = Counter(
        " ".join(tokenize_words(wording.text)) for intent in INTENTS for wording in WORDINGS[intent]
    )
    assert not [text for text, times in texts.items() if times > 1]


@pytest.mark.parametrize("kind", ["plans", "reasons", "situations", "queries"])
def test_no_text_stands_in_two_splits(kind):
    texts = {
        "plans": ((plan.split, turn.text) for plan in PLANS for turn in plan.turns),
        "reasons": ((reason.split, reason.text) for reason in REASONS),
        "situations": ((line["split"], line["situation"]) for line in SITUATIONS),
        "queries": ((split, query["text"]) for split in SPLITS for query in ASKED[split]),
    }[kind]
    splits = defaultdict(set)
    for split, text in texts:
        splits[" ".join(tokenize_words(text))].add(split)
    assert not [text for text, found in splits.items() if len(found) > 1]


# Tone


def test_every_situation_has_five_different_replies():
    assert len({line["id"] for line in SITUATIONS}) == len(SITUATIONS)
    for line in SITUATIONS:
        assert set(line) - {"asks"} == {"id", "split", "situation", *TONES}
        assert f'"{line.get("asks", "")}' in f'"{line["situation"]}'
        assert len({line[tone] for tone in TONES}) == len(TONES) and all(
            line[tone].strip() for tone in TONES
        )
        assert len(line["cold"].split()) < len(line["good"].split()) < len(line["wordy"].split()), (
            line["id"]
        )


# Nothing is real


def test_no_real_brand_person_or_town_occurs():
    assert not {
        f"{file.relative_to(ROOT)}: {name}"
        for file in files()
        for name in real_names(file.read_text())
    }
    assert real_names("a pair of AirPods from Bristol") == ["AirPods", "Bristol"]


def test_domains_are_examples_and_phones_are_set_aside_for_fiction():
    for file in (file for file in files() if file.name != "README.md"):
        text = file.read_text()
        assert not real_domains(text), file
        assert not [
            found
            for found in re.findall(r"(?<![\w-])\+?(?:\d{3,5}[ -])?\d{3}[ -]\d{4}(?![\w-])", text)
            if not re.fullmatch(r"555-01\d\d", found)
        ], file
    assert all(re.fullmatch(r"555-01\d\d", customer.phone) for customer in CUSTOMERS.values())
    assert real_domains("shop at goods.co.uk or write to a@b.c.org") == ["goods.co.uk", "b.c.org"]


def test_the_data_is_plain_utf_8_with_no_leftovers():
    for file in files():
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"\bTODO\b|\bFIXME\b|\ufffd|\u2014", text, re.IGNORECASE), file


# Another shop, of another trade

OTHER = ROOT / "tests/second_shop"


def test_another_shop_is_read_from_its_folder_alone():
    store = open_store(OTHER)
    assert [row["name"] for row in store.search(category="violins")] == [
        "Ashgrove Fiddler violin",
        "Corbel Novice violin",
    ]
    assert store.topics == ["delivery", "returns", "warranty"]
    shops = ShopSessions(OTHER)
    assert all(shops.held_out[split] for split in ("validation", "test")) and all(
        shops.attacks.values()
    )
    assert not set(PRODUCTS) & {row["id"] for row in store.all("SELECT id FROM products")}


def test_another_shop_follows_rules_of_its_own():
    """Orders are cancelled here only while placed, kept after 14 days, and what is played with the mouth stays sold."""
    shown = {
        number: Session(open_store(OTHER)).call("get_order", {"order": number, "email": email})
        for number, email in (
            ("HR-2011", "odalys@brandreth.example"),
            ("HR-2008", "k.holm@example.org"),
            ("HR-1874", "odalys@brandreth.example"),
            ("HR-1960", "band@tiller.example"),
        )
    }
    assert shown["HR-2011"]["may"] == ["cancel", "change address"]
    assert shown["HR-2008"]["may"] == ["change address"]
    assert shown["HR-1874"]["may"] == [] and shown["HR-1874"]["no_return"] == "the 14 days are over"
    assert [item.get("no_return") for item in shown["HR-1960"]["items"]] == [
        "tin whistles cannot come back",
        None,
    ]


def test_the_orders_of_another_shop_add_up():
    shop = read_one(OTHER / "shop.json", Shop)
    for order in rows(OTHER / "orders.jsonl", Order):
        goods = sum(line.quantity * line.price for line in order.items)
        assert order.total == pytest.approx(
            goods + (0 if goods >= shop.rules.free_shipping_from else shop.rules.shipping_fee)
        )
