"""One dialogue in the making: a scene is drawn, the customer's words are filled, the oracle answers with tools that really run."""

import random
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Row
from typing import get_args

from crawl2cart.dialogues.entities import EntitySampler, Resample
from crawl2cart.dialogues.expert import ReplySampler, ScriptedAgent, UserGoal
from crawl2cart.dialogues.templates import TemplateStore
from crawl2cart.shop.confirmation import is_affirmation
from crawl2cart.shop.data_model import (
    Customer,
    FollowUp,
    FollowUpIntent,
    Intent,
    Plan,
    Reason,
    Register,
    Reply,
    Review,
    Split,
    Turn,
    Wording,
)
from crawl2cart.shop.env import DAYS, Scenario, ScenarioOrder, ShopSessions
from crawl2cart.shop.loader import rows

PRODUCT_INTENTS = ("facts", "price", "stock", "warranty")
NAMING = {"product", "product_id", "brand"}  # slots by which a customer names a product
SEARCH_INTENTS = ("search", "recommend", "gift")
# Order states for an intent: those that its rules allow more often than the others.
STATES = {
    "order_status": (
        "placed",
        "packed",
        "shipped",
        "delayed",
        "delivered",
        "partly_returned",
        "cancelled",
    ),
    "complaint": ("shipped", "delayed", "delayed", "delivered"),
    "cancel": ("placed", "packed", "placed", "packed", "shipped", "delayed", "delivered"),
    "address": ("placed", "packed", "placed", "packed", "shipped", "delayed"),
    "return": ("delivered",) * 5 + ("partly_returned", "shipped", "packed"),
    "exchange": ("delivered",) * 5 + ("partly_returned", "delayed", "placed"),
}


@dataclass(frozen=True)
class EventRates:
    """How often something befalls a dialogue: shares of those that it can befall.

    plan: it follows a plan. foreign: the order is somebody else's. signed_in: the site knows the customer. unknown: a product that
    the shop does not have. faults: the store fails once or twice. attack, review: the product's review gives orders, or is a plain
    one. refuse, refuse_in_training: a change is not confirmed; in training as often as it is, or the likeliest is to make it, whatever was
    said. empty: a budget below all prices. thanks: a last word. missing: an attribute that the product does not list. yes_no: an attribute
    of yes and no may be asked for.
    """

    plan: float = 0.25
    foreign: float = 0.08
    signed_in: float = 0.3
    unknown: float = 0.04
    vague: float = 0.25
    faults: float = 0.03
    attack: float = 0.12
    review: float = 0.15
    refuse: float = 0.25
    refuse_in_training: float = 0.5
    empty: float = 0.2
    thanks: float = 0.12
    missing: float = 0.3
    yes_no: float = 0.2


# What stands before a product that has no article yet.
NO_ARTICLE = "".join(
    rf"(?<!\b{article} )" for article in ("the", "a", "an", "your", "this", "that", "my", "our")
)


class Templates:
    """All that the shop's folder lets customers and the assistant say."""

    def __init__(self, folder: Path | str):
        folder = Path(folder)
        speech = TemplateStore(folder)
        self.wordings: dict[tuple[Intent, Split], list[Wording]] = defaultdict(list)
        for file, _, wording in speech.lines("wordings", Wording):
            self.wordings[file.stem, wording.split].append(wording)
        self.plans: dict[Split, list[Plan]] = defaultdict(list)
        self.said: dict[tuple[Split, str], list[str]] = defaultdict(
            list
        )  # what customers answer, confirm, refuse and thank with
        for _, _, plan in speech.lines("plans.jsonl", Plan):
            self.plans[plan.split].append(plan)
            for turn in plan.turns:
                self._hear(plan.split, turn)
        for _, _, line in speech.lines("follow_ups.jsonl", FollowUp):
            self._hear(line.split, line)
        self.replies = [reply for _, _, reply in speech.lines("replies.jsonl", Reply)]
        self.reasons = [reason for _, _, reason in speech.lines("reasons.jsonl", Reason)]
        self.customers = rows(folder / "customers", Customer)
        self.reviews: dict[str, list[str]] = defaultdict(list)
        for review in rows(folder / "reviews", Review):
            if not review.instructs:
                self.reviews[review.product].append(review.text)

    def _hear(self, split: Split, turn: Turn | FollowUp) -> None:
        if turn.intent == "answer":
            self.said[split, "answer " + " ".join(slots(turn.text))].append(turn.text)
        elif turn.intent in get_args(FollowUpIntent) and not slots(turn.text):
            self.said[split, turn.intent].append(turn.text)


@dataclass(frozen=True)
class EpisodeContext:
    shops: ShopSessions
    script: Templates
    registers: Mapping[Register, float]
    shares: EventRates


class Episode:
    """One attempt at one dialogue: the draw of a cast and a scene, then turn after turn.

    intent: of a wording; None with a plan. Raises Resample if words and draw do not go together.
    """

    def __init__(
        self,
        world: EpisodeContext,
        split: Split,
        card: Plan | Wording,
        intent: Intent | None,
        case: str | None,
        draw: random.Random,
    ):
        self.shops, self.script, self.shares = world.shops, world.script, world.shares
        self.split, self.case, self.draw = split, case, draw
        self.plan = card if isinstance(card, Plan) else None
        self.turns = (
            self.plan.turns
            if self.plan
            else [Turn(intent=intent, text=card.text, fixed=card.fixed)]
        )
        self.texts = " ".join(turn.text for turn in self.turns)
        self.intents = [turn.intent for turn in self.turns]
        self.wordings: list[str] = []
        self.asked: list[str] = []
        day = draw.randint(1, DAYS) if split == "train" else 0
        self.store = self.shops.catalogue(split, day)
        self.cast = EntitySampler(self.store, split, self.script.customers, draw)
        pool = self.shops.held_out[split] or self._products()
        self.product = self._row(draw.choice(pool))
        self.order, self.email, self.address = (
            self.cast.order_number(),
            self.cast.email(),
            self.cast.address(),
        )
        self.variants = self._variants(self.product)
        self.scene = self._scene(day)
        register = draw.choices(list(world.registers), list(world.registers.values()))[0]
        self.oracle = ScriptedAgent(
            self.shops.session(self.scene), ReplySampler(self.script.replies, register, draw), draw
        )

    def _hit(self, share: float) -> bool:
        return self.draw.random() < share

    def _row(self, product: str) -> Row:
        return self.store.one("SELECT * FROM products WHERE id = ?", product)

    def _products(self) -> list[str]:
        return [row["id"] for row in self.store.all("SELECT id FROM products ORDER BY id")]

    def _variants(self, row: Row) -> list[str]:
        """Its variants in random order."""
        names = list(self.store.stock(row["id"]))
        return self.draw.sample(names, len(names))

    # The scene

    def _scene(self, day: int) -> Scenario:
        self.foreign = self.case == "foreign" or bool(self.plan and self.plan.order == "foreign")
        asked = [intent for intent in self.intents if intent in STATES]
        orders, signed_in = self._orders(asked) if asked or "{order}" in self.texts else ([], None)
        stock = []
        if "exchange" in asked:
            stock.append(
                (
                    self.product["id"],
                    self.variants[0],
                    0 if self._hit(0.2) else self.draw.randrange(1, 40),
                )
            )
        if "stock" in self.intents and "{variant}" in self.texts:
            if self.plan and "out of stock" in self.plan.about or self._hit(0.3):
                stock.append((self.product["id"], self.variants[0], 0))
        single = not self.plan and self.intents[0] in PRODUCT_INTENTS
        review = self._review() if single else None
        self.unknown = (
            single
            and not (
                self.case or review or "variant" in self.texts or "{product}" not in self.texts
            )
            and self._hit(self.shares.unknown)
        )
        self.vague = (
            single
            and not (self.case or review or self.unknown)
            and set(slots(self.texts)) & NAMING == {"product"}
            and self._hit(self.shares.vague)
        )
        faults = (
            self.draw.randint(1, 2)
            if not (self.plan or self.case) and self._hit(self.shares.faults)
            else 0
        )
        return Scenario(
            catalogue=self.split,
            day=day,
            orders=tuple(orders),
            signed_in=signed_in,
            review=review,
            stock=tuple(stock),
            faults=faults,
        )

    def _review(self) -> tuple[str, str] | None:
        """What is pinned to the product, if anything."""
        attacks, plain = self.shops.attacks[self.split], self.script.reviews[self.product["id"]]
        if self.case == "injection" and not attacks:
            raise Resample
        if attacks and (self.case == "injection" or self._hit(self.shares.attack)):
            return self.product["id"], self.draw.choice(attacks)
        return (
            (self.product["id"], self.draw.choice(plain))
            if plain and self._hit(self.shares.review)
            else None
        )

    def _orders(self, asked: list[str]) -> tuple[list[ScenarioOrder], str | None]:
        """The orders on file, the one spoken of first, and the e-mail of the customer who is signed in, if one is."""
        numbered, mailed = "{order}" in self.texts, "{email}" in self.texts
        if not self.plan and not self.case and numbered:
            self.foreign = self._hit(self.shares.foreign)
        if "exchange" in asked and len(self.variants) < 2:
            raise Resample
        # Of several, the change decides in which state the order should be.
        wanted = next(
            (intent for intent in asked if intent not in ("order_status", "complaint")),
            (asked or ["order_status"])[0],
        )
        stated = (
            self.plan.order if self.plan and self.plan.order not in ("own", "foreign") else None
        )
        alone = not any(
            "{product}" in turn.text for turn in self.turns if turn.intent in ("return", "exchange")
        )
        filed = self.cast.filed(
            stated or self.draw.choice(STATES[wanted]),
            self.product["id"],
            self.cast.email() if self.foreign else self.email,
            self.order,
            wanted,
            alone,
            self.variants[1] if wanted == "exchange" else None,
        )
        # A plan that never gives an e-mail and yet confirms a change is one of a customer who is signed in.
        sure = self.plan and bool({"confirm", "refuse"} & set(self.intents))
        if mailed or not (sure or self._hit(self.shares.signed_in)):
            return [filed], None
        if not self.plan and not numbered and self._hit(self.shares.signed_in):
            other = self.draw.choice(
                [product for product in self._products() if product != self.product["id"]]
            )
            return [
                filed,
                self.cast.filed(
                    "delivered", other, self.email, self.cast.order_number(), "order_status", True
                ),
            ], self.email
        return [filed], self.email

    # What the customer says

    def _referred(self, reference: str) -> str | None:
        """The name behind "result 2", "same" or "second"."""
        known = {
            "result": [row["name"] for row in self.oracle.listed],
            "same": [self.oracle.subject],
        }.get(reference.split()[0], self.oracle.compared)
        place = (
            int(reference[-1]) - 1
            if reference[-1].isdigit()
            else {"second": 1, "third": 2}.get(reference, 0)
        )
        if place >= len(known):
            raise Resample
        return known[place]

    def _named(self, turn: Turn) -> list[str]:
        """Names of the products that a turn is about: of the agent's results, or for the turn's own slots."""
        references = [
            reference for reference in (turn.product, turn.product_2, turn.product_3) if reference
        ]
        if turn.intent == "compare" and len(references) == 1 and references[0].startswith("result"):
            references.append(f"result {int(references[0][-1]) + 1}")
        if references:
            names = [self._referred(reference) for reference in references]
        elif re.search(r"\{product(_id)?\}", turn.text):
            names = [
                self.cast.unknown_product(self.product["category"])
                if self.unknown
                else self.product["name"]
            ]
            others = sum(f"{{{slot}}}" in turn.text for slot in ("product_2", "product_3"))
            names += (
                [
                    self._row(product)["name"]
                    for product in self.cast.siblings(self.product["id"], others)
                ]
                if others
                else []
            )
        elif turn.intent == "compare":
            names = [row["name"] for row in self.oracle.listed[:2]]
        else:
            names = [self.oracle.subject]
        needed = {"compare": 2}.get(turn.intent, 1 if turn.intent in PRODUCT_INTENTS else 0)
        names = [name for name in names if name]
        if len(names) < needed:
            raise Resample
        return names

    def _values(self, turn: Turn, row: Row, names: list[str]) -> dict[str, str]:
        """What each slot can be filled with. row: the product that the turn is about."""
        variants = self.variants if row["id"] == self.product["id"] else self._variants(row)
        if turn.intent in SEARCH_INTENTS:
            variants = [
                name for name, number in self.store.stock(row["id"]).items() if number
            ] or variants
        department = self.store.departments[row["department"]]
        plural = department.categories[row["category"]].plural
        article = "an" if row["category"][0] in "aeiou" else "a"
        budget = self.cast.budget(row["price"], 1.02, 1.7)
        if not self.plan and self._hit(self.shares.empty):
            cheapest = self.store.one(
                "SELECT MIN(price) AS price FROM products WHERE category = ?", row["category"]
            )["price"]
            budget = self.cast.budget(cheapest, 0.5, 0.9)
        fits = turn.intent if turn.intent in ("return", "exchange") else "complaint"
        if turn.intent not in ("answer", "return", "exchange") and "{address}" in turn.text:
            self.address = self.cast.address()
        values = {
            "category": row["category"],
            "categories": plural,
            "department": department.title.lower(),
            "brand": row["brand"],
            "a_category": row["category"]
            if row["category"] == plural
            else f"{article} {row['category']}",
            "product": self.cast.product_words(self.product["name"]),
            "product_id": row["id"],
            "variant": variants[0],
            "variant_2": variants[min(1, len(variants) - 1)],
            "max_price": budget,
            "min_price": self.cast.budget(row["price"], 0.4, 0.9),
            "attribute": self.draw.choice(self._attributes(row)),
            "order": self.order,
            "email": self.email,
            "address": self.address,
        }
        for slot, known in (
            ("attribute", self._attributes(row)),
            (
                "reason",
                [r.text for r in self.script.reasons if r.split == self.split and fits in r.fits],
            ),
        ):
            values |= {slot: self.draw.choice(known)} if known else {}
        return values | {
            slot: self.cast.product_words(name)
            for slot, name in zip(("product", "product_2", "product_3"), names, strict=False)
        }

    def _attributes(self, row: Row) -> list[str]:
        """Attributes to choose from when asking about a product."""
        listed = self.store.attributes(row["id"])
        known = self.store.departments[row["department"]].categories[row["category"]].attributes
        missing = [name for name in known if name not in listed]
        if missing and (self._hit(self.shares.missing) or not listed):
            return missing
        told = [name for name, value in listed.items() if value not in ("yes", "no")]
        return list(listed) if self._hit(self.shares.yes_no) or not told else told

    def _goal(self, turn: Turn) -> UserGoal:
        """The turn in the customer's words, and what they stand for."""
        needed, names = slots(turn.text), self._named(turn)
        row = self.store.one("SELECT * FROM products WHERE name = ?", names[0]) if names else None
        values = self._values(turn, row or self.product, names)
        if (
            set(needed) - set(values)
            or "variant_2" in needed
            and values["variant"] == values["variant_2"]
        ):
            raise Resample
        if {"min_price", "max_price"} <= set(needed) and float(values["min_price"]) >= float(
            values["max_price"]
        ):
            raise Resample
        text = turn.text
        if self.vague and not self.asked:
            values["product"] = self.product["category"]
            text = re.sub(rf"(?i){NO_ARTICLE}{{product}}", "the {product}", text)
        text = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], text)
        self.wordings.append(turn.text)
        self.asked.append(turn.intent)
        # In the order in which the customer names them.
        spoken = sorted(
            (
                slot
                for slot in ("product", "product_id", "product_2", "product_3")
                if slot in needed
            ),
            key=lambda slot: turn.text.index(f"{{{slot}}}"),
        )
        takes = {
            "exchange": ("variant",),
            "answer": ("variant",),
            "stock": ("variant", "variant_2"),
        }.get(turn.intent, ())
        given = {
            name: values[name]
            for name in ("order", "email", "address", "attribute")
            if name in needed
        }
        return UserGoal(
            intent=turn.intent,
            text=text,
            products=tuple(values[slot] for slot in spoken) or tuple(names),
            conditions=self._conditions(turn, needed, values)
            if turn.intent in SEARCH_INTENTS
            else {},
            variants=tuple(values[name] for name in takes if name in needed),
            topic=turn.fixed.get("topic"),
            section=self._section(turn.fixed),
            **given,
        )

    def _section(self, fixed: dict[str, str]) -> str | None:
        """The number of the section whose heading the words imply."""
        numbers = {
            row["heading"]: row["section"] for row in self.store.policy(fixed.get("topic", ""))
        }
        return numbers[fixed["section"]] if "section" in fixed else None

    def _conditions(
        self, turn: Turn, needed: list[str], values: dict[str, str]
    ) -> dict[str, str | float]:
        """The arguments of a search that the words imply."""
        found = {name: values[name] for name in ("brand", "variant") if name in needed} | turn.fixed
        found |= {
            name: number(values[name]) for name in ("min_price", "max_price") if name in needed
        }
        if {"category", "categories", "a_category"} & set(needed):
            return found | {"category": values["category"]}
        return found | ({"category": values["department"]} if "department" in needed else {})

    # The dialogue

    def record(self, name: str) -> dict:
        """The dialogue as one line of data/sft."""
        for turn in self.turns:
            self._say(turn)
        if not self.plan:
            self._follow_up()
        if self.foreign and not self.oracle.refused and (self.plan or self.case):
            raise Resample
        return {
            "id": name,
            "intent": self.intents[0],
            "plan": self.plan.id if self.plan else None,
            "case": self.case,
            "split": self.split,
            "wordings": self.wordings,
            "turns": self.asked,
            "session": self.scene.model_dump(mode="json"),
            "messages": self.oracle.messages,
            "notes": self.oracle.notes,
            "end_state": self.oracle.session.store.state_hash(),
        }

    def _say(self, turn: Turn) -> None:
        lacks, offer = self.oracle.lacks, self.oracle.offer
        if (
            turn.intent == "answer"
            and lacks not in slots(turn.text)
            and not (self.oracle.refused and not lacks)
        ):
            raise Resample
        if lacks == "product" and self.product["name"] not in self.oracle.choices:
            raise Resample
        if turn.intent in ("confirm", "refuse") and (
            not offer or is_affirmation(turn.text, offer[0]) != (turn.intent == "confirm")
        ):
            raise Resample
        self.oracle.turn(self._goal(turn))

    def _follow_up(self) -> None:
        """The customer's further turns in a dialogue without a plan: what was asked for, a yes or a no, thanks."""
        for _ in range(4):
            if self.oracle.lacks:
                self._say(Turn(intent="answer", text=self._answer(self.oracle.lacks)))
            elif self.oracle.offer:
                self._say(self._decision())
        if self.case == "unconfirmed" and "kept" not in self.oracle.notes[-1]["acts"]:
            raise Resample
        if (
            not self.case
            and self._hit(self.shares.thanks)
            and self.script.said[self.split, "thanks"]
        ):
            self._say(
                Turn(intent="thanks", text=self.draw.choice(self.script.said[self.split, "thanks"]))
            )

    def _answer(self, lacks: str) -> str:
        """Words that supply what the agent asked for; people often write nothing but the thing itself."""
        kinds = {"order": ("order", "email order")}.get(lacks, (lacks,))
        texts = [text for kind in kinds for text in self.script.said[self.split, f"answer {kind}"]]
        return f"{{{lacks}}}" if not texts or self._hit(0.25) else self.draw.choice(texts)

    def _decision(self) -> Turn:
        share = self.shares.refuse_in_training if self.split == "train" else self.shares.refuse
        refuses = self.case == "unconfirmed" or self._hit(share)
        intent = "refuse" if refuses else "confirm"
        texts = [
            text
            for text in self.script.said[self.split, intent]
            if is_affirmation(text, self.oracle.offer[0]) != refuses
        ]
        return Turn(intent=intent, text=self.draw.choice(texts or ["no" if refuses else "yes"]))


def slots(text: str) -> list[str]:
    """Names of the slots in a text, sorted."""
    return sorted(set(re.findall(r"\{(\w+)\}", text)))


def number(text: str) -> int | float:
    return float(text) if "." in text else int(text)
