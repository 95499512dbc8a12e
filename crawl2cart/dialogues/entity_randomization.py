"""Give the entities of a dialogue new names, so that a model has to copy them.

A shop has a few hundred names, and training repeats each of them. A small model learns them by
heart and writes one that it knows where it should copy one that it has never met. With new names in
every dialogue only copying helps: what is frequent is learnt by heart, what is rare and bursty is
read from the context. Chan et al. 2022, https://arxiv.org/abs/2205.05055
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from random import Random

from crawl2cart.shop.grounding import ShopVocabulary

# Entities known by their form: an e-mail address, the number of a product or an order.
EMAIL, NUMBER = r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", r"\b[a-z]{1,5}-\d{2,8}\b"
CANDIDATES = 16  # pieces drawn, of which the one that was copied least is taken
HOSTS = ("example", "example.org", "example.net", "example.com")


class EntityRandomizer:
    """Replaces names, e-mails and numbers by new ones made of a tokenizer's pieces.

    vocabulary: the names of a shop. pieces: the texts of the tokenizer's tokens. copy_counts: how
    often each piece had to be copied so far; the caller counts. A rare piece is drawn more often,
    since a model cannot copy a token that it has never copied.
    """

    def __init__(self, vocabulary: ShopVocabulary, pieces: Sequence[str]):
        self.products = vocabulary.products
        self.brands = [brand.casefold() for brand in vocabulary.brands]
        self.kinds = sorted(map(str.casefold, vocabulary.kinds), key=len, reverse=True)
        self.copy_counts = Counter[str]()
        self.inner = [piece for piece in pieces if re.fullmatch("[a-z]{2,6}", piece)]
        starts = [piece for piece in pieces if re.fullmatch(" [A-Za-z][a-z]{1,5}", piece)]
        self._first = self.inner + starts
        self._joints = [piece for piece in pieces if re.fullmatch("[._-][a-z]{0,3}", piece)]

    def randomize(self, messages: list[dict], rng: Random, kinds: bool) -> list[dict]:
        """Return the messages with new entities of the same form and case, the same everywhere.

        kinds: whether what a product is ("kettle") gets a new name as well.
        """
        text = json.dumps(messages, ensure_ascii=False)
        pattern = "|".join([EMAIL, NUMBER, *self._name_patterns(text.casefold(), kinds)])
        replacements: dict[str, str] = {}

        def replacement(match: re.Match) -> str:
            old = match[0]
            key = old.casefold()
            if key not in replacements:
                replacements[key] = self._new_entity(key, rng)
            new = replacements[key]
            if old.isupper():
                return new.upper()
            return new.capitalize() if old[0].isupper() and "@" not in old else new

        return json.loads(re.sub(pattern, replacement, text, flags=re.IGNORECASE))

    def _name_patterns(self, text: str, kinds: bool) -> list[str]:
        """Return patterns for the names in a text. That of a kind leaves a plural its ending."""
        names = [name for name in (*self.products, *self.brands) if name in text]
        words = sorted({word for name in names for word in name.split()})
        patterns = [rf"\b{re.escape(word)}\b" for word in words]
        if kinds:
            patterns += [rf"\b{re.escape(kind)}" for kind in self.kinds if kind in text]
        return patterns

    def _new_entity(self, old: str, rng: Random) -> str:
        """Draw an entity of the same form, in lower case."""
        if "@" in old:
            return self._email(old, rng)
        if re.fullmatch(NUMBER, old):
            letters = re.sub(r"[a-z]", lambda _: chr(rng.randint(ord("a"), ord("z"))), old)
            return re.sub(r"\d", lambda _: str(rng.randint(0, 9)), letters)
        return " ".join(self._word(rng) for _ in old.split())

    def _email(self, old: str, rng: Random) -> str:
        user = self._word(rng)
        user += rng.choice(("", self.rare(self._joints, rng)))
        user += self._word(rng, max_pieces=2)
        user += rng.choice(("", str(rng.randint(1, 99)), str(rng.randint(1940, 2010))))
        if rng.random() < 0.5:
            return f"{user}@{old.partition('@')[2]}"
        return f"{user}@{self._word(rng)}.{rng.choice(HOSTS)}"

    def _word(self, rng: Random, max_pieces: int = 4) -> str:
        rest = [self.rare(self.inner, rng) for _ in range(rng.randint(0, max_pieces - 1))]
        return "".join([self.rare(self._first, rng).strip().casefold(), *rest])

    def rare(self, pieces: Sequence[str], rng: Random) -> str:
        """Draw some pieces and return the one that was copied least so far."""
        return min(rng.choices(pieces, k=CANDIDATES), key=self.copy_counts.__getitem__)
