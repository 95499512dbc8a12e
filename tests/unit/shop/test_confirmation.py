"""What counts as a yes to a change, and which replies ask for one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crawl2cart.core.files import read_jsonl
from crawl2cart.dialogues.reply_sampler import fill
from crawl2cart.dialogues.sft_examples import calls_of
from crawl2cart.dialogues.validate import CONFIRMS
from crawl2cart.shop.confirmation import (
    contains_address,
    contains_phrase,
    is_affirmation,
    requests_confirmation,
)
from crawl2cart.shop.tool_schemas import WRITES
from tests.dialogue_samples import STORE, all_samples

LAMP = ("Velm Heron desk lamp", ["black", "white", "matte black"])
YES = [
    "yes",
    "Yes.",
    "ok do it",
    "sure, go ahead",
    "yep",
    "that's right",
    "please do",
    "I confirm",
    "fine by me",
    "No problem, yes",
    "correct!",
    "y",
]
NO_PLAIN_YES = [
    "no",
    "No thanks",
    "don't",
    "yes but not now",
    "wait",
    "what would I get back?",
    "hm, let me think",
    "ok, on second thoughts no",
    "I'd rather keep it",
    "is that right?",
    "the weather is nice",
    "",
    "maybe",
    "never mind",
    "yes, actually no",
    "keep everything, please",
    "abort, please",
    "I want it as it was, please",
    "cancel that request, please",
    "please show me some kettles",
    "good morning",
    "ok, show me some kettles",
    "it's ok, thanks",
    "I'm fine, thanks",
    "yes, but in white",
    "yes, when it arrives",
    "is it right",
    "yes, 不要",
]


# The customer's turn


@pytest.mark.parametrize("text", YES)
def test_a_yes_is_a_yes(text):
    assert is_affirmation(text)


@pytest.mark.parametrize("text", NO_PLAIN_YES)
def test_what_is_no_plain_yes_is_none(text):
    assert not any(is_affirmation(text, write) for write in (None, *WRITES))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.sampled_from(YES),
    st.sampled_from(["but", "if", "unless", "not", "when", "zork", "white", "?", "tomorrow"]),
    st.sampled_from([None, *WRITES]),
)
def test_an_unknown_word_or_a_question_mark_turns_a_yes_into_none(text, word, write):
    assert not is_affirmation(f"{text} {word}", write)
    assert not is_affirmation(f"{word} {text}", write)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.sampled_from(YES), st.sampled_from(["upper", "lower", "title"]), st.text(" \t\n", max_size=3)
)
def test_case_and_spaces_do_not_matter(text, case, spaces):
    assert is_affirmation(spaces + getattr(text, case)() + spaces)


def test_no_first_turn_of_a_customer_is_a_yes_to_any_change():
    values = {
        "order": "TB-48213",
        "email": "a.b@example.com",
        "product": "Velm Heron desk lamp",
        "variant": "black",
        "min_price": "20",
        "max_price": "90",
        "address": "1 Net Loft Lane, Velby 40243",
    }
    slots = "product_2 product_3 product_id category categories a_category department brand"
    values |= dict.fromkeys(f"{slots} variant_2 attribute reason".split(), "Osk Plumb kettle")
    for file in sorted((STORE / "wordings").glob("*.jsonl")):
        for row in read_jsonl(file):
            text = fill(row["text"], **values)
            assert not any(is_affirmation(text, write) for write in WRITES), text


def test_every_confirmation_that_ships_is_a_yes_and_no_refusal_is():
    for row in read_jsonl(STORE / "follow_ups.jsonl"):
        if row["intent"] in ("confirm", "refuse"):
            answers = {is_affirmation(row["text"], write) for write in WRITES}
            assert answers == {row["intent"] == "confirm"}, row["text"]


def test_a_yes_may_repeat_what_was_restated_and_nothing_else():
    facts = ("TB-48213", "Velm Heron desk lamp", "black")
    text = "Yes, exchange the Velm Heron desk lamp from TB-48213 for black"
    assert is_affirmation(text, "exchange_item", facts)
    for text in (
        "Yes, exchange the lamp from TB-48214",
        "yes, for white",
        "yes, for matte black",
        "yes, cancel TB-482130",
    ):
        assert not is_affirmation(text, "exchange_item", facts)


def test_a_verb_is_a_yes_to_its_own_write_only():
    assert is_affirmation("swap it", "exchange_item")
    assert not is_affirmation("swap it", "cancel_order")
    assert not is_affirmation("cancel it", "return_items")


# The assistant's question


@pytest.mark.parametrize(
    ("text", "write", "products", "detail"),
    [
        ("Return the Velm Heron desk lamp, black, from TB-1?", "exchange_item", [LAMP], "black"),
        (
            "It is in stock in white. Return the Velm Heron desk lamp from TB-1?",
            "exchange_item",
            [LAMP],
            "white",
        ),
        (
            "You could have black, too. Exchange the Velm Heron desk lamp from TB-1 for white?",
            "exchange_item",
            [LAMP],
            "black",
        ),
        (
            "Exchange the Velm Heron desk lamp from TB-1 for matte black?",
            "exchange_item",
            [LAMP],
            "black",
        ),
        (
            "The Velm Heron desk lamp of TB-1 in black costs $40.00. Shall I go ahead?",
            "exchange_item",
            [LAMP],
            "black",
        ),
        ("I won't cancel TB-1 ($40.00). Shall I keep it as it is?", "cancel_order", [], ""),
        ("Cancel TB-2 ($50.00) and not TB-1 ($40.00)?", "cancel_order", [], ""),
        ("Cancel TB-2? TB-1 costs $40.00.", "cancel_order", [], ""),
        (
            "Cancelling is not possible. TB-1 costs $40.00. Would you like to change its address?",
            "cancel_order",
            [],
            "",
        ),
        ("Shall I cancel TB-1 ($40.00) or change its address?", "cancel_order", [], ""),
        ("Cancelling TB-1 refunds $40.00. Would you like to know when?", "cancel_order", [], ""),
        (
            "Keep the Osk Plumb kettle and return the Velm Heron desk lamp from TB-1?",
            "return_items",
            [("Osk Plumb kettle", [])],
            "",
        ),
        (
            "TB-1 goes to 1 Net Loft Lane, Velby 40243. Cancel it, $40.00?",
            "change_address",
            [],
            "1 Net Loft Lane, Velby 40243",
        ),
    ],
)
def test_a_question_about_another_change_asks_for_no_yes_to_this_one(text, write, products, detail):
    assert not requests_confirmation(text, write, "TB-1", "40.00", products, detail)


@pytest.mark.parametrize(
    ("text", "write", "products", "detail"),
    [
        (
            "Shall I cancel TB-1? You'd get $40.00 back. This can't be undone.",
            "cancel_order",
            [],
            "",
        ),
        (
            "Exchange the Velm Heron desk lamp from TB-1 for matte black?",
            "exchange_item",
            [LAMP],
            "matte black",
        ),
        (
            "Would you like me to return the Velm Heron desk lamp from TB-1?",
            "return_items",
            [LAMP],
            "",
        ),
        (
            "Send TB-1 to 4 Return Lane, Velby 40243?",
            "change_address",
            [],
            "4 Return Lane, Velby 40243",
        ),
    ],
)
def test_a_question_that_restates_the_change_asks_for_a_yes(text, write, products, detail):
    assert requests_confirmation(text, write, "TB-1", "40.00", products, detail)


@pytest.mark.parametrize("act", CONFIRMS)
def test_every_question_that_ships_asks_for_its_write_and_for_no_other(act):
    values = {
        "order": "TB-48213",
        "total": "49.90",
        "product": "Velm Heron desk lamp",
        "variant": "black",
        "address": "14 Quay Row, Millhythe 40217",
    }
    details = {"exchange_item": "black", "change_address": values["address"]}
    products = [(values["product"], ["brass"])]
    for row in read_jsonl(STORE / "replies.jsonl"):
        if row["act"] == act:
            text = fill(row["text"], **values)
            asked = [
                write
                for write in WRITES
                if requests_confirmation(
                    text, write, "TB-48213", "49.90", products, details.get(write, "")
                )
            ]
            assert asked == [CONFIRMS[act]], text


def test_every_recorded_write_was_confirmed():
    results = [
        message["content"]
        for dialogue in all_samples()
        for call, message in zip(dialogue["messages"], dialogue["messages"][1:], strict=False)
        if any(entry["name"] in WRITES for entry in calls_of([call]))
    ]
    assert len(results) > 20 and not [result for result in results if '"error"' in result]


# Phrases and addresses


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("the TB-1, please", "tb-1", True),
        ("TB-10", "TB-1", False),
        ("Velm   Heron\nlamp", "velm heron", True),
        ("Velms Heron", "Velm", False),
    ],
)
def test_a_phrase_is_found_as_whole_words(text, phrase, expected):
    assert contains_phrase(text, phrase) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("to 1 Row, Velby 40243?", True),
        ("to 11 Row, Velby 40243?", False),
        ("to Flat 2, 1 Row, Velby 40243?", False),
        ("to 1 Row, Velby 40243, Ostrand", False),
    ],
)
def test_an_address_is_not_cut_out_of_a_longer_one(text, expected):
    assert contains_address(text, "1 Row, Velby 40243") == expected
