"""Answer user goals as a correct agent does: by rule, with tool calls that are really executed.

The scripted agent receives what the customer wants (`UserGoal`) and knows nothing of the store.
So every fact in its replies comes from a call that it made in the same conversation.
"""

import random
import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from crawl2cart.dialogues.reply_sampler import ReplySampler, fill
from crawl2cart.shop.confirmation import short_name
from crawl2cart.shop.tool_schemas import compact
from crawl2cart.shop.tools import Session

# A policy is quoted from its beginning, in whole sentences up to this many words.
MAX_QUOTED_WORDS = 40
SEARCH_NEXT_RATE = 0.4  # how often a list of results ends with an offer to narrow the search
# The first part of the names of the reply acts about a write: cancel_confirm, cancel_done, ...
ACT_OF_WRITE = {
    "cancel_order": "cancel",
    "return_items": "return",
    "exchange_item": "exchange",
    "change_address": "address",
}


@dataclass(frozen=True)
class UserGoal:
    """What the customer wants in one turn: the intent, the text, and the values in the text.

    products: as the customer names them, or names from the agent's own results ("the second one").
    """

    intent: str
    text: str
    products: tuple[str, ...] = ()
    conditions: dict = field(default_factory=dict)
    attribute: str | None = None
    variants: tuple[str, ...] = ()
    order: str | None = None
    email: str | None = None
    address: str | None = None
    topic: str | None = None
    section: str | None = None


class ProposedWrite(NamedTuple):
    """A change that the agent restated and that the customer has not confirmed yet."""

    tool: str
    arguments: dict
    goal: UserGoal


class StoreUnavailable(Exception):
    """The store failed twice in a row."""


class ProductNotFound(Exception):
    """The shop has no product of that name, or several, whose names are the arguments."""


class WriteRefused(Exception):
    """The session refused a write, since the question or the yes before it is ambiguous."""


class ScriptedAgent:
    """Answers user goals in a session.

    `messages` is the conversation. `notes` has an entry for each reply: its acts and its facts.
    """

    def __init__(self, session: Session, replies: ReplySampler, rng: random.Random):
        self.session, self._sampler, self._rng = session, replies, rng
        self.messages: list[dict] = []
        self.notes: list[dict] = []
        self.search_results: list[dict] = []
        self.search_conditions: dict = {}
        self.compared: list[str] = []  # product names of the last comparison
        self.current_product: str | None = None
        self.current_order: str | None = None
        self.products: dict[str, dict] = {}  # looked up so far, by every name that was used
        self.orders: dict[str, dict] = {}  # shown so far, by number
        self.rejected_orders: set[str] = set()  # numbers that did not match the customer
        self.pending_goal: UserGoal | None = None  # a goal that lacks a value
        self.missing_slot: str | None = None  # which: order, email, variant, address, product
        self.candidates: tuple[str, ...] = ()  # the products among which the customer chooses
        self.proposed: ProposedWrite | None = None

    # The conversation

    def respond(self, goal: UserGoal) -> None:
        """Add the customer's turn, the calls that it needs, and the reply to `messages`."""
        self.messages.append({"role": "user", "content": goal.text})
        self.session.observe_user(goal.text)
        self._acts: list[str] = []
        self._facts: list[str] = []
        try:
            parts = self._reply_to(goal)
        except StoreUnavailable:
            self.pending_goal = self.proposed = None
            parts = [self._reply("tool_error")]
        separator = "\n" if any(part.startswith("- ") for part in parts) else " "
        reply = separator.join(parts)
        self.messages.append({"role": "assistant", "content": reply})
        self.notes.append({"acts": self._acts, "facts": list(dict.fromkeys(self._facts))})
        self.session.observe_assistant(reply)

    def _call(self, name: str, **arguments: object) -> dict:
        """Call a tool, and again if the store is unavailable. Raises StoreUnavailable then."""
        arguments = dict(sorted(arguments.items()))  # as they come back from a JSON lines file
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        for _ in range(2):
            self.messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            result = self.session.call(name, arguments)
            self.messages.append({"role": "tool", "name": name, "content": compact(result)})
            if result.get("error") != "unavailable":
                return result
        raise StoreUnavailable

    def _reply(self, act: str, *facts: str, **values: object) -> str:
        """Draw a sentence for an act. facts: slots whose values a right reply has to state."""
        self._acts.append(act)
        self._facts += [str(values[slot]) for slot in facts]
        return self._sampler(act, **values)

    def _reply_to(self, goal: UserGoal) -> list[str]:
        """Return the parts of the reply to a goal."""
        if goal.intent not in ("answer", "confirm", "refuse", "thanks"):
            self.pending_goal = self.missing_slot = self.proposed = None
        match goal.intent:
            case "search":
                return self._search(goal)
            case "recommend" | "gift":
                return self._recommend(goal)
            case "facts" | "price" | "stock" | "warranty":
                return self._describe(goal)
            case "compare":
                return self._compare(goal)
            case "order_status" | "cancel" | "return" | "exchange" | "address":
                return self._handle_order(goal)
            case "complaint":
                apology = self._reply("complaint")
                if goal.order:
                    return [apology, *self._handle_order(goal)]
                self._call("hand_off", reason="complaint")
                return [apology, self._reply("handed_off")]
            case "policy":
                return self._policy(goal)
            case "answer" if not self.pending_goal:  # an e-mail or number that does not help
                return [self._reply("wrong_identity")]
            case "answer":
                handle = self._describe if self.missing_slot == "product" else self._handle_order
                return handle(self._complete_goal(goal))
            case "confirm":
                return self._write()
            case "refuse":
                order, self.proposed = self.proposed.goal.order, None
                return [self._reply("kept", "order", order=order)]
            case "thanks" | "unanswerable" | "out_of_scope":
                return [self._reply(goal.intent)]
        raise ValueError(goal.intent)

    def _ask(self, goal: UserGoal, slot: str, **values: object) -> list[str]:
        """Ask the customer for a value that the goal lacks."""
        self.pending_goal, self.missing_slot = goal, slot
        return [self._reply(f"ask_{slot}", **values)]

    def _complete_goal(self, answer: UserGoal) -> UserGoal:
        """Return the pending goal with the values that the customer has now supplied."""
        slots = ("order", "email", "address")
        values = {slot: getattr(answer, slot) for slot in slots if getattr(answer, slot)}
        if self.missing_slot == "product":
            values["products"] = answer.products
        if answer.variants:
            values["variants"] = answer.variants
        goal, self.pending_goal, self.missing_slot = self.pending_goal, None, None
        return replace(goal, **values)

    # Searches

    def _find(self, goal: UserGoal, **more: object) -> list[dict]:
        """Search with the goal's conditions, added to the last ones if it names no category."""
        if "category" in goal.conditions:
            self.search_conditions = goal.conditions
        else:
            self.search_conditions = self.search_conditions | goal.conditions
        result = self._call("search_products", **more | self.search_conditions)
        self.search_results = result["results"]
        self.current_product = self.search_results[0]["name"] if self.search_results else None
        return self.search_results

    def _list_products(self, act: str, products: list[dict]) -> list[str]:
        """Return a line for each product, all from the same template."""
        template = self._sampler.pick(act)
        self._acts.append(act)
        self._facts += [fact for row in products for fact in (row["name"], row["price"])]
        return [
            "- "
            + fill(
                template,
                product=row["name"],
                id=row.get("id"),
                price=row["price"],
                rating=row["rating"],
            )
            for row in products
        ]

    def _search(self, goal: UserGoal) -> list[str]:
        results = self._find(goal)
        categories = self._searched_categories()
        if not results:
            return [self._reply("search_none", categories=categories)]
        parts = [
            self._reply("search_found", count=len(results), categories=categories),
            *self._list_products("search_item", results),
        ]
        is_broad = len(results) > 2 and len(self.search_conditions) == 1
        if is_broad or self._rng.random() < SEARCH_NEXT_RATE:
            parts.append(self._reply("search_next"))
        return parts

    def _recommend(self, goal: UserGoal) -> list[str]:
        results = self._find(goal, sort="rating")
        if not results:
            return [self._reply("search_none", categories=self._searched_categories())]
        best, *others = results
        values = {"product": best["name"], "price": best["price"], "rating": best["rating"]}
        parts = [self._reply("recommend", "product", "price", **values)]
        if others:
            parts += self._list_products("search_item", others)
        if self._rng.random() < SEARCH_NEXT_RATE:
            parts.append(self._reply("search_next"))
        return parts

    def _searched_categories(self) -> str:
        """Return what the search was for, in words: a plural, or "lighting products"."""
        word = self.search_conditions.get("category", "products")
        categories = self.session.store.categories(word)
        if len(categories) == 1:
            return self.session.store.plural(categories[0])
        return word if word == "products" else f"{word} products"

    # Products

    def _look_up(self, *names: str) -> list[dict]:
        """Return the products, without a call if this conversation has looked them all up.

        Raises ProductNotFound if a name does not belong to exactly one product.
        """
        if not all(name in self.products for name in names):
            result = self._call("get_products", products=list(names))
            if "error" in result:
                raise ProductNotFound(*result.get("names", ()))
            for name, product in zip(names, result["products"], strict=True):
                self.products |= {name: product, product["name"]: product}
        return [self.products[name] for name in names]

    def _describe(self, goal: UserGoal) -> list[str]:
        """Answer a question about one product."""
        name = goal.products[0]
        self.current_product = name
        listed = next((row for row in self.search_results if row["name"] == name), None)
        if goal.intent == "price" and listed and name not in self.products:
            return [self._price(listed)]
        try:
            (product,) = self._look_up(name)
        except ProductNotFound as several:
            return self._ask_which(goal, several.args)
        self.current_product = product["name"]
        match goal.intent:
            case "price":
                return [self._price(product)]
            case "warranty":
                values = {"product": product["name"], "months": product["warranty_months"]}
                return [self._reply("warranty", "product", "months", **values)]
            case "stock":
                return self._stock(product, goal.variants)
        return self._attributes(product, goal)

    def _price(self, product: dict) -> str:
        values = {"product": product["name"], "price": product["price"]}
        return self._reply("price", "product", "price", **values)

    def _ask_which(self, goal: UserGoal, names: tuple[str, ...]) -> list[str]:
        """Ask which of several products is meant, or say that there is none."""
        if not names:
            return [self._reply("product_unknown", "product", product=goal.products[0])]
        self.candidates = names
        self._facts += names
        return [*self._ask(goal, "product"), *(f"- {name}" for name in names)]

    def _attributes(self, product: dict, goal: UserGoal) -> list[str]:
        """State the attribute in question, those that the text names, or the first two."""
        attributes = product["attributes"]
        if goal.attribute:
            return [self._attribute(product, goal.attribute)]
        names = [name for name in attributes if re.search(rf"\b{re.escape(name)}\b", goal.text)]
        if not names and "made of" in goal.text:
            names = [name for name in attributes if "material" in name]
        return [self._attribute(product, name) for name in (names or list(attributes)[:2])]

    def _attribute(self, product: dict, name: str) -> str:
        value = product["attributes"].get(name)
        values = {"product": product["name"], "attribute": name}
        if value is None:
            return self._reply("facts_missing", "product", "attribute", **values)
        return self._reply("facts", "product", "value", **values, value=value)

    def _stock(self, product: dict, wanted: tuple[str, ...]) -> list[str]:
        """State the stock of the wanted variants, and of others if these are sold out."""
        name, stock = product["name"], product["stock"]
        available = [variant for variant, count in stock.items() if count]
        parts = []
        for variant in wanted or available[:1] or list(stock)[:1]:
            values = {"product": name, "variant": variant}
            if stock.get(variant):
                values["stock"] = stock[variant]
                parts.append(self._reply("stock_in", "product", "variant", "stock", **values))
            else:
                parts.append(self._reply("stock_out", "product", "variant", **values))
        others = [variant for variant in available if variant not in wanted]
        others = others[:1] if wanted else others[1:3]
        if not wanted or not any(stock.get(variant) for variant in wanted):
            for variant in others:
                values = {"variant": variant, "stock": stock[variant]}
                parts.append(self._reply("stock_other", "variant", "stock", **values))
        return parts

    def _compare(self, goal: UserGoal) -> list[str]:
        """Compare two or three products by one attribute, or by rating and price."""
        try:
            products = self._look_up(*goal.products)
        except ProductNotFound:
            return [self._reply("product_unknown", "product", product=goal.products[-1])]
        self.compared = [product["name"] for product in products]
        self.current_product = self.compared[0]
        if goal.attribute:
            return [self._attribute(product, goal.attribute) for product in products]
        parts = self._list_products("compare_line", products)
        cheapest = min(products, key=lambda product: float(product["price"]))
        best = max(products, key=lambda product: product["rating"])
        is_best_alone = sum(product["rating"] == best["rating"] for product in products) == 1
        winner, reason = (best, "rated higher") if is_best_alone else (cheapest, "cheaper")
        verdict = self._reply("compare_verdict", "product", product=winner["name"], reason=reason)
        return [*parts, verdict]

    # Orders

    def _handle_order(self, goal: UserGoal) -> list[str]:
        """Identify the customer and the order, then do what the goal asks."""
        if not goal.order and not self.current_order:
            orders = self._call("list_orders").get("orders", [])
            if len(orders) != 1:
                return self._ask(goal, "order")
            self.current_order = orders[0]["order"]
        self.current_order = goal.order or self.current_order
        goal = replace(goal, order=self.current_order)
        if goal.order in self.rejected_orders and not goal.email:
            return [self._reply("wrong_identity")]
        if goal.order not in self.orders:
            email = {"email": goal.email} if goal.email else {}
            result = self._call("get_order", order=goal.order, **email)
            match result.get("error"):
                case "not_identified":
                    return self._ask(goal, "email")
                case "no_match":
                    self.rejected_orders.add(goal.order)
                    return [self._reply("wrong_identity")]
            self.orders[goal.order] = result
        order = self.orders[goal.order]
        match goal.intent:
            case "order_status" | "complaint":
                return [self._status(order)]
            case "cancel":
                return self._cancel(goal, order)
            case "address":
                return self._change_address(goal, order)
        return self._send_back(goal, order)

    def _status(self, order: dict) -> str:
        state = order["state"].replace(" ", "_")
        slots = ("carrier", "tracking", "expected", "delivered")
        values = {slot: order.get(slot) for slot in ("order", "total", *slots)}
        facts = [slot for slot in slots if slot in order]
        return self._reply(f"order_{state}", "order", *facts, **values)

    def _cancel(self, goal: UserGoal, order: dict) -> list[str]:
        if "cancel" not in order["may"]:
            return [self._refuse_by_state("cancel_refused", order)]
        return self._propose(goal, "cancel_order", {})

    def _change_address(self, goal: UserGoal, order: dict) -> list[str]:
        if "change address" not in order["may"]:
            return [self._refuse_by_state("address_refused", order)]
        if not goal.address:
            return self._ask(goal, "address")
        return self._propose(goal, "change_address", {"address": goal.address})

    def _refuse_by_state(self, act: str, order: dict) -> str:
        return self._reply(act, "order", "state", order=self.current_order, state=order["state"])

    def _send_back(self, goal: UserGoal, order: dict) -> list[str]:
        """Return or exchange one line of an order."""

        def is_meant(line: dict) -> bool:
            return line["product"].casefold().startswith(short_name(goal.products[0]))

        lines = [line for line in order["items"] if not goal.products or is_meant(line)]
        line, name = lines[0], lines[0]["product"]
        why = line.get("no_return") or order.get("no_return")
        if not why and goal.intent == "exchange":
            if not goal.variants:
                return self._ask(goal, "variant", product=name)
            variant = goal.variants[0]
            if not self._look_up(name)[0]["stock"].get(variant):
                why = f"{variant} is out of stock"
        if why:
            act, values = f"{goal.intent}_refused", {"product": name, "why": why}
            return [self._reply(act, "order", "product", "why", order=goal.order, **values)]
        if goal.intent == "return":
            return self._propose(goal, "return_items", {"products": [name]})
        return self._propose(goal, "exchange_item", {"product": name, "variant": variant})

    def _propose(self, goal: UserGoal, tool: str, arguments: dict) -> list[str]:
        """Restate the change and wait for a yes."""
        self.proposed = ProposedWrite(tool, arguments, goal)
        values = {"order": goal.order, "total": self.orders[goal.order]["total"], **arguments}
        if "products" in arguments:
            values["product"] = arguments["products"][0]
        facts = [slot for slot in ("product", "variant", "address") if slot in values]
        return [self._reply(f"{ACT_OF_WRITE[tool]}_confirm", "order", *facts, **values)]

    def _write(self) -> list[str]:
        """Make the change that the customer has confirmed. Raises WriteRefused."""
        (tool, arguments, goal), self.proposed = self.proposed, None
        result = self._call(tool, order=goal.order, **arguments)
        if "error" in result:
            raise WriteRefused(f"{tool} {arguments} {result}")
        self.products.clear()
        del self.orders[goal.order]
        refund = result.get("refund")
        values = {"order": goal.order, "total": refund, "refund": refund, **arguments}
        if tool == "return_items":
            values["product"] = result["returned"][0]
        facts = {
            "cancel_order": ("order", "total"),
            "return_items": ("product", "refund"),
            "exchange_item": ("product", "variant"),
            "change_address": ("order", "address"),
        }[tool]
        return [self._reply(f"{ACT_OF_WRITE[tool]}_done", *facts, **values)]

    # Policies

    def _policy(self, goal: UserGoal) -> list[str]:
        """Quote the section of a policy; without its number, the one whose heading fits best."""
        section = goal.section
        if section is None:
            headings = self._call("get_policy", topic=goal.topic)["sections"]
            question = word_set(goal.text)
            shared = {number: len(word_set(headings[number]) & question) for number in headings}
            section = max(headings, key=lambda number: (shared[number], -int(number)))
        policy = self._call("get_policy", topic=goal.topic, section=section)
        values = {"section": section, "title": policy["topic"], "text": quote(policy["text"])}
        return [self._reply("policy", "section", "title", **values)]


def quote(text: str) -> str:
    """Return the first whole sentences of a text up to MAX_QUOTED_WORDS, at least one."""
    first, *rest = re.split(r"(?<=[.!?]) ", text)
    quoted = first
    for sentence in rest:
        if len(f"{quoted} {sentence}".split()) > MAX_QUOTED_WORDS:
            break
        quoted += f" {sentence}"
    return quoted


def word_set(text: str) -> set[str]:
    """Return the words of a text of three letters or more, in lower case."""
    return set(re.findall(r"[a-z]{3,}", text.casefold()))
