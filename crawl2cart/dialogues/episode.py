"""Make one dialogue: a scripted customer fills templates, the scripted agent calls real tools."""

import random
import re
from sqlite3 import Row

from crawl2cart.dialogues.entities import Resample
from crawl2cart.dialogues.episode_setup import PRODUCT_INTENTS, EpisodeContext, EpisodeSetup
from crawl2cart.dialogues.expert import ScriptedAgent, UserGoal
from crawl2cart.dialogues.reply_sampler import ReplySampler
from crawl2cart.dialogues.templates import slots
from crawl2cart.shop.confirmation import is_affirmation
from crawl2cart.shop.data_model import Intent, Plan, Split, Turn, Wording

SEARCH_INTENTS = ("search", "recommend", "gift")
NAME_SLOTS = ("product", "product_2", "product_3")
CATEGORY_SLOTS = {"category", "categories", "a_category"}
# Variants that a goal of this intent takes from the customer's text.
VARIANT_SLOTS = {
    "exchange": ("variant",),
    "answer": ("variant",),
    "stock": ("variant", "variant_2"),
}
BARE_ANSWER_RATE = 0.25  # how often a customer answers a question with the value alone
# What stands before a product that has no article yet.
NO_ARTICLE = "".join(
    rf"(?<!\b{article} )" for article in ("the", "a", "an", "your", "this", "that", "my", "our")
)


class Episode:
    """Makes one attempt at one dialogue. Arguments and errors are those of EpisodeSetup."""

    def __init__(
        self,
        context: EpisodeContext,
        split: Split,
        template: Plan | Wording,
        intent: Intent | None,
        case: str | None,
        rng: random.Random,
    ):
        self.setup = EpisodeSetup(context, split, template, intent, case, rng)
        self.templates, self.rates = context.templates, context.rates
        self.store, self.entities = self.setup.store, self.setup.entities
        self.split, self.rng = split, rng
        self.plan, self.case = self.setup.plan, case
        self.address = self.setup.address
        self.wordings: list[str] = []
        self.turn_intents: list[str] = []
        weights = context.style_weights
        style = rng.choices(list(weights), list(weights.values()))[0]
        replies = ReplySampler(self.templates.replies, style, rng)
        self.agent = ScriptedAgent(context.shops.session(self.setup.scenario), replies, rng)

    def record(self, name: str) -> dict:
        """Play the dialogue and return it as a line of data/sft. Raises Resample, WriteRefused."""
        for turn in self.setup.turns:
            self._take_turn(turn)
        if not self.plan:
            self._follow_up()
        was_rejected = bool(self.agent.rejected_orders)
        if self.setup.has_foreign_order and not was_rejected and (self.plan or self.case):
            raise Resample
        return {
            "id": name,
            "intent": self.setup.intents[0],
            "plan": self.plan.id if self.plan else None,
            "case": self.case,
            "split": self.split,
            "wordings": self.wordings,
            "turns": self.turn_intents,
            "session": self.setup.scenario.model_dump(mode="json"),
            "messages": self.agent.messages,
            "notes": self.agent.notes,
            "end_state": self.agent.session.store.state_hash(),
        }

    def _take_turn(self, turn: Turn) -> None:
        """Let the customer take a turn and the agent reply. Raises Resample if it has no sense."""
        missing, proposed = self.agent.missing_slot, self.agent.proposed
        if turn.intent == "answer" and missing not in slots(turn.text):
            # Without a question, an answer can only be a second try to identify oneself.
            if missing or not self.agent.rejected_orders:
                raise Resample
        if missing == "product" and self.setup.product["name"] not in self.agent.candidates:
            raise Resample
        if turn.intent in ("confirm", "refuse"):
            if not proposed:
                raise Resample
            if is_affirmation(turn.text, proposed.tool) != (turn.intent == "confirm"):
                raise Resample
        self.agent.respond(self._goal(turn))

    # The later turns of a dialogue without a plan

    def _follow_up(self) -> None:
        """Let the customer answer questions, confirm or decline a change, and say thanks."""
        for _ in range(4):
            if self.agent.missing_slot:
                text = self._answer(self.agent.missing_slot)
                self._take_turn(Turn(intent="answer", text=text))
            elif self.agent.proposed:
                self._take_turn(self._decision())
        if self.case == "unconfirmed" and "kept" not in self.agent.notes[-1]["acts"]:
            raise Resample
        if not self.case and self.setup.happens(self.rates.thanks):
            texts = self.templates.follow_ups[self.split, "thanks"]
            if texts:
                self._take_turn(Turn(intent="thanks", text=self.rng.choice(texts)))

    def _answer(self, slot: str) -> str:
        """Draw a template that supplies a value, or the bare slot."""
        kinds = ("order", "email order") if slot == "order" else (slot,)
        follow_ups = self.templates.follow_ups
        texts = [text for kind in kinds for text in follow_ups[self.split, f"answer {kind}"]]
        if not texts or self.setup.happens(BARE_ANSWER_RATE):
            return f"{{{slot}}}"
        return self.rng.choice(texts)

    def _decision(self) -> Turn:
        """Draw whether the customer declines the proposed change, and in which words."""
        in_training = self.split == "train"
        rate = self.rates.decline_in_training if in_training else self.rates.decline
        declines = self.case == "unconfirmed" or self.setup.happens(rate)
        intent = "refuse" if declines else "confirm"
        texts = [
            text
            for text in self.templates.follow_ups[self.split, intent]
            if is_affirmation(text, self.agent.proposed.tool) != declines
        ]
        default = "no" if declines else "yes"
        return Turn(intent=intent, text=self.rng.choice(texts or [default]))

    # From a template to a goal

    def _goal(self, turn: Turn) -> UserGoal:
        """Fill the slots of a turn and return its text with the values. Raises Resample."""
        used, names = slots(turn.text), self._product_names(turn)
        row = self.store.one("SELECT * FROM products WHERE name = ?", names[0]) if names else None
        values = self._slot_values(turn, row or self.setup.product, names)
        check_values(used, values)
        template = turn.text
        if self.setup.names_category and not self.turn_intents:
            values["product"] = self.setup.product["category"]
            template = re.sub(rf"(?i){NO_ARTICLE}{{product}}", "the {product}", template)
        text = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)
        self.wordings.append(turn.text)
        self.turn_intents.append(turn.intent)
        # In the order in which the customer names them.
        product_slots = sorted(
            (slot for slot in ("product", "product_id", "product_2", "product_3") if slot in used),
            key=lambda slot: turn.text.index(f"{{{slot}}}"),
        )
        variant_slots = VARIANT_SLOTS.get(turn.intent, ())
        is_search = turn.intent in SEARCH_INTENTS
        return UserGoal(
            intent=turn.intent,
            text=text,
            products=tuple(values[slot] for slot in product_slots) or tuple(names),
            conditions=search_conditions(turn, used, values) if is_search else {},
            variants=tuple(values[slot] for slot in variant_slots if slot in used),
            topic=turn.fixed.get("topic"),
            section=self._section_number(turn.fixed),
            **{
                slot: values[slot]
                for slot in ("order", "email", "address", "attribute")
                if slot in used
            },
        )

    def _product_names(self, turn: Turn) -> list[str]:
        """Return the names of the products that a turn is about. Raises Resample if one lacks."""
        references = [name for name in (turn.product, turn.product_2, turn.product_3) if name]
        is_comparison = turn.intent == "compare"
        if is_comparison and len(references) == 1 and references[0].startswith("result"):
            references.append(f"result {int(references[0][-1]) + 1}")
        if references:
            names = [self._resolve(reference) for reference in references]
        elif re.search(r"\{product(_id)?\}", turn.text):
            names = self._drawn_names(turn)
        elif is_comparison:
            names = [row["name"] for row in self.agent.search_results[:2]]
        else:
            names = [self.agent.current_product]
        needed = 2 if is_comparison else 1 if turn.intent in PRODUCT_INTENTS else 0
        names = [name for name in names if name]
        if len(names) < needed:
            raise Resample
        return names

    def _resolve(self, reference: str) -> str | None:
        """Return the product name behind "result 2", "same" or "second". Raises Resample."""
        if reference.startswith("result"):
            names = [row["name"] for row in self.agent.search_results]
        elif reference == "same":
            names = [self.agent.current_product]
        else:
            names = self.agent.compared
        if reference[-1].isdigit():
            place = int(reference[-1]) - 1
        else:
            place = {"second": 1, "third": 2}.get(reference, 0)
        if place >= len(names):
            raise Resample
        return names[place]

    def _drawn_names(self, turn: Turn) -> list[str]:
        """Return the episode's product, and as many of its category as the turn names beside it."""
        product = self.setup.product
        if self.setup.names_unknown_product:
            names = [self.entities.unknown_product(product["category"])]
        else:
            names = [product["name"]]
        count = sum(f"{{{slot}}}" in turn.text for slot in ("product_2", "product_3"))
        if count:
            siblings = self.entities.siblings(product["id"], count)
            names += [self.setup.product_row(sibling)["name"] for sibling in siblings]
        return names

    def _slot_values(self, turn: Turn, product: Row, names: list[str]) -> dict[str, str]:
        """Draw a value for every slot. product: the one that the turn is about."""
        variants = self._variants(turn, product)
        department = self.store.departments[product["department"]]
        category = product["category"]
        plural = department.categories[category].plural
        article = "an" if category[0] in "aeiou" else "a"
        max_price = self._max_price(product)
        is_new_address = turn.intent not in ("answer", "return", "exchange")
        if is_new_address and "{address}" in turn.text:
            self.address = self.entities.address()
        values = {
            "category": category,
            "categories": plural,
            "department": department.title.lower(),
            "brand": product["brand"],
            "a_category": category if category == plural else f"{article} {category}",
            "product": self.entities.product_mention(self.setup.product["name"]),
            "product_id": product["id"],
            "variant": variants[0],
            "variant_2": variants[min(1, len(variants) - 1)],
            "max_price": max_price,
            "min_price": self.entities.budget(product["price"], 0.4, 0.9),
            "order": self.setup.order_number,
            "email": self.setup.email,
            "address": self.address,
        }
        # A first draw of the attribute is dropped: without it all later draws would change.
        self._choose(self._attribute_names(product))
        attributes = self._attribute_names(product)
        for slot, choices in (("attribute", attributes), ("reason", self._reasons(turn))):
            if choices:
                values[slot] = self.rng.choice(choices)
        for slot, name in zip(NAME_SLOTS, names, strict=False):
            values[slot] = self.entities.product_mention(name)
        return values

    def _choose(self, choices: list[str]) -> str | None:
        return self.rng.choice(choices) if choices else None

    def _variants(self, turn: Turn, product: Row) -> list[str]:
        """Return the product's variants, the wanted one first; in a search those in stock."""
        is_main_product = product["id"] == self.setup.product["id"]
        variants = self.setup.variants if is_main_product else self.setup.shuffled_variants(product)
        if turn.intent in SEARCH_INTENTS:
            stock = self.store.stock(product["id"])
            variants = [name for name, count in stock.items() if count] or variants
        return variants

    def _max_price(self, product: Row) -> str:
        """Draw a budget above the product's price, or one below all prices of its category."""
        budget = self.entities.budget(product["price"], 1.02, 1.7)
        if self.plan or not self.setup.happens(self.rates.empty_search):
            return budget
        cheapest = self.store.one(
            "SELECT MIN(price) AS price FROM products WHERE category = ?", product["category"]
        )
        return self.entities.budget(cheapest["price"], 0.5, 0.9)

    def _attribute_names(self, product: Row) -> list[str]:
        """Return the attributes from which a question about the product is drawn."""
        listed = self.store.attributes(product["id"])
        department = self.store.departments[product["department"]]
        known = department.categories[product["category"]].attributes
        unlisted = [name for name in known if name not in listed]
        rate = self.rates.unlisted_attribute
        if unlisted and (self.setup.happens(rate) or not listed):
            return unlisted
        telling = [name for name, value in listed.items() if value not in ("yes", "no")]
        if self.setup.happens(self.rates.yes_no_attribute) or not telling:
            return list(listed)
        return telling

    def _reasons(self, turn: Turn) -> list[str]:
        """Return the reasons of this split that fit a return, an exchange or a complaint."""
        purpose = turn.intent if turn.intent in ("return", "exchange") else "complaint"
        return [
            reason.text
            for reason in self.templates.reasons
            if reason.split == self.split and purpose in reason.fits
        ]

    def _section_number(self, fixed: dict[str, str]) -> str | None:
        """Return the number of the section whose heading the text implies."""
        if "section" not in fixed:
            return None
        sections = self.store.policy(fixed["topic"])
        return {row["heading"]: row["section"] for row in sections}[fixed["section"]]


def check_values(used: list[str], values: dict[str, str]) -> None:
    """Raise Resample if a slot has no value, or if two values contradict each other."""
    if set(used) - set(values):
        raise Resample
    if "variant_2" in used and values["variant"] == values["variant_2"]:
        raise Resample
    if {"min_price", "max_price"} <= set(used):
        if float(values["min_price"]) >= float(values["max_price"]):
            raise Resample


def search_conditions(
    turn: Turn, used: list[str], values: dict[str, str]
) -> dict[str, str | float]:
    """Return the arguments of a search that a turn implies."""
    conditions = {slot: values[slot] for slot in ("brand", "variant") if slot in used} | turn.fixed
    for slot in ("min_price", "max_price"):
        if slot in used:
            conditions[slot] = parse_number(values[slot])
    if CATEGORY_SLOTS & set(used):
        conditions["category"] = values["category"]
    elif "department" in used:
        conditions["category"] = values["department"]
    return conditions


def parse_number(text: str) -> int | float:
    """Return the number, whole where it is written without a point."""
    return float(text) if "." in text else int(text)
