"""The ten tools of the shopping agent, and the session in which a conversation uses them.

Anybody may read, but an order is shown only to its customer. A write needs an identified customer,
the shop's rules, and the customer's yes to the restated change. The session takes the yes from the
conversation, never from an argument. Results are JSON with the fields that a reply needs. Text in
them (reviews, policies) is data and no instruction.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

from crawl2cart.shop.confirmation import is_affirmation, requests_confirmation, short_name
from crawl2cart.shop.data_model import spoken_date
from crawl2cart.shop.db import NoSuchProduct, ShopDB
from crawl2cart.shop.tool_schemas import NAMES, VALIDATORS, WRITES


class Refusal(Exception):
    """A tool's error: a code, and what a reply may say about it."""

    def __init__(self, code: str, **details: object):
        super().__init__(code)
        self.result = {"error": code, **details}


@dataclass
class Call:
    """A call that was made, with its result."""

    name: str
    arguments: dict
    result: dict


@dataclass
class Session:
    """The tools in one conversation.

    signed_in: e-mail of a customer whom the site has identified. faults: how many of the first
    calls fail, as those of a remote store may. calls: all calls so far, malformed ones as well.
    """

    store: ShopDB
    signed_in: str | None = None
    faults: int = 0
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self):
        self.customer = self.signed_in
        self._last_reply = ""  # the assistant's, since the customer's last turn
        self._restated = ""  # the reply before the customer's last turn
        self._user_turn = ""

    def observe_assistant(self, reply: str) -> None:
        """Record a reply of the assistant."""
        self._last_reply = reply

    def observe_user(self, text: str) -> None:
        """Record a turn of the customer.

        A yes counts for what the reply just before it restated, and until the next turn.
        """
        self._restated, self._user_turn, self._last_reply = self._last_reply, text, ""

    def call(self, name: str, arguments: object) -> dict:
        """Run a tool and return its result, or `{"error": code, ...}`.

        Never raises, whatever a model sends.
        """
        try:
            result = self._run(name, arguments)
        except Refusal as refusal:
            result = refusal.result
        self.calls.append(Call(name, arguments if isinstance(arguments, dict) else {}, result))
        return result

    def record_malformed(self, name: str | None, reason: str) -> dict:
        """Record a call that cannot be parsed, and return what the model is told.

        name: the tool, as far as it can be read.
        """
        result = {"error": "malformed_call", "message": reason}
        self.calls.append(Call(name or "unknown", {}, result))
        return result

    def _run(self, name: str, arguments: object) -> dict:
        if name not in VALIDATORS:
            raise Refusal("unknown_tool", tools=list(NAMES))
        fault = next(iter(sorted(VALIDATORS[name].iter_errors(arguments), key=str)), None)
        if fault:
            raise Refusal("invalid_arguments", message=fault.message[:200])
        if not is_storable(arguments):
            raise Refusal(
                "invalid_arguments", message="a number is too large, or a text is not valid Unicode"
            )
        if name not in WRITES:
            self._require_store()
        function: Callable[..., dict] = getattr(self, name)
        return function(**arguments)

    # Reads

    def search_products(self, **conditions: str | float) -> dict:
        """Find the three best products that meet all conditions, by default the best rated."""
        return {
            "results": [
                {
                    "id": row["id"],
                    "name": row["name"],
                    "price": money(row["price"]),
                    "rating": row["rating"],
                }
                | ({} if row["stock"] else {"sold_out": True})
                for row in self.store.search(**conditions)
            ]
        }

    def get_products(self, products: list[str]) -> dict:
        """Look up one to three products by name or id; of a single one with the pinned review."""
        matches = [self._product(reference) for reference in products]
        entries = [
            {
                "name": row["name"],
                "price": money(row["price"]),
                "rating": row["rating"],
                "warranty_months": row["warranty_months"],
                "attributes": self.store.attributes(row["id"]),
                "stock": self.store.stock(row["id"]),
            }
            for row in matches
        ]
        review = self.store.review(matches[0]["id"]) if len(matches) == 1 else None
        return {"products": entries} | ({"review": review} if review else {})

    def list_orders(self) -> dict:
        """List the orders of the customer who is signed in or identified by `get_order`."""
        if not self.customer:
            raise Refusal("not_identified")
        return {
            "orders": [
                {
                    "order": row["id"],
                    "state": row["state"].replace("_", " "),
                    "placed": format_day(row["placed"]),
                    "total": money(row["total"]),
                }
                for row in self.store.orders_of(self.customer)
            ]
        }

    def get_order(self, order: str, email: str | None = None) -> dict:
        """Show an order's state and lines, and what the rules allow now (`may`).

        A number with the matching e-mail identifies the customer.
        """
        row = self._order(order, email)
        state, rules = row["state"], self.store.shop.rules
        lines = self.store.lines(row["id"])
        reasons = [self.store.return_blocked_reason(row, line) for line in lines]
        exchangeable = any(
            self.store.return_blocked_reason(row, line, exchange=True) is None for line in lines
        )
        may = [
            word
            for word, allowed in (
                ("cancel", state in rules.cancel_states),
                ("change address", state in rules.address_states),
                ("return", None in reasons),
                ("exchange", exchangeable),
            )
            if allowed
        ]
        common = reasons[0] if len(set(reasons)) == 1 else None
        items = [
            {"product": line["name"], "variant": line["variant"]}
            | ({"quantity": line["quantity"]} if line["quantity"] > 1 else {})
            | ({"no_return": reason} if reason != common else {})
            for line, reason in zip(lines, reasons, strict=True)
        ]
        shown = {
            "shipped": ("carrier", "tracking", "expected"),
            "delayed": ("expected",),
            "delivered": ("delivered",),
        }.get(state, ())
        facts = {
            name: row[name] if name in ("carrier", "tracking") else format_day(row[name])
            for name in shown
        }
        return {
            "order": row["id"],
            "state": state.replace("_", " "),
            **facts,
            "items": items,
            "total": money(row["total"]),
            "may": may,
        } | ({"no_return": common} if common else {})

    def get_policy(self, topic: str, section: str | None = None) -> dict:
        """Show a section of a policy; without its number, the headings of the topic."""
        sections = self.store.policy(topic)
        if not sections:
            raise Refusal("unknown_topic", topics=self.store.topics)
        if section is None:
            return {
                "topic": sections[0]["title"],
                "sections": {row["section"]: row["heading"] for row in sections},
            }
        for row in sections:
            if row["section"] == section.strip():
                return {
                    "topic": row["title"],
                    "section": row["section"],
                    "title": row["heading"],
                    "text": row["text"],
                }
        raise Refusal(
            "unknown_section", sections={row["section"]: row["heading"] for row in sections}
        )

    def hand_off(self, reason: str) -> dict:
        """Hand the conversation over to a person."""
        self.store.open_ticket(reason)
        return {"handed_off": True}

    # Writes

    def cancel_order(self, order: str) -> dict:
        """Cancel a whole order."""
        row = self._order(order)
        self._require_confirmation("cancel_order", row)
        self._require_state(row, self.store.shop.rules.cancel_states)
        self._use_confirmation()
        return {
            "order": row["id"],
            "state": "cancelled",
            "refund": money(self.store.cancel(row["id"])),
        }

    def return_items(self, order: str, products: list[str]) -> dict:
        """Return lines of an order."""
        row = self._order(order)
        lines = [self._line(row, reference) for reference in products]
        self._require_confirmation("return_items", row, lines)
        self._require_returnable(row, lines)
        self._use_confirmation()
        refund = self.store.return_items(row["id"], [line["product"] for line in lines])
        return {
            "order": row["id"],
            "returned": [line["name"] for line in lines],
            "refund": money(refund),
        }

    def exchange_item(self, order: str, product: str, variant: str) -> dict:
        """Exchange a line for another variant of the same product."""
        row = self._order(order)
        line = self._line(row, product)
        self._require_confirmation("exchange_item", row, [line], variant)
        self._require_returnable(row, [line], exchange=True)
        stock = {name.casefold(): name for name in self.store.stock(line["product"])}
        if variant.casefold() not in stock:
            raise Refusal("unknown_variant", variants=list(stock.values()))
        if variant.casefold() == line["variant"].casefold():
            raise Refusal(
                "not_allowed", product=line["name"], why=f"it is {line['variant']} already"
            )
        self._use_confirmation()
        try:
            self.store.exchange(row["id"], line["product"], stock[variant.casefold()])
        except sqlite3.IntegrityError as error:
            raise Refusal("not_allowed", why=f"{variant} is out of stock") from error
        return {"order": row["id"], "product": line["name"], "variant": stock[variant.casefold()]}

    def change_address(self, order: str, address: str) -> dict:
        """Send an order to another address."""
        row = self._order(order)
        self._require_confirmation("change_address", row, detail=address)
        self._require_state(row, self.store.shop.rules.address_states)
        self._use_confirmation()
        self.store.change_address(row["id"], address)
        return {"order": row["id"], "address": address}

    # Checks that tools share

    def _product(self, reference: str) -> sqlite3.Row:
        try:
            return self.store.product(reference)
        except NoSuchProduct as error:
            several = error.args[1]
            raise (
                Refusal("several_products", names=several[:3])
                if several
                else Refusal("unknown_product", product=reference)
            ) from error

    def _order(self, number: str, email: str | None = None) -> sqlite3.Row:
        """Return the order if it is the customer's.

        A foreign order and one that does not exist give the same error. Raises Refusal.
        """
        row = self.store.order(number)
        claimed = self.customer if email is None else email
        if claimed is None:
            raise Refusal("not_identified")
        if row is None or row["email"].casefold() != claimed.strip().casefold():
            raise Refusal("no_match")
        self.customer = row["email"]
        return row

    def _line(self, order: sqlite3.Row, reference: str) -> sqlite3.Row:
        product = self._product(reference)
        for line in self.store.lines(order["id"]):
            if line["product"] == product["id"]:
                return line
        raise Refusal("not_in_order", product=product["name"])

    def is_pending(self, name: str, arguments: dict) -> bool:
        """Return whether the assistant's last reply asks for a yes to this write."""
        row = self.store.order(arguments["order"])
        if not row:
            return False
        product = [arguments["product"]] if "product" in arguments else []
        products = arguments.get("products", product)
        lines = [self._line(row, product) for product in products]
        detail = arguments.get("variant", arguments.get("address", ""))
        return self._restates(self._last_reply, name, row, lines, detail)

    def _restates(
        self, reply: str, write: str, order: sqlite3.Row, lines: list[sqlite3.Row], detail: str
    ) -> bool:
        """Return whether a reply asks for a yes to this write. detail: new variant or address."""
        products = []
        for line in lines:
            variants = self.store.stock(line["product"])
            others = [variant for variant in variants if variant != line["variant"]]
            products.append((line["name"], others))
        total = money(order["total"])
        return requests_confirmation(reply, write, order["id"], total, products, detail)

    def _require_confirmation(
        self, write: str, order: sqlite3.Row, lines: tuple | list = (), detail: str = ""
    ) -> None:
        restated = [order["id"]]
        restated += [name for line in lines for name in (line["name"], short_name(line["name"]))]
        restated += [detail] if detail else []
        says_yes = is_affirmation(self._user_turn, write, restated)
        if not (says_yes and self._restates(self._restated, write, order, list(lines), detail)):
            raise Refusal("not_confirmed")

    def _use_confirmation(self) -> None:
        """Check that the store is up, after all other checks; use up the customer's yes.

        So an unsafe write is refused as such also while the store is down.
        """
        self._require_store()
        self._restated = ""

    def _require_store(self) -> None:
        if len(self.calls) < self.faults:
            raise Refusal("unavailable")

    def _require_state(self, order: sqlite3.Row, states: list[str]) -> None:
        if order["state"] not in states:
            raise Refusal("not_allowed", why=f"the order is {order['state'].replace('_', ' ')}")

    def _require_returnable(
        self, order: sqlite3.Row, lines: list[sqlite3.Row], exchange: bool = False
    ) -> None:
        for line in lines:
            why = self.store.return_blocked_reason(order, line, exchange)
            if why:
                raise Refusal("not_allowed", product=line["name"], why=why)


def policy_violations(calls: list[Call]) -> int:
    """Count the writes that were attempted and refused for any reason but an unavailable store.

    Reasons: unconfirmed, against the rules, not the customer's order, malformed.
    """
    return sum(
        call.name in WRITES and call.result.get("error", "unavailable") != "unavailable"
        for call in calls
    )


def is_storable(value: object) -> bool:
    """Return whether SQLite can hold every text and number in a JSON value.

    It cannot hold "\\ud800", which is no Unicode, and 10**30, which is no 64-bit integer.
    """
    if isinstance(value, dict | list):
        return all(
            map(is_storable, [*value, *value.values()] if isinstance(value, dict) else value)
        )
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    return not isinstance(value, int) or abs(value) < 2**63


def money(amount: float) -> str:
    """Return an amount as in `49.90`, as a reply writes it behind a dollar sign."""
    return f"{amount:.2f}"


def format_day(text: str | None) -> str | None:
    """Return an ISO date in words."""
    return spoken_date(date.fromisoformat(text)) if text else None
