"""Whether prose was written or stamped: how many sentences differ, what two texts share, how far it compresses.

A text made from a template keeps its sentences and changes names and numbers in them, so both are masked before sentences
are compared. What repeats itself compresses: English of many hands shrinks by `xz -9` to a bit more than a third.
"""

import lzma
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from crawl2cart.shop.data_model import Customer, Product

MASK = "@"


def tokenize_words(text: str) -> list[str]:
    return re.findall(r"[\w'{}]+", text.casefold())


def short(product: Product) -> str:
    """The two words by which customers call it."""
    return " ".join(product.name.split()[:2])


def names_of(products: Iterable[Product], customers: Iterable[Customer]) -> re.Pattern:
    """A pattern for the names of products, brands, towns and customers."""
    found = {part for product in products for part in (product.name, short(product), product.brand)}
    found |= {
        part for customer in customers for part in (customer.address.town, *customer.name.split())
    }
    return re.compile(
        r"\b(?:" + "|".join(map(re.escape, sorted(found, key=len, reverse=True))) + r")\b"
    )


def masked_sentences(text: str, names: re.Pattern) -> Iterator[str]:
    """The sentences of a text in lower case without names, slots and numbers; those that hold nothing else are left out."""
    text = re.sub(r"\{\w+\}|[\w.+-]+@[\w.-]+\w|\b[A-Z]{2,3}-\d+|\$?\d[\d.,:]*", MASK, text)
    for sentence in re.split(r"(?<=[.!?])[\"')]*\s+|\n", names.sub(MASK, text)):
        sentence = re.sub(r"(?<=[a-z,] )[A-Z]\w+", MASK, sentence)
        if re.search(r"\w", sentence):
            yield " ".join(re.findall(rf"[\w'{MASK}]+", sentence.casefold()))


def unique_share(texts: Iterable[str], names: re.Pattern) -> float:
    """Different masked sentences by all masked sentences."""
    sentences = [sentence for text in texts for sentence in masked_sentences(text, names)]
    return len(set(sentences)) / len(sentences)


def runs(texts: dict[str, list[str]], length: int) -> dict[tuple[str, ...], set[tuple[str, int]]]:
    """Every run of so many equal words with the places in which it stands: (key, position in the list)."""
    places = defaultdict(set)
    for kind, entries in texts.items():
        for number, text in enumerate(entries):
            found = tokenize_words(text)
            for start in range(len(found) - length + 1):
                places[tuple(found[start : start + length])].add((kind, number))
    return places


def xz_ratio(texts: Iterable[str]) -> float:
    """How many times smaller `xz -9` makes the texts, one after another."""
    joined = "\n\n".join(texts).encode()
    return len(joined) / len(lzma.compress(joined, preset=9))
