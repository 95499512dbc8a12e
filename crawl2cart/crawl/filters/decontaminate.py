"""Keeps what the agent is tested with out of what its language model reads.

Compared are the validation and test wordings of the shop and the turns of its validation and test plans, as words in
lower case without punctuation. A slot such as {product} stands for any words, so a wording is compared in the pieces
between its slots: each 13 words in a row of a piece that has so many (Brown et al. 2020, appendix C,
https://arxiv.org/abs/2005.14165), a piece of 8 to 12 words as a whole. Shorter pieces ("how much is the") are everyday
English and say nothing; they are not compared. Both lengths are parameters.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_jsonl
from crawl2cart.crawl.dedup.fingerprint import plain_words

SLOT = re.compile(r"\{[^{}]*\}")
HELD_OUT = ("validation", "test")


class HeldOut:
    """The word sequences that no page may hold.

    words: the longest sequence compared. least_words: the shortest piece compared. Raises UserError if that is longer.
    """

    def __init__(self, texts: Iterator[str], words: int, least_words: int):
        if least_words > words:
            raise UserError(
                f"filter.decontamination.min_ngram is {least_words}, but filter.decontamination.ngram, the most that are "
                f"compared in a row, only {words}. Make the first no larger than the second."
            )
        self.least_words = least_words
        self.grams: dict[
            tuple[str, ...], set[tuple[str, ...]]
        ] = {}  # by their first words, least_words of them
        for piece in (piece for text in texts for piece in pieces(text)):
            if len(piece) >= least_words:
                length = min(words, len(piece))
                for start in range(len(piece) - length + 1):
                    gram = piece[start : start + length]
                    self.grams.setdefault(gram[:least_words], set()).add(gram)
        # A page is looked at closely only where so many words in a row are all words of held-out texts.
        self.vocabulary = {word for grams in self.grams.values() for gram in grams for word in gram}
        self.run = re.compile(f"1{{{least_words},}}")

    def __len__(self) -> int:
        return sum(map(len, self.grams.values()))

    def found_in(self, text: str) -> str:
        """The first of the sequences that the text holds, or ""."""
        words = plain_words(text).split()
        known = "".join("1" if word in self.vocabulary else "0" for word in words)
        for run in self.run.finditer(known):
            for start in range(run.start(), run.end() - self.least_words + 1):
                for gram in sorted(
                    self.grams.get(tuple(words[start : start + self.least_words]), ())
                ):
                    if tuple(words[start : start + len(gram)]) == gram:
                        return " ".join(gram)
        return ""


def pieces(text: str) -> Iterator[tuple[str, ...]]:
    """The words between the slots of a wording."""
    return (tuple(plain_words(piece).split()) for piece in SLOT.split(text))


def read_held_out(wordings: Path, plans: Path) -> Iterator[str]:
    """The texts of the wordings and of the plans' turns that are held out for validation and test."""
    for file in sorted(wordings.glob("*.jsonl")):
        yield from (row["text"] for row in read_jsonl(file) if row["split"] in HELD_OUT)
    for plan in read_jsonl(plans):
        if plan["split"] in HELD_OUT:
            yield from (turn["text"] for turn in plan["turns"])
