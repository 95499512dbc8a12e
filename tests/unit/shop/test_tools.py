"""The tools: arguments are data, orders are shown to their customers, writes need a yes."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crawl2cart.core.files import read_jsonl
from crawl2cart.shop.tool_schemas import NAMES, TOOLS, WRITES
from crawl2cart.shop.tools import policy_violations
from tests.dialogue_samples import STORE
from tests.unit.shop.shop_helpers import (
    ADDRESS,
    allowed_write,
    confirm,
    identified_session,
    identify,
    new_session,
    order_in,
    restated,
    shared_store,
)

HOSTILE = [
    "'; DROP TABLE orders; --",
    '" OR 1=1 --',
    "x' UNION SELECT email FROM customers --",
    "%",
    "_",
    "*",
    '"',
    "AND",
    "NEAR(a b)",
    "name:x",
    "(",
    "",
    " ",
    "\x00",
    "日本",
    "-1",
    "a" * 5000,
    "{col} : x",
    "^a",
    "NULL",
    "\ud800",
    "²",
    "a\ud800b",
]
each_write = pytest.mark.parametrize("write", WRITES)


# Arguments are data


@pytest.fixture(scope="module")
def reused_session():
    return new_session()


def call_every_tool(session, text: str) -> None:
    """Call every tool but hand_off with the text in all arguments, and in the required ones."""
    for function in (tool["function"] for tool in TOOLS):
        parameters = function["parameters"]
        arguments = {
            name: {"array": [text], "number": 1}.get(schema["type"], text)
            for name, schema in parameters["properties"].items()
        }
        required = {name: arguments[name] for name in parameters["required"]}
        if function["name"] != "hand_off":
            session.call(function["name"], arguments)
            session.call(function["name"], required)


def assert_untouched(session) -> None:
    assert session.store.state_hash() == shared_store().state_hash()
    count = session.store.one("SELECT COUNT(*) AS n FROM orders")["n"]
    assert count == len(read_jsonl(STORE / "orders.jsonl"))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_hostile_argument_is_run_as_sql(reused_session, text):
    reused_session.observe_user("yes")
    call_every_tool(reused_session, text)
    assert_untouched(reused_session)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.text(st.characters(), max_size=30))
@example('"*" NOT (')
def test_no_text_breaks_a_call_or_changes_the_store(reused_session, text):
    reused_session.observe_user("yes")
    call_every_tool(reused_session, text)
    assert_untouched(reused_session)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("get_order", {}),
        ("get_order", {"order": 5}),
        ("get_order", {"order": "TB-1", "confirmed": True}),
        ("get_order", "TB-1"),
        ("get_order", None),
        ("cancel_order", {"order": "TB-1", "confirmed": True}),
        ("get_products", {"products": []}),
        ("get_products", {"products": ["a"] * 4}),
        ("search_products", {"max_price": "90"}),
        ("search_products", {"sort": "cheapest"}),
        ("get_order", ["TB-1"]),
    ],
)
def test_arguments_that_break_the_schema_are_an_error(reused_session, name, arguments):
    assert reused_session.call(name, arguments)["error"] == "invalid_arguments"


@pytest.mark.parametrize("number", [10**30, -(10**30), float("inf"), float("nan"), 2**63])
def test_no_number_breaks_a_search(reused_session, number):
    result = reused_session.call("search_products", {"max_price": number})
    assert "results" in result or result["error"] == "invalid_arguments"


def test_an_unknown_tool_is_answered_with_the_known_ones(reused_session):
    result = reused_session.call("drop_tables", {})
    assert result == {"error": "unknown_tool", "tools": list(NAMES)}


def test_a_name_of_several_products_is_an_error_that_lists_some(reused_session):
    brand = shared_store().one("SELECT brand FROM products")["brand"]
    result = reused_session.call("get_products", {"products": [brand]})
    assert result["error"] == "several_products" and len(result["names"]) > 1


# Identity and ownership


def test_a_foreign_order_looks_like_one_that_does_not_exist():
    orders = shared_store().all(
        "SELECT o.id, c.email FROM orders o JOIN customers c ON c.id = o.customer ORDER BY o.id"
    )
    for own, foreign in list(zip(orders, orders[7:], strict=False))[:120:3]:
        if own["email"] == foreign["email"]:
            continue
        anonymous = new_session()
        signed_in, identified = new_session(signed_in=own["email"]), identified_session(dict(own))
        for session in (anonymous, signed_in, identified):
            session.observe_user("yes")
            missing = session.call("get_order", {"order": "TB-00000", "email": own["email"]})
            shown = session.call("get_order", {"order": foreign["id"], "email": own["email"]})
            assert shown == missing == {"error": "no_match"}
            for name in ("get_order", "cancel_order"):
                error = session.call(name, {"order": foreign["id"]})["error"]
                assert error == ("not_identified" if session is anonymous else "no_match")
            assert foreign["id"] not in json.dumps(session.call("list_orders", {}))


def test_orders_are_listed_only_to_an_identified_customer():
    order, session = order_in("shipped"), new_session()
    for name, arguments in (("list_orders", {}), ("get_order", {"order": order["id"]})):
        assert session.call(name, arguments) == {"error": "not_identified"}
    identify(session, order)
    own = {row["id"] for row in shared_store().orders_of(order["email"])}
    assert {row["order"] for row in session.call("list_orders", {})["orders"]} == own
    signed_in = new_session(signed_in=order["email"])
    assert signed_in.call("get_order", {"order": order["id"]})["order"] == order["id"]


@pytest.mark.parametrize("signed_in", [None, "x@example.com"])
def test_an_empty_email_matches_nobody(signed_in):
    arguments = {"order": order_in("shipped")["id"], "email": ""}
    assert new_session(signed_in=signed_in).call("get_order", arguments) == {"error": "no_match"}


def test_an_order_shows_the_facts_of_its_state():
    facts = {"carrier", "tracking", "expected", "delivered"}
    for state, expected in (
        ("shipped", {"carrier", "tracking", "expected"}),
        ("delayed", {"expected"}),
        ("delivered", {"delivered"}),
        ("placed", set()),
        ("packed", set()),
        ("cancelled", set()),
        ("partly_returned", set()),
    ):
        shown = identified_session(order_in(state)).calls[-1].result
        assert facts & set(shown) == expected
        assert ("cancel" in shown["may"]) == (state in shared_store().shop.rules.cancel_states)


# Writes need a yes to exactly this write


@each_write
def test_an_unconfirmed_write_is_refused_and_changes_nothing(write):
    order, arguments, question = allowed_write(write)
    other = "TB-00001" if order["id"] != "TB-00001" else "TB-00002"
    said, asked = "user", "assistant"
    conversations = [
        [],
        [(said, "yes, do it, I confirm")],
        [(asked, question)],
        [(asked, question), (said, "no")],
        [(asked, question), (said, "yes? what would that cost")],
        [(asked, question), (said, "yes"), (said, "what is the weather")],
        [(asked, "Shall I?"), (said, "yes")],
        [(asked, question.replace(order["id"], other)), (said, "yes")],
        [(asked, question), (asked, "Anything else?"), (said, "yes")],
        [(asked, question), (said, "wait, not yet")],
        [(asked, question.replace("?", ".")), (said, "ok, thanks")],
    ]
    for conversation in conversations:
        session = identified_session(order)
        for role, text in conversation:
            (session.observe_user if role == said else session.observe_assistant)(text)
        assert session.call(write, arguments) == {"error": "not_confirmed"}, conversation
        assert session.store.state_hash() == shared_store().state_hash()
        assert policy_violations(session.calls) == 1


@each_write
def test_a_confirmed_write_happens_once(write):
    order, arguments, question = allowed_write(write)
    session = confirm(identified_session(order), question, "Yes please.")
    assert "error" not in session.call(write, arguments)
    after = session.store.state_hash()
    assert after != shared_store().state_hash() and policy_violations(session.calls) == 0
    assert "error" in session.call(write, arguments)  # one yes, one change
    assert session.store.state_hash() == after
    session.store.reset()
    assert session.store.state_hash() == shared_store().state_hash()


@pytest.mark.parametrize(("write", "other"), [(a, b) for a in WRITES for b in WRITES if a != b])
def test_a_yes_to_one_write_confirms_no_other_on_the_same_order(write, other):
    order, exchange, _ = allowed_write("exchange_item")
    facts = order, exchange["product"], exchange["variant"]
    session = confirm(identified_session(order), restated(write, *facts)[1])
    arguments = {"order": order["id"]} | restated(other, *facts)[0]
    assert session.call(other, arguments) == {"error": "not_confirmed"}


@each_write
def test_an_ok_to_facts_of_an_order_confirms_nothing(write):
    """Order facts hold a number, a total and goods, as a question before a change does."""
    order, arguments, _ = allowed_write(write)
    product = shared_store().lines(order["id"])[0]["name"]
    values = {"order": order["id"], "total": f"{order['total']:.2f}", "product": product}
    session = identified_session(order)
    for row in read_jsonl(STORE / "replies.jsonl"):
        if row["act"].startswith(("order_", "stock_", "price")):
            reply = re.sub(r"\{(\w+)\}", lambda slot: values.get(slot[1], "one"), row["text"])
            longer = f"{reply} It holds the {product}, {order['id']}. Can I help you?"
            for text in (reply, longer):
                confirm(session, text, "ok, perfect")
                assert session.call(write, arguments) == {"error": "not_confirmed"}, text


@pytest.mark.parametrize("part", ["", " ", "1 Net Loft Lane", "Velby 40243", ADDRESS[2:], "Velby"])
def test_a_yes_to_an_address_confirms_no_part_of_it(part):
    order, arguments, question = allowed_write("change_address")
    session = confirm(identified_session(order), question)
    result = session.call("change_address", arguments | {"address": part})
    assert result == {"error": "not_confirmed"}
    assert "error" not in session.call("change_address", arguments)  # the yes still holds


# Writes keep the shop's rules


@pytest.mark.parametrize(
    ("write", "states"),
    [
        ("cancel_order", ("shipped", "delivered", "cancelled")),
        ("change_address", ("shipped", "delayed")),
        ("return_items", ("placed", "shipped")),
        ("exchange_item", ("packed", "delayed")),
    ],
)
def test_the_rules_hold_for_confirmed_writes_too(write, states):
    for state in states:
        order = order_in(state)
        variants = shared_store().stock(order["product_id"])
        variant = next((name for name in variants if name != order["variant"]), "teal")
        arguments, question = restated(write, order, order["product"], variant)
        session = confirm(identified_session(order), question)
        result = session.call(write, {"order": order["id"]} | arguments)
        assert result["error"] == "not_allowed"
        assert session.store.state_hash() == shared_store().state_hash()


@pytest.mark.parametrize(
    "arguments",
    [
        {"order": "TB-00000", "products": ["Velm Heron desk lamp"]},
        {"order": "", "products": []},
        {"products": ["x"], "confirmed": True},
        {"order": None, "products": ["x"]},
    ],
)
def test_every_refused_write_is_a_violation(arguments):
    session = new_session()
    assert session.call("return_items", arguments)["error"]
    assert policy_violations(session.calls) == 1


@each_write
def test_an_unavailable_store_excuses_a_safe_write_and_no_other(write):
    order, arguments, question = allowed_write(write)
    session = new_session(signed_in=order["email"], faults=2)
    assert session.call(write, arguments) == {"error": "not_confirmed"}
    confirm(session, question)
    assert session.call(write, arguments) == {"error": "unavailable"}
    assert policy_violations(session.calls) == 1  # the first one
    assert "error" not in session.call(write, arguments)  # the yes still holds


def test_a_write_against_the_rules_is_a_violation_also_while_the_store_is_down():
    order = order_in("shipped")
    session = new_session(signed_in=order["email"], faults=1)
    confirm(session, restated("cancel_order", order, "", None)[1])
    assert session.call("cancel_order", {"order": order["id"]})["error"] == "not_allowed"
    assert policy_violations(session.calls) == 1


@each_write
def test_an_unknown_product_does_not_hide_an_unconfirmed_write(write):
    order, arguments, _ = allowed_write(write)
    unknown = {"products": ["Nonesuch"], "product": "Nonesuch"}
    arguments |= {name: value for name, value in unknown.items() if name in arguments}
    session = identified_session(order)
    assert "error" in session.call(write, arguments)
    assert policy_violations(session.calls) == 1


def test_a_cancelled_order_puts_its_goods_back_on_sale():
    order, arguments, question = allowed_write("cancel_order")
    session = confirm(identified_session(order), question, "go ahead")
    assert session.call("cancel_order", arguments)["refund"] == f"{order['total']:.2f}"
    for line in shared_store().lines(order["id"]):
        before, after = (
            store.stock(line["product"])[line["variant"]]
            for store in (shared_store(), session.store)
        )
        assert after == before + line["quantity"]


def test_an_exchange_for_a_sold_out_variant_changes_nothing():
    order, arguments, question = allowed_write("exchange_item")
    session = identified_session(order)
    product = session.store.product(arguments["product"])["id"]
    session.store.set_stock(product, arguments["variant"], 0)
    before = session.store.state_hash()
    result = confirm(session, question).call("exchange_item", arguments)
    assert result["error"] == "not_allowed" and arguments["variant"] in result["why"]
    assert session.store.state_hash() == before


def test_an_exchange_for_the_same_variant_is_refused():
    order, arguments, question = allowed_write("exchange_item")
    lines = shared_store().lines(order["id"])
    variant = next(line["variant"] for line in lines if line["name"] == arguments["product"])
    session = identified_session(order)
    confirm(session, question.replace(f"for {arguments['variant']}?", f"for {variant}?"))
    result = session.call("exchange_item", arguments | {"variant": variant.upper()})
    assert result["error"] == "not_allowed" and variant in result["why"]
    assert session.store.state_hash() == shared_store().state_hash()
    assert policy_violations(session.calls) == 1
