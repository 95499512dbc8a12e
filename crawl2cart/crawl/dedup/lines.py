"""Find and cut the lines that stand on many pages: navigation, footers, notices.

C4 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683) and CCNet (Wenzek et al. 2019,
https://arxiv.org/abs/1911.00359) also cut repeated passages. Here every occurrence goes, not all
but one: a line that stands on a hundred pages says nothing about any of them.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable

import numpy as np
import xxhash

# One-byte counters of the first pass: 256 MiB of address space, of which a small crawl touches
# little. Lines may share a counter and then look too frequent; the second pass counts exactly.
SLOTS = 1 << 28
MAX_COUNT = 250
BLANK_LINES = re.compile(r"\n{3,}")


def repeated_lines(
    texts: Callable[[], Iterable[str]], min_pages: int, min_letters: int
) -> dict[int, int]:
    """Count the lines that stand in at least `min_pages` of the texts; return {hash: texts}.

    texts: is called twice and must give the same texts both times. A line counts once in a text.
    min_letters: shorter lines (white space around them not counted) are ignored.
    Memory does not grow with the number of distinct lines, only with that of repeated ones.
    """
    counters = np.zeros(SLOTS, np.uint8)
    for text in texts():
        slots, times = np.unique(
            np.fromiter(line_hashes(text, min_letters), np.uint64) % np.uint64(SLOTS),
            return_counts=True,
        )
        counters[slots] = np.minimum(counters[slots] + times, MAX_COUNT)
    exact: Counter[int] = Counter()
    for text in texts():
        exact.update(
            line
            for line in line_hashes(text, min_letters)
            if counters[line % SLOTS] >= min(min_pages, MAX_COUNT)
        )
    return {line: count for line, count in exact.items() if count >= min_pages}


def cut_lines(text: str, repeated: Collection[int], min_letters: int) -> tuple[str, list[str]]:
    """Cut the lines whose hashes are in `repeated` out of a text.

    Returns the text that is left, with at most one blank line in a row, and the lines that went.
    A text without such lines is returned as it is.
    """
    cut = [line for line in long_lines(text, min_letters) if line_hash(line) in repeated]
    if not cut:
        return text, []
    lines = set(cut)
    left = "\n".join(line for line in text.split("\n") if line not in lines)
    return BLANK_LINES.sub("\n\n", left).strip("\n"), cut


def line_hashes(text: str, min_letters: int) -> set[int]:
    """Return the hashes of a text's lines of at least `min_letters` characters."""
    return {line_hash(line) for line in long_lines(text, min_letters)}


def line_hash(line: str) -> int:
    return xxhash.xxh3_64_intdigest(line.strip().encode())


def long_lines(text: str, min_letters: int) -> list[str]:
    # Not splitlines, which also cuts at form feeds, U+2028 and their like.
    return [line for line in text.split("\n") if len(line.strip()) >= min_letters]
