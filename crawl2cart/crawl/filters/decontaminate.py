"""Find the pages that hold texts with which the agent is tested.

Compared are the validation and test wordings of the shop and the turns of its validation and test
plans, as words in lower case without punctuation. A slot such as {product} stands for any words, so
that a wording is compared in the pieces between its slots. Of a long piece every n-gram is compared
(13 words in Brown et al. 2020, appendix C, https://arxiv.org/abs/2005.14165), a shorter piece as a
whole. The shortest pieces ("how much is the") are everyday English and are not compared.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_jsonl
from crawl2cart.crawl.dedup.fingerprint import plain_words

SLOT = re.compile(r"\{[^{}]*\}")
HELD_OUT_SPLITS = ("validation", "test")


class HeldOutNgrams:
    """The n-grams of held-out texts, which no page may hold. `len` counts them."""

    def __init__(self, texts: Iterable[str], ngram: int, min_ngram: int):
        """Collect the n-grams of `texts`.

        ngram: words of the longest sequence compared. min_ngram: words of the shortest piece
        compared. Raises UserError if min_ngram is larger than ngram.
        """
        if min_ngram > ngram:
            raise UserError(
                f"filter.decontamination.min_ngram is {min_ngram} and larger than "
                f"filter.decontamination.ngram, which is {ngram}. Make it no larger."
            )
        self.min_ngram = min_ngram
        # By their first min_ngram words.
        self.ngrams: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
        for piece in (piece for text in texts for piece in pieces(text)):
            if len(piece) >= min_ngram:
                length = min(ngram, len(piece))
                for start in range(len(piece) - length + 1):
                    words = piece[start : start + length]
                    self.ngrams.setdefault(words[:min_ngram], set()).add(words)
        # Only where min_ngram words in a row are words of held-out texts is a page compared.
        self.vocabulary = {
            word for group in self.ngrams.values() for gram in group for word in gram
        }
        self.known_run = re.compile(f"1{{{min_ngram},}}")

    def __len__(self) -> int:
        return sum(map(len, self.ngrams.values()))

    def first_match(self, text: str) -> str:
        """Return the first n-gram that the text holds, words one space apart, or ""."""
        words = plain_words(text).split()
        known = "".join("1" if word in self.vocabulary else "0" for word in words)
        for run in self.known_run.finditer(known):
            for start in range(run.start(), run.end() - self.min_ngram + 1):
                first_words = tuple(words[start : start + self.min_ngram])
                for ngram in sorted(self.ngrams.get(first_words, ())):
                    if tuple(words[start : start + len(ngram)]) == ngram:
                        return " ".join(ngram)
        return ""


def pieces(text: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of each piece between the slots of a wording."""
    return (tuple(plain_words(piece).split()) for piece in SLOT.split(text))


def read_held_out(wordings: Path, plans: Path) -> Iterator[str]:
    """Yield the wordings, and the turns of the plans, of the validation and test splits.

    wordings: a folder of JSON lines. plans: a file of JSON lines.
    """
    for file in sorted(wordings.glob("*.jsonl")):
        yield from (row["text"] for row in read_jsonl(file) if row["split"] in HELD_OUT_SPLITS)
    for plan in read_jsonl(plans):
        if plan["split"] in HELD_OUT_SPLITS:
            yield from (turn["text"] for turn in plan["turns"])
