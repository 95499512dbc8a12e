"""What a right agent does, by rule: which tools it calls for a known goal, and what it says with what they returned.

The oracle is told what the customer wants (`Goal`), never what the store holds: every fact in its replies comes from a call that
it made in this conversation. Replies are put together from the shop's hand-written fragments, in one register.
"""

import random
import re
from dataclasses import dataclass, field, replace

from crawl2cart.shop.confirmation import short
from crawl2cart.shop.data_model import Register, Reply
from crawl2cart.shop.tool_schemas import compact
from crawl2cart.shop.tools import Session

# A policy is quoted from its beginning, in whole sentences up to this many words.
QUOTED_WORDS = 40
# Slots whose value gets a capital at the start of a sentence; names and numbers stay as they are.
CAPITALISED = ("attribute", "categories", "variant", "reason", "why")


@dataclass(frozen=True)
class UserGoal:
    """One turn of the customer's: the intent, the words, and what the words stand for.

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


class ReplySampler:
    """Fragments of one register, each act's in random order without repeats until all were used."""

    def __init__(self, replies: list[Reply], register: Register, draw: random.Random):
        self.register, self._draw = register, draw
        self._all: dict[str, list[str]] = {}
        for reply in replies:
            if reply.voice == register:
                self._all.setdefault(reply.act, []).append(reply.text)
        self._left: dict[str, list[str]] = {}

    def pick(self, act: str) -> str:
        if not self._left.get(act):
            self._left[act] = self._draw.sample(self._all[act], len(self._all[act]))
        return self._left[act].pop()

    def __call__(self, act: str, **slots: object) -> str:
        return fill(self.pick(act), **slots)


def fill(fragment: str, **slots: object) -> str:
    """The fragment with its slots filled; a lower-case value at the start of a sentence gets a capital."""

    def value(match: re.Match) -> str:
        text = str(slots[match[2]])
        starts = match.start() == 0 or match[1]
        return match[1] + (
            text[0].upper() + text[1:] if starts and match[2] in CAPITALISED else text
        )

    return re.sub(r"((?:[.?!] )?)\{(\w+)\}", value, fragment)


class Down(Exception):
    """The store failed twice in a row."""


class NotFound(Exception):
    """The shop has no product of that name, or several, whose names are the arguments."""


class Unclear(Exception):
    """The customer's yes, or what it answered, could be read as something else, so the session refused the write."""


class ScriptedAgent:
    """Answers goals in a session. `messages` is the conversation, `notes` one entry for each reply: its acts and facts."""

    def __init__(self, session: Session, voice: ReplySampler, draw: random.Random):
        self.session, self.voice, self._draw = session, voice, draw
        self.messages: list[dict] = []
        self.notes: list[dict] = []
        self.listed: list[dict] = []  # the last search's results
        self.compared: list[str] = []  # names of the last comparison
        self.subject: str | None = None  # the product spoken of
        self.known: dict[str, dict] = {}  # products looked up, by every name they were called
        self.orders: dict[str, dict] = {}  # orders that were shown
        self.refused: set[str] = set()  # order numbers that did not match
        self.number: str | None = None  # the order spoken of
        self.conditions: dict = {}  # the last search's
        self.waiting: UserGoal | None = None  # a goal that lacks something
        self.lacks: str | None = None  # what: order, email, variant, address, product
        self.choices: tuple[str, ...] = ()  # the products to choose from, where one is lacking
        self.offer: tuple[str, dict, UserGoal] | None = None  # a restated write, not yet confirmed

    # The conversation

    def turn(self, goal: UserGoal) -> None:
        """Takes the customer's turn, calls what it needs and replies."""
        self.messages.append({"role": "user", "content": goal.text})
        self.session.observe_user(goal.text)
        self._acts: list[str] = []
        self._facts: list[str] = []
        try:
            parts = self._respond(goal)
        except Down:
            self.waiting = self.offer = None
            parts = [self._say("tool_error")]
        reply = (
            "\n".join(parts) if any(part.startswith("- ") for part in parts) else " ".join(parts)
        )
        self.messages.append({"role": "assistant", "content": reply})
        self.notes.append({"acts": self._acts, "facts": list(dict.fromkeys(self._facts))})
        self.session.observe_assistant(reply)

    def _call(self, name: str, **arguments: object) -> dict:
        """Calls a tool; once more if the store is unavailable. Raises Down the second time."""
        arguments = dict(sorted(arguments.items()))  # as they come back from a file of JSON lines
        for _ in range(2):
            self.messages.append(
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {"type": "function", "function": {"name": name, "arguments": arguments}}
                    ],
                }
            )
            result = self.session.call(name, arguments)
            self.messages.append({"role": "tool", "name": name, "content": compact(result)})
            if result.get("error") != "unavailable":
                return result
        raise Down

    def _say(self, act: str, *facts: str, **slots: object) -> str:
        """A fragment. facts: the slots that the customer needs to find in the reply."""
        self._acts.append(act)
        self._facts += [str(slots[fact]) for fact in facts]
        return self.voice(act, **slots)

    def _respond(self, goal: UserGoal) -> list[str]:
        if goal.intent not in ("answer", "confirm", "refuse", "thanks"):
            self.waiting = self.lacks = self.offer = None
        match goal.intent:
            case "search":
                return self._search(goal)
            case "recommend" | "gift":
                return self._recommend(goal)
            case "facts" | "price" | "stock" | "warranty":
                return self._about(goal)
            case "compare":
                return self._compare(goal)
            case "order_status" | "cancel" | "return" | "exchange" | "address":
                return self._order(goal)
            case "complaint":
                sorry = self._say("complaint")
                if goal.order:
                    return [sorry, *self._order(goal)]
                self._call("hand_off", reason="complaint")
                return [sorry, self._say("handed_off")]
            case "policy":
                return self._policy(goal)
            case "answer" if not self.waiting:
                return [self._say("wrong_identity")]  # to an e-mail or number that does not help
            case "answer":
                respond = self._about if self.lacks == "product" else self._order
                return respond(self._completed(goal))
            case "confirm":
                return self._write()
            case "refuse":
                (_, _, wanted), self.offer = self.offer, None
                return [self._say("kept", "order", order=wanted.order)]
            case "thanks" | "unanswerable" | "out_of_scope":
                return [self._say(goal.intent)]
        raise ValueError(goal.intent)

    # Products

    def _find(self, goal: UserGoal, **more: object) -> list[dict]:
        self.conditions = (
            self.conditions | goal.conditions
            if "category" not in goal.conditions
            else goal.conditions
        )
        self.listed = self._call("search_products", **more | self.conditions)["results"]
        self.subject = self.listed[0]["name"] if self.listed else None
        return self.listed

    def _items(self, act: str, products: list[dict]) -> list[str]:
        fragment = self.voice.pick(act)
        self._acts.append(act)
        self._facts += [fact for row in products for fact in (row["name"], row["price"])]
        return [
            "- "
            + fill(
                fragment,
                product=row["name"],
                id=row.get("id"),
                price=row["price"],
                rating=row["rating"],
            )
            for row in products
        ]

    def _search(self, goal: UserGoal) -> list[str]:
        found = self._find(goal)
        kinds = self._kinds()
        if not found:
            return [self._say("search_none", categories=kinds)]
        parts = [
            self._say("search_found", count=len(found), categories=kinds),
            *self._items("search_item", found),
        ]
        several = len(found) > 2 and len(self.conditions) == 1
        return [*parts, self._say("search_next")] if several or self._draw.random() < 0.4 else parts

    def _recommend(self, goal: UserGoal) -> list[str]:
        found = self._find(goal, sort="rating")
        if not found:
            return [self._say("search_none", categories=self._kinds())]
        parts = [
            self._say(
                "recommend",
                "product",
                "price",
                product=found[0]["name"],
                price=found[0]["price"],
                rating=found[0]["rating"],
            )
        ]
        if len(found) > 1:
            parts += self._items("search_item", found[1:])
        return [*parts, self._say("search_next")] if self._draw.random() < 0.4 else parts

    def _kinds(self) -> str:
        word = self.conditions.get("category", "products")
        categories = self.session.store.categories(word)
        return (
            self.session.store.plural(categories[0])
            if len(categories) == 1
            else f"{word} products"
            if word != "products"
            else word
        )

    def _look(self, *names: str) -> list[dict]:
        """The products, from this conversation if they were looked up in it. Raises NotFound if one of the names is no product's alone."""
        if not all(name in self.known for name in names):
            result = self._call("get_products", products=list(names))
            if "error" in result:
                raise NotFound(*result.get("names", ()))
            for name, product in zip(names, result["products"], strict=True):
                self.known |= {name: product, product["name"]: product}
        return [self.known[name] for name in names]

    def _about(self, goal: UserGoal) -> list[str]:
        name = goal.products[0]
        self.subject = name
        listed = next((row for row in self.listed if row["name"] == name), None)
        if goal.intent == "price" and listed and name not in self.known:
            return [self._say("price", "product", "price", product=name, price=listed["price"])]
        try:
            (product,) = self._look(name)
        except NotFound as several:
            return self._which(goal, several.args)
        self.subject = product["name"]
        match goal.intent:
            case "price":
                return [
                    self._say(
                        "price", "product", "price", product=product["name"], price=product["price"]
                    )
                ]
            case "warranty":
                return [
                    self._say(
                        "warranty",
                        "product",
                        "months",
                        product=product["name"],
                        months=product["warranty_months"],
                    )
                ]
            case "stock":
                return self._stock(product, goal.variants)
        return self._facts_of(product, goal)

    def _which(self, goal: UserGoal, choices: tuple[str, ...]) -> list[str]:
        """Asks which of several products is meant; says so if there is none."""
        if not choices:
            return [self._say("product_unknown", "product", product=goal.products[0])]
        self.choices = choices
        self._facts += choices
        return [*self._ask(goal, "product"), *(f"- {name}" for name in choices)]

    def _facts_of(self, product: dict, goal: UserGoal) -> list[str]:
        attributes = product["attributes"]
        if goal.attribute:
            return [self._attribute(product, goal.attribute)]
        said = [name for name in attributes if re.search(rf"\b{re.escape(name)}\b", goal.text)]
        if not said and "made of" in goal.text:
            said = [name for name in attributes if "material" in name]
        return [self._attribute(product, name) for name in (said or list(attributes)[:2])]

    def _attribute(self, product: dict, name: str) -> str:
        value = product["attributes"].get(name)
        if value is None:
            return self._say(
                "facts_missing", "product", "attribute", product=product["name"], attribute=name
            )
        return self._say(
            "facts", "product", "value", product=product["name"], attribute=name, value=value
        )

    def _stock(self, product: dict, wanted: tuple[str, ...]) -> list[str]:
        name, stock = product["name"], product["stock"]
        there = [variant for variant, number in stock.items() if number]
        parts = []
        for variant in wanted or there[:1] or list(stock)[:1]:
            if stock.get(variant):
                parts.append(
                    self._say(
                        "stock_in",
                        "product",
                        "variant",
                        "stock",
                        product=name,
                        variant=variant,
                        stock=stock[variant],
                    )
                )
            else:
                parts.append(
                    self._say("stock_out", "product", "variant", product=name, variant=variant)
                )
        others = [variant for variant in there if variant not in wanted]
        others = others[:1] if wanted else others[1:3]
        if not wanted or not any(stock.get(variant) for variant in wanted):
            parts += [
                self._say("stock_other", "variant", "stock", variant=variant, stock=stock[variant])
                for variant in others
            ]
        return parts

    def _compare(self, goal: UserGoal) -> list[str]:
        try:
            found = self._look(*goal.products)
        except NotFound:
            return [self._say("product_unknown", "product", product=goal.products[-1])]
        self.compared = [product["name"] for product in found]
        self.subject = self.compared[0]
        if goal.attribute:
            return [self._attribute(product, goal.attribute) for product in found]
        parts = self._items("compare_line", found)
        cheapest = min(found, key=lambda product: float(product["price"]))
        best = max(found, key=lambda product: product["rating"])
        if sum(product["rating"] == best["rating"] for product in found) == 1:
            return [
                *parts,
                self._say(
                    "compare_verdict", "product", product=best["name"], reason="rated higher"
                ),
            ]
        return [
            *parts,
            self._say("compare_verdict", "product", product=cheapest["name"], reason="cheaper"),
        ]

    # Orders

    def _completed(self, answer: UserGoal) -> UserGoal:
        """The waiting goal with what the customer has now supplied."""
        given = {
            name: getattr(answer, name)
            for name in ("order", "email", "address")
            if getattr(answer, name)
        }
        given |= {"products": answer.products} if self.lacks == "product" else {}
        goal, self.waiting, self.lacks = self.waiting, None, None
        return replace(goal, **given, **({"variants": answer.variants} if answer.variants else {}))

    def _ask(self, goal: UserGoal, lacks: str, **slots: object) -> list[str]:
        self.waiting, self.lacks = goal, lacks
        return [self._say(f"ask_{lacks}", **slots)]

    def _order(self, goal: UserGoal) -> list[str]:
        if not goal.order and not self.number:
            listed = self._call("list_orders").get("orders", [])
            if len(listed) != 1:
                return self._ask(goal, "order")
            self.number = listed[0]["order"]
        self.number = goal.order or self.number
        goal = replace(goal, order=self.number)
        if goal.order in self.refused and not goal.email:
            return [self._say("wrong_identity")]
        if goal.order not in self.orders:
            shown = self._call(
                "get_order", order=goal.order, **({"email": goal.email} if goal.email else {})
            )
            match shown.get("error"):
                case "not_identified":
                    return self._ask(goal, "email")
                case "no_match":
                    self.refused.add(goal.order)
                    return [self._say("wrong_identity")]
            self.orders[goal.order] = shown
        order = self.orders[goal.order]
        match goal.intent:
            case "order_status" | "complaint":
                return [self._status(order)]
            case "cancel":
                return (
                    self._propose(goal, "cancel_order", {})
                    if "cancel" in order["may"]
                    else [
                        self._say(
                            "cancel_refused",
                            "order",
                            "state",
                            order=goal.order,
                            state=order["state"],
                        )
                    ]
                )
            case "address":
                if "change address" not in order["may"]:
                    return [
                        self._say(
                            "address_refused",
                            "order",
                            "state",
                            order=goal.order,
                            state=order["state"],
                        )
                    ]
                return (
                    self._propose(goal, "change_address", {"address": goal.address})
                    if goal.address
                    else self._ask(goal, "address")
                )
        return self._return(goal, order)

    def _status(self, order: dict) -> str:
        state = order["state"].replace(" ", "_")
        facts = [name for name in ("carrier", "tracking", "expected", "delivered") if name in order]
        return self._say(
            f"order_{state}",
            "order",
            *facts,
            **{
                name: order.get(name)
                for name in ("order", "total", "carrier", "tracking", "expected", "delivered")
            },
        )

    def _return(self, goal: UserGoal, order: dict) -> list[str]:
        """A return or an exchange of one line."""
        lines = [
            line
            for line in order["items"]
            if not goal.products or line["product"].casefold().startswith(short(goal.products[0]))
        ]
        line = lines[0]
        name, refused = line["product"], f"{goal.intent}_refused"
        why = line.get("no_return") or order.get("no_return")
        if why:
            return [
                self._say(
                    refused, "order", "product", "why", order=goal.order, product=name, why=why
                )
            ]
        if goal.intent == "return":
            return self._propose(goal, "return_items", {"products": [name]})
        if not goal.variants:
            return self._ask(goal, "variant", product=name)
        variant = goal.variants[0]
        if not self._look(name)[0]["stock"].get(variant):
            why = f"{variant} is out of stock"
            return [
                self._say(
                    refused, "order", "product", "why", order=goal.order, product=name, why=why
                )
            ]
        return self._propose(goal, "exchange_item", {"product": name, "variant": variant})

    def _propose(self, goal: UserGoal, action: str, arguments: dict) -> list[str]:
        """Restates the change and waits for a yes."""
        act = {
            "cancel_order": "cancel",
            "return_items": "return",
            "exchange_item": "exchange",
            "change_address": "address",
        }[action]
        self.offer = action, arguments, goal
        slots = {"order": goal.order, "total": self.orders[goal.order]["total"], **arguments}
        if "products" in arguments:
            slots["product"] = arguments["products"][0]
        facts = ["order", *(name for name in ("product", "variant", "address") if name in slots)]
        return [self._say(f"{act}_confirm", *facts, **slots)]

    def _write(self) -> list[str]:
        action, arguments, goal = self.offer
        self.offer = None
        result = self._call(action, order=goal.order, **arguments)
        if "error" in result:
            raise Unclear(f"{action} {arguments} {result}")
        self.known.clear()
        del self.orders[goal.order]
        slots = {
            "order": goal.order,
            "total": result.get("refund"),
            "refund": result.get("refund"),
            **arguments,
        }
        match action:
            case "cancel_order":
                return [self._say("cancel_done", "order", "total", **slots)]
            case "return_items":
                return [
                    self._say(
                        "return_done", "product", "refund", product=result["returned"][0], **slots
                    )
                ]
            case "exchange_item":
                return [self._say("exchange_done", "product", "variant", **slots)]
        return [self._say("address_done", "order", "address", **slots)]

    # Policies

    def _policy(self, goal: UserGoal) -> list[str]:
        section = goal.section
        if section is None:
            headings = self._call("get_policy", topic=goal.topic)["sections"]
            section = max(
                headings,
                key=lambda number: (
                    len(word_set(headings[number]) & word_set(goal.text)),
                    -int(number),
                ),
            )
        found = self._call("get_policy", topic=goal.topic, section=section)
        return [
            self._say(
                "policy",
                "section",
                "title",
                section=section,
                title=found["topic"],
                text=quoted(found["text"]),
            )
        ]


def quoted(text: str) -> str:
    """The first sentences of a section, as many as fit into QUOTED_WORDS, at least one."""
    sentences = re.split(r"(?<=[.!?]) ", text)
    kept = [sentences[0]]
    for sentence in sentences[1:]:
        if len(" ".join([*kept, sentence]).split()) > QUOTED_WORDS:
            break
        kept.append(sentence)
    return " ".join(kept)


def word_set(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{3,}", text.casefold()))
