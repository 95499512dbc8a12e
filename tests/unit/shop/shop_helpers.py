"""Orders, writes and sessions for the tests of the shop's tools and of the agent."""

from functools import cache

from crawl2cart.shop.db import ShopDB, open_store
from crawl2cart.shop.tools import Session
from tests.dialogue_samples import STORE

ADDRESS = "1 Net Loft Lane, Velby 40243"


@cache
def shared_store() -> ShopDB:
    """Return the shop's store, opened once. Do not change it: take a copy."""
    return open_store(STORE)


def new_session(**settings: object) -> Session:
    return Session(shared_store().copy(), **settings)


def order_in(*states: str) -> dict:
    """Return an order in one of these states, with its first line's product and variant."""
    store = shared_store()
    rows = store.all("SELECT id, state FROM orders ORDER BY id")
    number = next(row["id"] for row in rows if row["state"] in states)
    line = store.lines(number)[0]
    return dict(store.order(number)) | {
        "product": line["name"],
        "product_id": line["product"],
        "variant": line["variant"],
    }


def identify(session: Session, order: dict) -> Session:
    result = session.call("get_order", {"order": order["id"], "email": order["email"]})
    assert "error" not in result
    return session


def identified_session(order: dict) -> Session:
    return identify(new_session(), order)


def confirm(session: Session, question: str, answer: str = "yes") -> Session:
    """Let the assistant ask and the customer answer."""
    session.observe_assistant(question)
    session.observe_user(answer)
    return session


def allowed_write(write: str) -> tuple[dict, dict, str]:
    """Return an order, arguments of an allowed write, and a question that restates it."""
    store = shared_store()
    changes_order = write in ("cancel_order", "change_address")
    states = ("placed", "packed") if changes_order else ("delivered", "delivered")
    query = "SELECT id FROM orders WHERE state IN (?, ?) ORDER BY id"
    for row in store.all(query, *states):
        order = store.order(row["id"])
        line = store.lines(order["id"])[0]
        variant = available_variant(line)
        blocked = not changes_order and store.return_blocked_reason(order, line)
        if not blocked and (variant or write != "exchange_item"):
            arguments, question = restated(write, dict(order), line["name"], variant)
            return dict(order), {"order": order["id"]} | arguments, question
    raise AssertionError(f"the shop has no order for {write}")


def available_variant(line) -> str | None:
    """Return another variant of the line's product of which enough are in stock."""
    stock = shared_store().stock(line["product"])
    names = [name for name, count in stock.items() if count >= line["quantity"]]
    return next((name for name in names if name != line["variant"]), None)


def restated(write: str, order: dict, product: str, variant: str | None) -> tuple[dict, str]:
    """Return the arguments of a write beside the order, and a question that restates it."""
    number, total = order["id"], f"{order['total']:.2f}"
    return {
        "cancel_order": ({}, f"Cancel {number} and refund ${total}?"),
        "return_items": ({"products": [product]}, f"Return the {product} from {number}?"),
        "exchange_item": (
            {"product": product, "variant": variant},
            f"Exchange the {product} from {number} for {variant}?",
        ),
        "change_address": ({"address": ADDRESS}, f"Send {number} to {ADDRESS}?"),
    }[write]
