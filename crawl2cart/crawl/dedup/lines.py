"""Lines that stand on many pages of a crawl: navigation, footers, notices that the extractor took for text.

As in C4 (Raffel et al. 2019, https://arxiv.org/abs/1910.10683) and CCNet (Wenzek et al. 2019, https://arxiv.org/abs/1911.00359), which
cut repeated passages from the texts; here every occurrence goes, since a line of a hundred pages says nothing on any.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import xxhash

# Counters of the first pass, a byte each: 256 MB of address space, of which a small crawl touches little. One counter
# serves several lines, which can only make a line look more frequent than it is; the second pass counts exactly.
SLOTS = 1 << 28
FULL = 250
BLANK_LINES = re.compile(r"\n{3,}")


def line_hash(line: str) -> int:
    return xxhash.xxh3_64_intdigest(line.strip().encode())


def long_lines(text: str, least_letters: int) -> list[str]:
    """The lines of a text, without those whose characters (space around them aside) are fewer than that."""
    return [line for line in text.split("\n") if len(line.strip()) >= least_letters]


def repeated(pages: Callable[[], Iterable[Iterable[int]]], least: int) -> dict[int, int]:
    """The hashes that occur in all pages together at least `least` times, with how often.

    pages: called twice, gives the hashes of each page's lines. Memory does not grow with the number of distinct lines.
    """
    counters = np.zeros(SLOTS, np.uint8)
    for hashes in pages():
        slots, times = np.unique(
            np.fromiter(hashes, np.uint64) % np.uint64(SLOTS), return_counts=True
        )
        counters[slots] = np.minimum(counters[slots] + times, FULL)  # a byte holds no more
    exact: Counter = Counter()
    for hashes in pages():
        exact.update(number for number in hashes if counters[number % SLOTS] >= min(least, FULL))
    return {number: count for number, count in exact.items() if count >= least}


def cut_lines(text: str, hashes: dict[int, int], least_letters: int) -> tuple[str, list[str]]:
    """The text without its long lines of these hashes, at most one blank line together, and the lines that went."""
    gone = [line for line in long_lines(text, least_letters) if line_hash(line) in hashes]
    if not gone:
        return text, []
    lines = set(gone)
    left = "\n".join(line for line in text.split("\n") if line not in lines)
    return BLANK_LINES.sub("\n\n", left).strip("\n"), gone


def exact_line_dedup(
    files: list[Path], out: Path, least: int = 2, least_letters: int = 1
) -> dict[str, int]:
    """Copies text files to `out`, under the same names, without the lines that occur at least `least` times in all of
    them together. Other lines, and blank ones, stay as they are.

    Returns counts: documents, lines, and of these repeated (cut) and distinct_repeated.
    """

    def hashes() -> Iterable[list[int]]:
        return (
            [line_hash(line) for line in long_lines(file.read_text(), least_letters)]
            for file in map(Path, files)
        )

    found = repeated(hashes, least)
    counts = {"documents": len(files), "lines": 0, "repeated": 0, "distinct_repeated": len(found)}
    out.mkdir(parents=True, exist_ok=True)
    for file in map(Path, files):
        with file.open() as opened:
            lines = opened.readlines()  # not splitlines, which cuts at more than line feeds
        left = [
            line
            for line in lines
            if len(line.strip()) < least_letters or line_hash(line) not in found
        ]
        (out / file.name).write_text("".join(left))
        counts["lines"] += len(lines)
        counts["repeated"] += len(lines) - len(left)
    return counts
