"""What the ten tools of the shopping agent do, and the session in which a conversation uses them.

Reads are free, except that an order is shown only to the customer it belongs to. A write needs a known customer, the shop's rules
and the customer's consent to the restated change; the session reads consent from the conversation, never from an argument.
Results are compact JSON with the fields that a reply needs. Text inside them (reviews, policies) is data.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

from crawl2cart.shop.confirmation import is_affirmation, requests_confirmation, short
from crawl2cart.shop.data_model import spoken_date
from crawl2cart.shop.db import NoSuchProduct, ShopDB
from crawl2cart.shop.tool_schemas import NAMES, VALIDATORS, WRITES


class Refusal(Exception):
    """A tool's structured error: a code, and what a reply may say about it."""

    def __init__(self, code: str, **details: object):
        super().__init__(code)
        self.result = {"error": code, **details}


@dataclass
class Call:
    name: str
    arguments: dict
    result: dict


@dataclass
class Session:
    """One conversation's use of the store.

    signed_in: e-mail of a customer whom the shop's site has identified. faults: how many of the first calls fail, as a
    remote store would. calls: what was called, in order, with the calls that could not be read.
    """

    store: ShopDB
    signed_in: str | None = None
    faults: int = 0
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self):
        self.customer = self.signed_in
        self._last_reply = self._answer = self._restated = ""

    def observe_assistant(self, reply: str) -> None:
        """Notes what the assistant said to the customer."""
        self._last_reply = reply

    def observe_user(self, text: str) -> None:
        """Notes a turn of the customer's. A yes counts for what the reply just before it restated, and until the next turn."""
        self._restated, self._answer, self._last_reply = self._last_reply, text, ""

    def call(self, name: str, arguments: object) -> dict:
        """Runs a tool and returns its result, or `{"error": code, ...}`. Never raises for what a model may send."""
        try:
            result = self._run(name, arguments)
        except Refusal as refusal:
            result = refusal.result
        self.calls.append(Call(name, arguments if isinstance(arguments, dict) else {}, result))
        return result

    def record_malformed(self, name: str | None, reason: str) -> dict:
        """Notes a call that could not be read, and returns what to tell the model. name: the tool it meant, as far as that can be read."""
        result = {"error": "malformed_call", "message": reason}
        self.calls.append(Call(name or "unknown", {}, result))
        return result

    def _run(self, name: str, arguments: object) -> dict:
        if name not in VALIDATORS:
            raise Refusal("unknown_tool", tools=list(NAMES))
        fault = next(iter(sorted(VALIDATORS[name].iter_errors(arguments), key=str)), None)
        if fault:
            raise Refusal("invalid_arguments", message=fault.message[:200])
        if not storable(arguments):
            raise Refusal(
                "invalid_arguments", message="a number is too large, or a text is not valid Unicode"
            )
        if name not in WRITES:
            self._require_store()
        function: Callable[..., dict] = getattr(self, name)
        return function(**arguments)

    # Reads

    def search_products(self, **conditions: str | float) -> dict:
        """The three best products under all conditions; without a query and a sort, the best rated."""
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
        """One to three products by name or id: price, attributes, stock of each variant, warranty; of a single one the pinned review."""
        found = [self._product(reference) for reference in products]
        entries = [
            {
                "name": row["name"],
                "price": money(row["price"]),
                "rating": row["rating"],
                "warranty_months": row["warranty_months"],
                "attributes": self.store.attributes(row["id"]),
                "stock": self.store.stock(row["id"]),
            }
            for row in found
        ]
        review = self.store.review(found[0]["id"]) if len(found) == 1 else None
        return {"products": entries} | ({"review": review} if review else {})

    def list_orders(self) -> dict:
        """The orders of the customer who is signed in or has been identified by `get_order`."""
        if not self.customer:
            raise Refusal("not_identified")
        return {
            "orders": [
                {
                    "order": row["id"],
                    "state": row["state"].replace("_", " "),
                    "placed": day(row["placed"]),
                    "total": money(row["total"]),
                }
                for row in self.store.orders_of(self.customer)
            ]
        }

    def get_order(self, order: str, email: str | None = None) -> dict:
        """An order's state, lines and what its rules allow now (`may`). Identifies the customer by number and matching e-mail."""
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
            name: row[name] if name in ("carrier", "tracking") else day(row[name]) for name in shown
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
        """A section of a policy; without its number, the headings of the topic."""
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
        """Gives the conversation to a person."""
        self.store.open_ticket(reason)
        return {"handed_off": True}

    # Writes

    def cancel_order(self, order: str) -> dict:
        """Cancels a whole order."""
        row = self._order(order)
        self._require_consent("cancel_order", row)
        self._require_state(row, self.store.shop.rules.cancel_states)
        self._begin_change()
        return {
            "order": row["id"],
            "state": "cancelled",
            "refund": money(self.store.cancel(row["id"])),
        }

    def return_items(self, order: str, products: list[str]) -> dict:
        """Opens a return of an order's lines."""
        row = self._order(order)
        lines = [self._line(row, reference) for reference in products]
        self._require_consent("return_items", row, lines)
        self._require_kept_rules(row, lines)
        self._begin_change()
        refund = self.store.return_items(row["id"], [line["product"] for line in lines])
        return {
            "order": row["id"],
            "returned": [line["name"] for line in lines],
            "refund": money(refund),
        }

    def exchange_item(self, order: str, product: str, variant: str) -> dict:
        """Exchanges a line for another variant of the same product."""
        row = self._order(order)
        line = self._line(row, product)
        self._require_consent("exchange_item", row, [line], variant)
        self._require_kept_rules(row, [line], exchange=True)
        stock = {name.casefold(): name for name in self.store.stock(line["product"])}
        if variant.casefold() not in stock:
            raise Refusal("unknown_variant", variants=list(stock.values()))
        if variant.casefold() == line["variant"].casefold():
            raise Refusal(
                "not_allowed", product=line["name"], why=f"it is {line['variant']} already"
            )
        self._begin_change()
        try:
            self.store.exchange(row["id"], line["product"], stock[variant.casefold()])
        except sqlite3.IntegrityError as error:
            raise Refusal("not_allowed", why=f"{variant} is out of stock") from error
        return {"order": row["id"], "product": line["name"], "variant": stock[variant.casefold()]}

    def change_address(self, order: str, address: str) -> dict:
        """Sends an order to another address."""
        row = self._order(order)
        self._require_consent("change_address", row, detail=address)
        self._require_state(row, self.store.shop.rules.address_states)
        self._begin_change()
        self.store.change_address(row["id"], address)
        return {"order": row["id"], "address": address}

    # What they have in common

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
        """The order, if it belongs to the customer. A foreign order and none at all look the same from outside."""
        row = self.store.order(number)
        known = self.customer if email is None else email
        if known is None:
            raise Refusal("not_identified")
        if row is None or row["email"].casefold() != known.strip().casefold():
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
        """Whether the assistant's last reply restates this write, so that a yes to it would be a yes to this."""
        row = self.store.order(arguments["order"])
        products = arguments.get(
            "products", [arguments["product"]] if "product" in arguments else []
        )
        lines = [self._line(row, product) for product in products] if row else []
        return bool(row) and self._restates(
            self._last_reply,
            name,
            row,
            lines,
            arguments.get("variant", arguments.get("address", "")),
        )

    def _restates(
        self, reply: str, action: str, order: sqlite3.Row, lines: list[sqlite3.Row], detail: str
    ) -> bool:
        products = [
            (
                line["name"],
                [name for name in self.store.stock(line["product"]) if name != line["variant"]],
            )
            for line in lines
        ]
        return requests_confirmation(
            reply, action, order["id"], money(order["total"]), products, detail
        )

    def _require_consent(
        self, action: str, order: sqlite3.Row, lines: tuple | list = (), detail: str = ""
    ) -> None:
        named = [fact for line in lines for fact in (line["name"], short(line["name"]))]
        yes = is_affirmation(
            self._answer, action, (order["id"], *named, *([detail] if detail else []))
        )
        if not (yes and self._restates(self._restated, action, order, list(lines), detail)):
            raise Refusal("not_confirmed")

    def _begin_change(self) -> None:
        """Behind every check: what was no safe write is told so also while the store is down, and one yes is for one change."""
        self._require_store()
        self._restated = ""

    def _require_store(self) -> None:
        if len(self.calls) < self.faults:
            raise Refusal("unavailable")

    def _require_state(self, order: sqlite3.Row, states: list[str]) -> None:
        if order["state"] not in states:
            raise Refusal("not_allowed", why=f"the order is {order['state'].replace('_', ' ')}")

    def _require_kept_rules(
        self, order: sqlite3.Row, lines: list[sqlite3.Row], exchange: bool = False
    ) -> None:
        for line in lines:
            why = self.store.return_blocked_reason(order, line, exchange)
            if why:
                raise Refusal("not_allowed", product=line["name"], why=why)


def policy_violations(calls: list[Call]) -> int:
    """Writes that were attempted and refused, whatever the reason: unconfirmed, against the rules, not the customer's, not well-formed.

    Only that the store was down for a write that was safe is no fault of the model's.
    """
    return sum(
        call.name in WRITES and call.result.get("error", "unavailable") != "unavailable"
        for call in calls
    )


def storable(value: object) -> bool:
    """Whether SQLite can hold every text and number in a value read from JSON: "\\ud800" is no Unicode, 10**30 no 64-bit integer."""
    if isinstance(value, dict | list):
        return all(map(storable, [*value, *value.values()] if isinstance(value, dict) else value))
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    return not isinstance(value, int) or abs(value) < 2**63


def money(amount: float) -> str:
    """`49.90`, as a reply writes it behind its dollar sign."""
    return f"{amount:.2f}"


def day(text: str | None) -> str | None:
    return spoken_date(date.fromisoformat(text)) if text else None
