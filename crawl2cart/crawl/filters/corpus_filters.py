"""Judge each page beside all others: copies, repeated lines, held-out texts of the shop."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crawl2cart.crawl.dedup.clusters import Copies, find_copies
from crawl2cart.crawl.dedup.lines import cut_lines, repeated_lines
from crawl2cart.crawl.filters.decontaminate import HeldOutNgrams
from crawl2cart.crawl.params import Filter
from crawl2cart.crawl.shards import batches

# In the order in which they are applied.
RULES = ("duplicate", "near_duplicate", "repeated_lines", "contaminated")


@dataclass(frozen=True)
class CorpusFilters:
    """What the rules know of all pages. repeated: the lines to cut, {hash: pages it stands on}."""

    copies: Copies
    repeated: dict[int, int]
    held_out: HeldOutNgrams
    limits: Filter

    def apply_corpus_filters(self, number: int, row: dict) -> dict:
        """Judge a page that has passed the rules for one page.

        number: the page's place in the crawl. row: its row of a shard.
        Returns the row with `reason` and `score` if it goes, `text` without repeated lines if it
        stays, and two new fields. because: the URL of the copy that stays, or the words shared
        with a held-out text. cut: the lines that were cut.
        """
        if copy := self.copies.removed.get(number):
            verdict = {"reason": copy.reason, "score": copy.similarity}
            return row | verdict | {"because": copy.of, "cut": []}
        text, cut = self.cut_repeated_lines(row["text"])
        row = row | {"because": "", "cut": cut}
        if cut and (words := len(text.split())) < self.limits.min_words:
            return row | {"reason": "repeated_lines", "score": words}
        if ngram := self.held_out.first_match(text):
            verdict = {"reason": "contaminated", "score": len(ngram.split())}
            return row | verdict | {"because": ngram}
        return row | {"text": text}

    def clean(self, row: dict) -> dict:
        """Return a kept page's row with its text as the corpus has it, repeated lines cut."""
        return row | {"text": self.cut_repeated_lines(row["text"])[0]}

    def cut_repeated_lines(self, text: str) -> tuple[str, list[str]]:
        return cut_lines(text, self.repeated, self.limits.repeated_line_letters)


def build_corpus_filters(
    shards: list[Path], held_out: HeldOutNgrams, limits: Filter, scratch: Path
) -> CorpusFilters:
    """Compare all pages that no rule has removed.

    Copies go before lines are counted: the lines of an article stand on all of its mirrors.
    """
    copies = find_copies(shards, limits, scratch)

    def texts() -> Iterator[str]:
        page = 0
        for batch in batches(shards, ["text", "reason"]):
            for row in np.flatnonzero(batch["reason"].to_numpy(zero_copy_only=False) == ""):
                if page + row not in copies.removed:
                    yield batch["text"][row].as_py()
            page += len(batch)

    repeated = repeated_lines(texts, limits.repeated_line_pages, limits.repeated_line_letters)
    return CorpusFilters(copies, repeated, held_out, limits)
