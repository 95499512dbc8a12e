"""Measure the variety of texts: distinct sentences, shared runs of words, compression.

Texts from a template differ only in names and numbers, so both are masked before sentences are
compared. Repetitive text compresses well; `xz -9` shrinks English of many authors to over a third.
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
    """Return the two words by which customers call a product."""
    return " ".join(product.name.split()[:2])


def names_of(products: Iterable[Product], customers: Iterable[Customer]) -> re.Pattern:
    """Return a pattern that matches the names of products, brands, towns and customers."""
    names = set()
    for product in products:
        names |= {product.name, short(product), product.brand}
    for customer in customers:
        names |= {customer.address.town, *customer.name.split()}
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b")


def masked_sentences(text: str, names: re.Pattern) -> Iterator[str]:
    """Yield a text's sentences in lower case, with names, slots and numbers masked.

    Sentences that hold nothing else are left out.
    """
    text = re.sub(r"\{\w+\}|[\w.+-]+@[\w.-]+\w|\b[A-Z]{2,3}-\d+|\$?\d[\d.,:]*", MASK, text)
    for sentence in re.split(r"(?<=[.!?])[\"')]*\s+|\n", names.sub(MASK, text)):
        sentence = re.sub(r"(?<=[a-z,] )[A-Z]\w+", MASK, sentence)
        if re.search(r"\w", sentence):
            yield " ".join(re.findall(rf"[\w'{MASK}]+", sentence.casefold()))


def unique_share(texts: Iterable[str], names: re.Pattern) -> float:
    """Return the share of masked sentences that are distinct."""
    sentences = [sentence for text in texts for sentence in masked_sentences(text, names)]
    return len(set(sentences)) / len(sentences)


def runs(texts: dict[str, list[str]], length: int) -> dict[tuple[str, ...], set[tuple[str, int]]]:
    """Return every run of `length` words with its places: (key of texts, position in the list)."""
    places = defaultdict(set)
    for kind, entries in texts.items():
        for number, text in enumerate(entries):
            words = tokenize_words(text)
            for start in range(len(words) - length + 1):
                places[tuple(words[start : start + length])].add((kind, number))
    return places


def xz_ratio(texts: Iterable[str]) -> float:
    """Return how many times smaller `xz -9` makes the joined texts."""
    joined = "\n\n".join(texts).encode()
    return len(joined) / len(lzma.compress(joined, preset=9))
