"""New names for the things of a dialogue, so that a model has to copy them.

A shop has a few hundred names and training says each of them often: a small model learns them by heart, and then writes one that it
knows where it should copy one that it meets for the first time. Where every dialogue has names of its own, only copying helps: what is
common is learnt by heart, what is rare and comes in bursts is read from the context. Chan et al. 2022, https://arxiv.org/abs/2205.05055
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from random import Random

from crawl2cart.shop.grounding import ShopVocabulary

# Things that are known by their form: an e-mail address, the number of a product or an order.
EMAIL, NUMBER = r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", r"\b[a-z]{1,5}-\d{2,8}\b"
DRAWS = 16  # of which the piece that was copied least is taken
HOSTS = ("example", "example.org", "example.net", "example.com")


class EntityRandomizer:
    """lexicon: the names of a shop. pieces: the texts of a tokenizer's tokens, of which new words are made.

    practised: how often each piece was to be copied so far, which the caller counts. What rarely was is drawn more often: a model that
    never copied a token can not copy it, and names are made of any.
    """

    def __init__(self, lexicon: ShopVocabulary, pieces: Sequence[str]):
        self.lexicon, self.practised = lexicon, Counter[str]()
        self.brands = [brand.casefold() for brand in lexicon.brands]
        self.kinds = [kind.casefold() for kind in lexicon.kinds]
        self.inner = [piece for piece in pieces if re.fullmatch("[a-z]{2,6}", piece)]
        self.first = self.inner + [
            piece for piece in pieces if re.fullmatch(" [A-Za-z][a-z]{1,5}", piece)
        ]
        self.joints = [piece for piece in pieces if re.fullmatch("[._-][a-z]{0,3}", piece)]

    def rare(self, pieces: Sequence[str], random: Random) -> str:
        return min(random.choices(pieces, k=DRAWS), key=self.practised.__getitem__)

    def word(self, random: Random, most: int = 4) -> str:
        rest = [self.rare(self.inner, random) for _ in range(random.randint(0, most - 1))]
        return "".join([self.rare(self.first, random).strip().casefold(), *rest])

    def renamed(self, messages: list[dict], random: Random, kinds: bool) -> list[dict]:
        """The messages with each name, e-mail and number replaced, wherever it is said, by a new one of the same form and case.

        kinds: whether what a product is ("kettle") gets a new name, too.
        """
        text = json.dumps(messages, ensure_ascii=False)
        seen = text.casefold()
        words = {word for name in self.lexicon.products if name in seen for word in name.split()}
        words |= {word for brand in self.brands if brand in seen for word in brand.split()}
        named = [rf"\b{re.escape(word)}\b" for word in sorted(words)]
        # A plural keeps its ending.
        named += [
            rf"\b{re.escape(kind)}"
            for kind in sorted(self.kinds, key=len, reverse=True)
            if kinds and kind in seen
        ]
        new: dict[str, str] = {}

        def replace(found: re.Match) -> str:
            old = found[0]
            if old.casefold() not in new:
                new[old.casefold()] = self.like(old.casefold(), random)
            name = new[old.casefold()]
            return (
                name.upper()
                if old.isupper()
                else name.capitalize()
                if old[0].isupper() and "@" not in old
                else name
            )

        return json.loads(
            re.sub("|".join([EMAIL, NUMBER, *named]), replace, text, flags=re.IGNORECASE)
        )

    def like(self, old: str, random: Random) -> str:
        """A new thing of the form of an old one, in small letters."""
        if "@" in old:
            user = (
                self.word(random)
                + random.choice(("", self.rare(self.joints, random)))
                + self.word(random, 2)
            )
            user += random.choice(("", str(random.randint(1, 99)), str(random.randint(1940, 2010))))
            host = (
                old.partition("@")[2]
                if random.random() < 0.5
                else f"{self.word(random)}.{random.choice(HOSTS)}"
            )
            return f"{user}@{host}"
        if re.fullmatch(NUMBER, old):
            return re.sub(
                r"\d",
                lambda _: str(random.randint(0, 9)),
                re.sub(r"[a-z]", lambda _: chr(random.randint(ord("a"), ord("z"))), old),
            )
        return " ".join(self.word(random) for _ in old.split())
