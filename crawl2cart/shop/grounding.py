"""Find the facts in a reply, and whether a tool's result, the customer or the shop supports them.

A fact is a price, number, date, id, e-mail, phone number or product name.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from crawl2cart.core.files import read_json
from crawl2cart.shop.confirmation import contains_phrase

MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
# The facts in a text by their form. What fits several is the first of them; a number that belongs
# to none of the others is a bare number.
SPANS = re.compile(
    r"(?P<email>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)|(?P<phone>\b555-\d{4}\b)"
    r"|(?P<id>\b[A-Z]{1,5}-\d{2,8}\b)|(?P<tracking>\b[A-Z]{2,5}\d{6,}\b)"
    rf"|(?P<date>\b\d{{4}}-\d\d-\d\d\b|\b\d{{1,2}} (?:{MONTHS})(?: \d{{4}})?\b)"
    r"|(?P<price>\$ ?\d[\d,]*(?:\.\d+)?)|(?P<number>\d[\d,]*(?:\.\d+)?)"
)
MONEY_FIELDS = ("price", "total", "refund")  # of a tool's result


class ShopVocabulary:
    """The names and constant facts of a shop, against which replies are checked.

    products: short names. kinds: categories. constants: the facts of shop.json. phrases: numbers
    that reply templates state by themselves, with a word beside them ("out of 5").
    """

    def __init__(
        self,
        products: list[str],
        brands: list[str],
        kinds: list[str],
        constants: list[str],
        phrases: list[str],
    ):
        self.products, self.brands, self.kinds, self.constants = products, brands, kinds, constants
        self._constants_text = "\n".join(constants)
        self._phrases = set(phrases)
        word = r"[A-Z][\w'&-]*"
        # What looks like a product's name: a brand and a word, or two words before a category.
        self._product_like = re.compile(
            rf"\b(?:{any_of(brands)}) {word}|\b{word} {word}(?= (?:{any_of(kinds)})\b)"
        )

    @classmethod
    def read(cls, file: Path | str) -> "ShopVocabulary":
        """Read a vocabulary that build_sft has written."""
        return cls(**read_json(file))

    def to_dict(self) -> dict[str, list[str]]:
        """Return the vocabulary as JSON values."""
        return {
            "products": self.products,
            "brands": self.brands,
            "kinds": self.kinds,
            "constants": self.constants,
            "phrases": sorted(self._phrases),
        }

    def unsupported(self, reply: str, prompt: list[dict]) -> tuple[str, ...]:
        """Return the facts of a reply that nothing supports: no tool, no customer, no constant.

        A price needs a sum of money in a result or a number of the customer's: a stock of 12 is not
        $12. A review supports nothing.
        """
        sources = [evidence(message) for message in prompt if message["role"] in ("tool", "user")]
        known = "\n".join([self._constants_text, *sources])
        numbers = set(amounts(known, "price", "number")) | result_counts(prompt)
        money = set(amounts(self._constants_text, "price", "number"))
        money = money.union(*map(sums_of_money, prompt))
        missing = []
        for match in SPANS.finditer(reply):
            match match.lastgroup:
                case "number":
                    phrases = set(neighbours(reply, match)) & self._phrases
                    supported = parse_amount(match[0]) in numbers or phrases
                case "price":
                    supported = parse_amount(match[0]) in money
                case _:
                    supported = contains_phrase(known, match[0])
            if not supported:
                missing.append(match[0])
        lower = reply.casefold()
        names = {name for name in self.products if name in lower and contains_phrase(lower, name)}
        names |= {match[0].casefold() for match in self._product_like.finditer(reply)}
        return *missing, *sorted(name for name in names if not contains_phrase(known, name))


@cache
def read_vocabulary(file: str = "data/sft/lexicon.json") -> ShopVocabulary:
    """Read the vocabulary that build_sft wrote beside the dialogues, once."""
    return ShopVocabulary.read(file)


def any_of(words: list[str]) -> str:
    """Return a pattern for one of the words, the longest first."""
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True)))


def evidence(message: dict) -> str:
    """Return what a message proves: a customer's text, or a result without the review in it."""
    if message["role"] == "user":
        return message["content"]
    result = json.loads(message["content"])
    fields = {name: value for name, value in result.items() if name != "review"}
    return json.dumps(fields, ensure_ascii=False)


def amounts(text: str, *groups: str) -> Iterator[float]:
    """Yield the values of the spans of these groups."""
    for match in SPANS.finditer(text):
        if match.lastgroup in groups:
            yield parse_amount(match[0])


def sums_of_money(message: dict) -> set[float]:
    """Return the sums of money in a message.

    Of a customer's text these are all numbers, of a result those in a field for money or behind $.
    """
    match message["role"]:
        case "user":
            return set(amounts(message["content"], "price", "number"))
        case "tool":
            result = json.loads(evidence(message))
            values = [value for name, value in fields_of(result) if name in MONEY_FIELDS]
            sums = {parse_amount(value) for value in values if isinstance(value, str)}
            return sums | set(amounts(evidence(message), "price"))
    return set()


def fields_of(value: object) -> Iterator[tuple[str, object]]:
    """Yield the names and values of all fields of a JSON value, at any depth."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from fields_of(inner)


def review_of(prompt: list[dict]) -> str:
    """Return the review in the last tool's result, or an empty text."""
    results = [json.loads(message["content"]) for message in prompt if message["role"] == "tool"]
    return results[-1].get("review", "") if results else ""


def result_counts(prompt: list[dict]) -> set[float]:
    """Return how many results the searches had: "3 found" is a fact."""
    results = [json.loads(message["content"]) for message in prompt if message["role"] == "tool"]
    return {float(len(result["results"])) for result in results if "results" in result}


def neighbours(text: str, match: re.Match) -> list[str]:
    """Return a number with the word before it, and with the word after it."""
    before = re.search(r"(\w+|/)\W?$", text[: match.start()])
    after = re.match(r"\W?(\w+)", text[match.end() :])
    phrases = [f"{before[1].casefold()} {match[0]}"] if before else []
    return phrases + ([f"{match[0]} {after[1].casefold()}"] if after else [])


def number_phrases(text: str) -> list[str]:
    """Return each bare number of a text with the word before it, and with the word after it."""
    return [
        phrase
        for match in SPANS.finditer(text)
        if match.lastgroup == "number"
        for phrase in neighbours(text, match)
    ]


def parse_amount(span: str) -> float:
    """Return the value of a price or a number."""
    return float(re.sub(r"[$, ]", "", span))
