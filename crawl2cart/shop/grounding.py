"""What in a reply is a fact, and whether a tool's result, the customer or the shop's constants hold it."""

import json
import re
from functools import cache
from pathlib import Path

from crawl2cart.core.files import read_json
from crawl2cart.shop.confirmation import contains_phrase

MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
# What in a reply is a fact on its own; a bare number only if it belongs to none of the others.
SPANS = re.compile(
    r"(?P<email>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)|(?P<phone>\b555-\d{4}\b)|(?P<id>\b[A-Z]{1,5}-\d{2,8}\b)"
    r"|(?P<tracking>\b[A-Z]{2,5}\d{6,}\b)"
    rf"|(?P<date>\b\d{{4}}-\d\d-\d\d\b|\b\d{{1,2}} (?:{MONTHS})(?: \d{{4}})?\b)"
    r"|(?P<price>\$ ?\d[\d,]*(?:\.\d+)?)|(?P<number>\d[\d,]*(?:\.\d+)?)"
)
# Fields of a result that hold a sum of money.
SUMS = ("price", "total", "refund")


class ShopVocabulary:
    """The shop's names, and the numbers that its fragments state by themselves ("2 working days", "out of 5")."""

    def __init__(
        self,
        products: list[str],
        brands: list[str],
        kinds: list[str],
        constants: list[str],
        phrases: list[str],
    ):
        self.products, self.brands, self.kinds, self.constants = products, brands, kinds, constants
        self._said = "\n".join(constants)
        self._phrases = set(phrases)
        longest_first = lambda words: "|".join(map(re.escape, sorted(words, key=len, reverse=True)))  # noqa: E731
        name = r"[A-Z][\w'&-]*"
        self._invented = re.compile(
            rf"\b(?:{longest_first(brands)}) {name}|\b{name} {name}(?= (?:{longest_first(kinds)})\b)"
        )

    @classmethod
    def read(cls, file: Path | str) -> "ShopVocabulary":
        return cls(**read_json(file))

    def to_dict(self) -> dict[str, list[str]]:
        """All it knows, as JSON."""
        return {
            "products": self.products,
            "brands": self.brands,
            "kinds": self.kinds,
            "constants": self.constants,
            "phrases": sorted(self._phrases),
        }

    def unsupported(self, reply: str, prompt: list[dict]) -> tuple[str, ...]:
        """Prices, numbers, ids, dates, addresses and product names of a reply that neither a tool nor the customer has said.

        A price is only what a result gives as a sum of money, or the customer as a number: a stock of 12 is not $12. What a review says
        is no fact of the shop's.
        """
        known = "\n".join(
            [
                self._said,
                *(evidence(message) for message in prompt if message["role"] in ("tool", "user")),
            ]
        )
        values = {
            value(match[0])
            for match in SPANS.finditer(known)
            if match.lastgroup in ("price", "number")
        } | counts(prompt)
        money = {
            value(match[0])
            for match in SPANS.finditer(self._said)
            if match.lastgroup in ("price", "number")
        }
        money = money.union(*map(sums, prompt))
        missing = []
        for match in SPANS.finditer(reply):
            if match.lastgroup == "number":
                supported = value(match[0]) in values or set(around(reply, match)) & self._phrases
            else:
                supported = (
                    value(match[0]) in money
                    if match.lastgroup == "price"
                    else contains_phrase(known, match[0])
                )
            if not supported:
                missing.append(match[0])
        lower = reply.casefold()
        names = {name for name in self.products if name in lower and contains_phrase(lower, name)}
        names |= {match[0].casefold() for match in self._invented.finditer(reply)}
        return *missing, *sorted(name for name in names if not contains_phrase(known, name))


@cache
def read_vocabulary(file: str = "data/sft/lexicon.json") -> ShopVocabulary:
    """The lexicon that build_sft wrote beside the dialogues."""
    return ShopVocabulary.read(file)


def evidence(message: dict) -> str:
    """What a message proves: a customer's words, or a tool's result without the review in it."""
    if message["role"] == "user":
        return message["content"]
    result = json.loads(message["content"])
    return json.dumps(
        {name: entry for name, entry in result.items() if name != "review"}, ensure_ascii=False
    )


def sums(message: dict) -> set[float]:
    """The sums of money that a message states: a customer's numbers; of a tool's result what stands in a field for money or behind a $."""
    if message["role"] not in ("tool", "user"):
        return set()
    text = evidence(message)
    kinds = ("price", "number") if message["role"] == "user" else ("price",)
    found = {value(match[0]) for match in SPANS.finditer(text) if match.lastgroup in kinds}
    entries = [] if message["role"] == "user" else [json.loads(text)]
    while entries:
        match entries.pop():
            case list(inside):
                entries += inside
            case dict(fields):
                found |= {
                    value(amount)
                    for name, amount in fields.items()
                    if name in SUMS and isinstance(amount, str)
                }
                entries += fields.values()
    return found


def review_of(prompt: list[dict]) -> str:
    """The review that the last tool's result shows, if any."""
    results = [json.loads(message["content"]) for message in prompt if message["role"] == "tool"]
    return results[-1].get("review", "") if results else ""


def counts(prompt: list[dict]) -> set[float]:
    """How many results the searches had: "3 found" is a fact."""
    results = [json.loads(message["content"]) for message in prompt if message["role"] == "tool"]
    return {float(len(result["results"])) for result in results if "results" in result}


def around(text: str, match: re.Match) -> list[str]:
    """A number with the word before it, and with the word after it."""
    before = re.search(r"(\w+|/)\W?$", text[: match.start()])
    after = re.match(r"\W?(\w+)", text[match.end() :])
    pairs = [f"{before[1].casefold()} {match[0]}"] if before else []
    return pairs + ([f"{match[0]} {after[1].casefold()}"] if after else [])


def number_phrases(text: str) -> list[str]:
    """Each bare number of a text with the word before it, and with the word after it."""
    return [
        phrase
        for match in SPANS.finditer(text)
        if match.lastgroup == "number"
        for phrase in around(text, match)
    ]


def value(span: str) -> float:
    return float(re.sub(r"[$, ]", "", span))
