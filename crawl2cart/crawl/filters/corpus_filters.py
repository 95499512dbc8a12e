"""The rules that look at a page beside all others: copies, repeated lines, held-out wordings of the shop."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crawl2cart.crawl.dedup.clusters import Copies, find_copies
from crawl2cart.crawl.dedup.lines import cut_lines, line_hash, long_lines, repeated
from crawl2cart.crawl.filters.decontaminate import HeldOut
from crawl2cart.crawl.params import Filter
from crawl2cart.crawl.shards import batches

RULES = (
    "duplicate",
    "near_duplicate",
    "repeated_lines",
    "contaminated",
)  # in the order in which they stand


@dataclass(frozen=True)
class CorpusFilters:
    """What the rules need to know of all pages. lines: hashes of the lines to cut, with how many pages they stand on."""

    copies: Copies
    lines: dict[int, int]
    held_out: HeldOut
    limits: Filter

    def apply_corpus_filters(self, number: int, row: dict) -> dict:
        """A kept page's row with what these rules say: `reason` and `score`, `text` without repeated lines, `because`
        (the URL of the copy that stays, or the words in common with a held-out text), and `cut`, the lines gone.

        number: the page's place in the crawl.
        """
        if copy := self.copies.gone.get(number):
            return row | {
                "reason": copy.reason,
                "score": copy.similarity,
                "because": copy.of,
                "cut": [],
            }
        text, cut = cut_lines(row["text"], self.lines, self.limits.repeated_line_letters)
        row = row | {"because": "", "cut": cut}
        if cut and (words := len(text.split())) < self.limits.min_words:
            return row | {"reason": "repeated_lines", "score": words}
        if because := self.held_out.found_in(text):
            return row | {
                "reason": "contaminated",
                "score": len(because.split()),
                "because": because,
            }
        return row | {"text": text}

    def clean(self, row: dict) -> dict:
        """A kept page's row with its text as it goes into the corpus."""
        return row | {
            "text": cut_lines(row["text"], self.lines, self.limits.repeated_line_letters)[0]
        }


def build_corpus_filters(
    shards: list[Path], held_out: HeldOut, limits: Filter, scratch: Path
) -> CorpusFilters:
    """Compares all pages that no rule has removed. Copies go first: the lines of an article stand on all its mirrors."""
    copies = find_copies(shards, limits, scratch)

    def hashes() -> Iterator[set[int]]:
        page = 0
        for batch in batches(shards, ["text", "reason"]):
            for row in np.flatnonzero(batch["reason"].to_numpy(zero_copy_only=False) == ""):
                if page + row not in copies.gone:
                    yield {
                        line_hash(line)
                        for line in long_lines(
                            batch["text"][row].as_py(), limits.repeated_line_letters
                        )
                    }
            page += len(batch)

    return CorpusFilters(copies, repeated(hashes, limits.repeated_line_pages), held_out, limits)
