"""Make the dialogues of a data set: deal templates, and draw until texts and products fit."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.dialogues.entities import Resample
from crawl2cart.dialogues.episode import Episode
from crawl2cart.dialogues.episode_setup import PRODUCT_INTENTS, EpisodeContext, EventRates
from crawl2cart.dialogues.expert import WriteRefused
from crawl2cart.dialogues.templates import Templates, slots
from crawl2cart.shop.confirmation import short_name
from crawl2cart.shop.data_model import ORDER_INTENTS, Intent, Plan, Register, Split, Wording
from crawl2cart.shop.env import ShopSessions
from crawl2cart.shop.grounding import ShopVocabulary, number_phrases
from crawl2cart.shop.tool_schemas import compact

MAX_ATTEMPTS = 40  # draws for one template before the next one is dealt
# The intents from which a safety case is made.
SAFETY_INTENTS: dict[str, tuple[Intent, ...]] = {
    "injection": PRODUCT_INTENTS,
    "foreign": ORDER_INTENTS,
    "unconfirmed": ("cancel", "return", "exchange", "address"),
    "policy": ("policy",),
    "out_of_scope": ("out_of_scope",),
}
CASES = tuple(SAFETY_INTENTS)
# Cases whose templates have no slots: the same template again would be the same dialogue again.
SLOTLESS = ("policy", "out_of_scope")


@dataclass(frozen=True)
class Mixture:
    """Which dialogues are made, as weights that need not sum to one.

    intents: of the first turns without a plan. train_intents: the same in training.
    styles: of the assistant.
    """

    intents: Mapping[Intent, float]
    train_intents: Mapping[Intent, float]
    styles: Mapping[Register, float]

    def intent_weights(self, split: Split) -> dict[Intent, float]:
        """Return the weights of the intents that occur in a split."""
        weights = self.train_intents if split == "train" else self.intents
        return {intent: weight for intent, weight in weights.items() if weight}


class DialogueGenerator:
    """Makes dialogues of a shop. Equal folders, seeds and arguments give equal dialogues.

    max_characters: the length of a dialogue at most. `unused` names the templates that fitted no
    product.
    """

    def __init__(
        self,
        folder: Path | str,
        seed: int,
        max_characters: int,
        mixture: Mixture,
        rates: EventRates | None = None,
    ):
        self.mixture, self.max_characters, self._seed = mixture, max_characters, seed
        self.context = EpisodeContext(
            ShopSessions(folder), Templates(folder), mixture.styles, rates or EventRates()
        )
        self._decks: dict[tuple, list] = {}
        self.unused: set[str] = set()

    def split(self, split: Split, count: int) -> list[dict]:
        """Make `count` dialogues of a split.

        The share `multi_turn` of them follows plans; the others are spread over the intents.
        """
        weights = self.mixture.intent_weights(split)
        has_plans = bool(self.context.templates.plans[split])
        plans = round(count * self.context.rates.multi_turn) if has_plans else 0
        intents: list[Intent | None] = [None] * plans
        total = sum(weights.values())
        for intent, weight in weights.items():
            intents += [intent] * round((count - plans) * weight / total)
        rng = random.Random(f"{self._seed} {split}")
        while len(intents) < count:
            intents.append(rng.choice(list(weights)))
        rng.shuffle(intents)
        return [
            self._dialogue(split, f"{split}-{number:04d}", [intent, *weights])
            for number, intent in enumerate(intents[:count])
        ]

    def safety(self, split: Split, count: int) -> list[dict]:
        """Make `count` dialogues of each safety case; of a slotless one at most one a template."""
        dialogues = []
        for case, intents in SAFETY_INTENTS.items():
            wordings = self.context.templates.wordings[case, split]
            for number in range(min(count, len(wordings)) if case in SLOTLESS else count):
                first = number % len(intents)
                rotated = intents[first:] + intents[:first]
                dialogues.append(self._dialogue(split, f"{case}-{number:04d}", rotated, case))
        return dialogues

    def _deal(self, split: Split, intent: Intent | None, case: str | None) -> Plan | Wording | None:
        """Return the next plan (intent None) or wording; all are dealt equally often.

        None if there is none that fits.
        """
        key = split, intent, case
        if not self._decks.get(key):
            templates = self.context.templates
            deck = templates.plans[split] if intent is None else templates.wordings[intent, split]
            deck = [template for template in deck if template_name(template) not in self.unused]
            if case == "foreign":
                deck = [wording for wording in deck if "order" in slots(wording.text)]
            random.Random(f"{self._seed} {key}").shuffle(deck)
            self._decks[key] = deck
        return self._decks[key].pop() if self._decks[key] else None

    def _dialogue(
        self, split: Split, name: str, intents: Sequence[Intent | None], case: str | None = None
    ) -> dict:
        """Make a dialogue of the first of the intents for which a template fits the products.

        Raises UserError if none fits.
        """
        for intent in intents:
            while template := self._deal(split, intent, case):
                for attempt in range(MAX_ATTEMPTS):
                    rng = random.Random(f"{self._seed} {name} {attempt}")
                    try:
                        episode = Episode(self.context, split, template, intent, case, rng)
                        dialogue = episode.record(name)
                    except (Resample, WriteRefused):
                        continue
                    if characters(dialogue["messages"]) <= self.max_characters:
                        return dialogue
                self.unused.add(template_name(template))
        of_case = f" for the safety case {case}" if case else ""
        raise UserError(
            f"No {split} wording{of_case} fits the products of the shop. Add lines with "
            f'"split": "{split}" to wordings/*.jsonl; `crawl2cart shop check FOLDER` names the '
            "lines that do not fit and why."
        )


def template_name(template: Plan | Wording) -> str:
    """Return what identifies a template: a plan's id, a wording's text."""
    return template.id if isinstance(template, Plan) else template.text


def characters(messages: list[dict]) -> int:
    """Count the characters of all texts, calls and results."""
    return sum(
        len(message["content"]) + len(compact(message.get("tool_calls", "")))
        for message in messages
    )


def held_out_names(shops: ShopSessions, split: Split) -> set[str]:
    """Return the short names of the products that only this split may name."""
    query = "SELECT name FROM products WHERE id = ?"
    return {
        short_name(shops.store.one(query, product)["name"]) for product in shops.held_out[split]
    }


def shop_vocabulary(generator: DialogueGenerator) -> ShopVocabulary:
    """Collect the shop's names, facts and number phrases, against which replies are checked."""
    store = generator.context.shops.store

    def column(query: str) -> list[str]:
        return [row[0] for row in store.all(query)]

    facts = store.shop.facts.values()
    replies = generator.context.templates.replies
    return ShopVocabulary(
        products=[short_name(name) for name in column("SELECT name FROM products ORDER BY id")],
        brands=column("SELECT DISTINCT brand FROM products ORDER BY brand"),
        kinds=column("SELECT DISTINCT category FROM products ORDER BY category"),
        constants=[
            fact for value in facts for fact in (value if isinstance(value, list) else [value])
        ],
        phrases=sorted({phrase for reply in replies for phrase in number_phrases(reply.text)}),
    )
