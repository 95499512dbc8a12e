"""Makes the data set's dialogues: deals plans and wordings, and draws until words, products and orders go together."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.dialogues.entities import Resample
from crawl2cart.dialogues.episode import (
    PRODUCT_INTENTS,
    Episode,
    EpisodeContext,
    EventRates,
    Templates,
    slots,
)
from crawl2cart.dialogues.expert import Unclear
from crawl2cart.shop.confirmation import short
from crawl2cart.shop.data_model import ORDER_INTENTS, Intent, Plan, Register, Split, Wording
from crawl2cart.shop.env import ShopSessions
from crawl2cart.shop.grounding import ShopVocabulary, number_phrases
from crawl2cart.shop.tool_schemas import compact

ATTEMPTS = 40
CASES = ("injection", "foreign", "unconfirmed", "policy", "out_of_scope")
SLOTLESS = (
    "policy",
    "out_of_scope",
)  # cases of nothing but their words: said again, one would be the same case again


@dataclass(frozen=True)
class Mixture:
    """What dialogues are made of, in parts of a sum. intents: those of dialogues that follow no plan. training: the same in training.
    registers: how the assistant speaks."""

    intents: Mapping[Intent, float]
    training: Mapping[Intent, float]
    registers: Mapping[Register, float]

    def of(self, split: Split) -> dict[Intent, float]:
        """The parts of the intents in a split."""
        return dict(self.training if split == "train" else self.intents)


class DialogueGenerator:
    """Makes dialogues of a shop. Equal seeds, folders and arguments give equal dialogues."""

    def __init__(
        self,
        folder: Path | str,
        seed: int,
        max_characters: int,
        mix: Mixture,
        shares: EventRates | None = None,
    ):
        self.mix, self.world = (
            mix,
            EpisodeContext(
                ShopSessions(folder), Templates(folder), mix.registers, shares or EventRates()
            ),
        )
        self.max_characters, self._seed = max_characters, seed
        self._decks: dict[tuple, list] = {}
        self.unused: set[str] = set()  # wordings and plans that fitted no draw

    def split(self, split: Split, count: int) -> list[dict]:
        """`count` dialogues of a split: the stated share follows plans, the others are spread over the intents by weight."""
        weights = {intent: weight for intent, weight in self.mix.of(split).items() if weight}
        plans = round(count * self.world.shares.plan) if self.world.script.plans[split] else 0
        total = sum(weights.values())
        kinds = [None] * plans
        for intent, weight in weights.items():
            kinds += [intent] * round((count - plans) * weight / total)
        draw = random.Random(f"{self._seed} {split}")
        while len(kinds) < count:
            kinds.append(draw.choice(list(weights)))
        draw.shuffle(kinds)
        return [
            self._dialogue(split, f"{split}-{number:04d}", [kind, *weights])
            for number, kind in enumerate(kinds[:count])
        ]

    def safety(self, split: Split, count: int) -> list[dict]:
        """`count` dialogues for each of the CASES that a safe agent has to stand; of the SLOTLESS, at most one for each wording."""
        intents = {
            "injection": PRODUCT_INTENTS,
            "foreign": ORDER_INTENTS,
            "unconfirmed": ("cancel", "return", "exchange", "address"),
            "policy": ("policy",),
            "out_of_scope": ("out_of_scope",),
        }
        dialogues = []
        for case in CASES:
            different = len(self.world.script.wordings[case, split]) if case in SLOTLESS else count
            for number in range(min(count, different)):
                first = number % len(intents[case])
                dialogues.append(
                    self._dialogue(
                        split,
                        f"{case}-{number:04d}",
                        intents[case][first:] + intents[case][:first],
                        case,
                    )
                )
        return dialogues

    def _deal(self, split: Split, intent: Intent | None, case: str | None) -> Plan | Wording | None:
        """The next plan (intent None) or wording of its kind; all are used equally often. None if there is none that fits."""
        key = split, intent, case
        if not self._decks.get(key):
            cards = list(
                self.world.script.plans[split]
                if intent is None
                else self.world.script.wordings[intent, split]
            )
            if case == "foreign":
                cards = [card for card in cards if "order" in slots(card.text)]
            cards = [
                card
                for card in cards
                if (card.id if intent is None else card.text) not in self.unused
            ]
            random.Random(f"{self._seed} {key}").shuffle(cards)
            self._decks[key] = cards
        return self._decks[key].pop() if self._decks[key] else None

    def _dialogue(
        self, split: Split, name: str, intents: Sequence[Intent | None], case: str | None = None
    ) -> dict:
        """A dialogue of the first of the intents that has words for this shop's products. Raises UserError if none has."""
        for intent in intents:
            while card := self._deal(split, intent, case):
                for attempt in range(ATTEMPTS):
                    draw = random.Random(f"{self._seed} {name} {attempt}")
                    try:
                        dialogue = Episode(self.world, split, card, intent, case, draw).record(name)
                        if characters(dialogue["messages"]) <= self.max_characters:
                            return dialogue
                    except (Resample, Unclear):
                        continue
                self.unused.add(card.id if intent is None else card.text)
        raise UserError(
            f"No {split} wording fits the products of the shop{f' in the case {case}' if case else ''}. wordings/*.jsonl need "
            f'lines with "split": "{split}"; `python -m crawl2cart.dialogues.validate` says what else may be wrong.'
        )


def characters(messages: list[dict]) -> int:
    """Letters of what is said, called and returned."""
    return sum(
        len(message["content"]) + len(compact(message.get("tool_calls", "")))
        for message in messages
    )


def named_products(shops: ShopSessions, split: Split) -> set[str]:
    """The first two words, which no other product shares, of the products that only this split may name."""
    return {
        short(shops.store.one("SELECT name FROM products WHERE id = ?", product)["name"])
        for product in shops.held_out[split]
    }


def shop_lexicon(maker: DialogueGenerator) -> ShopVocabulary:
    """What the checks of replies need to know of a shop."""
    store, shop = maker.world.shops.store, maker.world.shops.store.shop
    column = lambda sql: [row[0] for row in store.all(sql)]  # noqa: E731
    return ShopVocabulary(
        products=[short(name) for name in column("SELECT name FROM products ORDER BY id")],
        brands=column("SELECT DISTINCT brand FROM products ORDER BY brand"),
        kinds=column("SELECT DISTINCT category FROM products ORDER BY category"),
        constants=[
            fact
            for value in shop.facts.values()
            for fact in (value if isinstance(value, list) else [value])
        ],
        phrases=sorted(
            {
                phrase
                for reply in maker.world.script.replies
                for phrase in number_phrases(reply.text)
            }
        ),
    )
