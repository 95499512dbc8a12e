"""The quality and repetition rules of Gopher. Rae et al. 2021, table A1, https://arxiv.org/abs/2112.11446

Words are what stands between spaces. (datatrove counts punctuation marks as words too, which makes its rule on
alphabetic words remove every tenth English page more.)

Repeated n-grams are counted with arrays: numbers instead of words, and the exact count in Python only where a bound
says that the limit might be passed. The verdicts are those of the plain count, four times as fast.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from stages.common.params import Filter

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
BULLETS = ("•", "‣", "▪", "◦", "·", "●", "-", "*", "–")
ELLIPSIS = re.compile(r"\.\.\.|…")
LONGEST_TOP = 4  # words of the longest n-gram whose most frequent one is counted; all repeats are counted from 5
LONGEST_DUPLICATE = 10


class Verdict(NamedTuple):
    """ok: no rule fails. reason: the first rule that does, or "". scores: what was measured up to there."""

    ok: bool
    reason: str
    scores: dict[str, float]


def gopher(text: str, limits: Filter) -> Verdict:
    """The quality rules, then the repetition rules."""
    quality = gopher_quality(text, limits)
    return gopher_repetition(text, limits) if quality.ok else quality


def gopher_quality(text: str, limits: Filter) -> Verdict:
    """Length, word length, symbols, bullets, ellipses, letters, stop words: section A1.1, "Quality filtering".

    The stop words are English, so that rule holds only where English is the language to keep.
    """
    return judge(quality_scores(text), {
        "words": (limits.min_words, limits.max_words),
        "mean_word_length": (limits.min_mean_word_length, limits.max_mean_word_length),
        "symbols_per_word": (0, limits.max_symbols_per_word),
        "bullet_lines": (0, limits.max_bullet_lines),
        "ellipsis_lines": (0, limits.max_ellipsis_lines),
        "alphabetic_words": (limits.min_alphabetic_words, 1),
        "stop_words": (limits.min_stop_words if limits.language == "en" else 0, len(STOP_WORDS)),
    })


def gopher_repetition(text: str, limits: Filter) -> Verdict:
    """Repeated lines, paragraphs and n-grams: section A1.1, "Repetition removal"."""
    ceilings = {
        "duplicate_lines": limits.max_duplicate_lines,
        "duplicate_paragraphs": limits.max_duplicate_paragraphs,
        "duplicate_line_characters": limits.max_duplicate_line_characters,
        "duplicate_paragraph_characters": limits.max_duplicate_paragraph_characters,
        "top_2gram_characters": limits.max_top_2gram_characters,
        "top_3gram_characters": limits.max_top_3gram_characters,
        "top_4gram_characters": limits.max_top_4gram_characters,
        "duplicate_5gram_characters": limits.max_duplicate_5gram_characters,
        "duplicate_6gram_characters": limits.max_duplicate_6gram_characters,
        "duplicate_7gram_characters": limits.max_duplicate_7gram_characters,
        "duplicate_8gram_characters": limits.max_duplicate_8gram_characters,
        "duplicate_9gram_characters": limits.max_duplicate_9gram_characters,
        "duplicate_10gram_characters": limits.max_duplicate_10gram_characters,
    }
    return judge(repetition_scores(text, ceilings), {name: (0, ceiling) for name, ceiling in ceilings.items()})


def judge(scores: Iterator[tuple[str, float]], bounds: dict[str, tuple[float, float]]) -> Verdict:
    """The first score outside its bounds decides; those behind it are not computed."""
    seen = {}
    for name, score in scores:
        seen[name] = score
        low, high = bounds[name]
        if not low <= score <= high:
            return Verdict(False, name, seen)
    return Verdict(True, "", seen)


def quality_scores(text: str) -> Iterator[tuple[str, float]]:
    words = text.split()
    count = max(1, len(words))
    yield "words", len(words)
    yield "mean_word_length", sum(map(len, words)) / count
    yield "symbols_per_word", max(text.count("#"), len(ELLIPSIS.findall(text))) / count
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    yield "bullet_lines", sum(line.startswith(BULLETS) for line in lines) / max(1, len(lines))
    yield "ellipsis_lines", sum(line.endswith(("...", "…")) for line in lines) / max(1, len(lines))
    distinct = set(words)
    letterless = {word for word in distinct if not word.isalpha() and not any(map(str.isalpha, word))}
    yield "alphabetic_words", 1 - sum(map(letterless.__contains__, words)) / count
    yield "stop_words", len(STOP_WORDS & {word.strip(".,;:!?\"'()").lower() for word in distinct})


def repetition_scores(text: str, ceilings: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Shares of lines, of paragraphs and of characters that repeat earlier ones.

    The share of a duplicate n-gram may be an upper bound, where that is below its ceiling.
    """
    size = max(1, len(text))
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    paragraphs = [part.strip() for part in re.split(r"\n{2,}", text) if part.strip()]
    (line_share, line_characters), (paragraph_share, paragraph_characters) = repeats(lines), repeats(paragraphs)
    yield "duplicate_lines", line_share
    yield "duplicate_paragraphs", paragraph_share
    yield "duplicate_line_characters", line_characters / size
    yield "duplicate_paragraph_characters", paragraph_characters / size
    words = text.split()
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    ids = np.fromiter(map(numbers.__getitem__, words), np.int64, len(words))
    grams = ids
    for n in range(2, LONGEST_DUPLICATE + 1):
        if len(grams) < 2:
            return
        # An n-gram is the pair of an (n-1)-gram and a word; numbering the pairs anew keeps them small and exact.
        pairs = grams[:-1] * np.int64(len(numbers)) + ids[n - 1:]
        _, first, grams, counts = np.unique(pairs, return_index=True, return_inverse=True, return_counts=True)
        if len(first) == len(grams):
            return  # nothing of n words occurs twice, so nothing longer does
        if n <= LONGEST_TOP:
            yield f"top_{n}gram_characters", top_gram_characters(first, counts, lengths, n) / size
            continue
        name = f"duplicate_{n}gram_characters"
        share = repeated_characters_bound(grams, first, lengths, n) / size
        if share > ceilings[name]:
            share = repeated_characters(grams.tolist(), lengths.tolist(), n) / size
        yield name, share


def repeats(parts: list[str]) -> tuple[float, int]:
    """The share of parts that equal an earlier one, and the characters in them."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        seen.add(part)
    return count / max(1, len(parts)), characters


def top_gram_characters(first: np.ndarray, counts: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters, spaces included, of all occurrences of the most frequent n-gram, the first of equally frequent ones.

    first: where each distinct n-gram occurs first. counts: how often it occurs.
    """
    most = counts.max()
    start = first[counts == most].min()
    return int(most * (lengths[start:start + n].sum() + n - 1))


def repeated_characters_bound(grams: np.ndarray, first: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters of all words that lie in an n-gram that occurred before: never less than `repeated_characters`."""
    again = np.ones(len(grams), bool)
    again[first] = False
    starts = np.flatnonzero(again)
    edges = np.zeros(len(lengths) + 1, np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + n, -1)
    return int(lengths[np.cumsum(edges[:-1]) > 0].sum())


def repeated_characters(grams: list[int], lengths: list[int], n: int) -> int:
    """Characters of the words in repeated n-grams, read from left to right, no word counted twice."""
    seen: set[int] = set()
    position = characters = 0
    while position < len(grams):
        if grams[position] in seen:
            characters += sum(lengths[position:position + n])
            position += n
        else:
            seen.add(grams[position])
            position += 1
    return characters
