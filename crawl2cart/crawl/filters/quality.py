"""Rules that tell from a text alone whether a page is worth reading, each a score and the bounds it must keep to.

Gopher: Rae et al. 2021, table A1, https://arxiv.org/abs/2112.11446. C4: Raffel et al. 2020, section 2.2,
https://arxiv.org/abs/1910.10683. FineWeb: Penedo et al. 2024, section 3.6, https://arxiv.org/abs/2406.17557. The share
of function words tells running text from lists and from search bait: Pomikálek 2011 (jusText), section 3.4,
https://is.muni.cz/th/45523/fi_d/phdthesis.pdf, and Ntoulas et al. 2006, section 4, https://doi.org/10.1145/1135777.1135794

Repeated n-grams are counted with arrays: numbers instead of words, and the exact count in Python only where a bound
says that the limit might be passed. The verdicts are those of the plain count, four times as fast.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from crawl2cart.crawl.filters.wordlists import ADULT_WORDS, FUNCTION_WORDS, LEGAL_PHRASES
from crawl2cart.crawl.params import Filter

Bounds = dict[str, tuple[float, float]]

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
BULLETS = ("•", "‣", "▪", "◦", "·", "●", "-", "*", "–")
ELLIPSIS = re.compile(r"\.\.\.|…")
# Near enough to the tokenizers of datatrove (spaCy's): each punctuation mark is a word of its own.
WORD_OR_MARK = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*(?=\s|$)")
WORDS_IN_A_SENTENCE_LINE = 5
SHORT_LINE = 30  # characters
ENGLISH_WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?")
LONGEST_TOP = 4  # words of the longest n-gram whose most frequent one is counted; all repeats are counted from 5
LONGEST_DUPLICATE = 10
NO_END = float("inf")

GOPHER_QUALITY: Bounds = {
    "words": (50, 100_000),
    "mean_word_length": (3, 10),
    "symbols_per_word": (0, 0.1),
    "bullet_lines": (0, 0.9),
    "ellipsis_lines": (0, 0.3),
    "alphabetic_words": (0.8, 1),
    "stop_words": (2, len(STOP_WORDS)),
}
GOPHER_REPETITION: Bounds = {
    "duplicate_lines": (0, 0.3),
    "duplicate_paragraphs": (0, 0.3),
    "duplicate_line_characters": (0, 0.2),
    "duplicate_paragraph_characters": (0, 0.2),
    "top_2gram_characters": (0, 0.2),
    "top_3gram_characters": (0, 0.18),
    "top_4gram_characters": (0, 0.16),
    "duplicate_5gram_characters": (0, 0.15),
    "duplicate_6gram_characters": (0, 0.14),
    "duplicate_7gram_characters": (0, 0.13),
    "duplicate_8gram_characters": (0, 0.12),
    "duplicate_9gram_characters": (0, 0.11),
    "duplicate_10gram_characters": (0, 0.10),
}
C4: Bounds = {"lorem_ipsum": (0, 0), "curly_brackets": (0, 0), "sentences": (3, NO_END)}
FINEWEB: Bounds = {
    "punctuated_lines": (0.12, 1),
    "short_lines": (0, 0.67),
    "repeated_line_characters": (0, 0.01),
    "lines_per_word": (0, 0.3),
}


class RuleResult(NamedTuple):
    """ok: no rule fails. reason: the first rule that does, or "". scores: what was measured up to there."""

    ok: bool
    reason: str
    scores: dict[str, float]


def gopher_quality(
    text: str, bounds: Bounds = GOPHER_QUALITY, word_tokenizer: str = "whitespace"
) -> RuleResult:
    """Length, word length, symbols, bullets, ellipses, letters, stop words: section A1.1, "Quality filtering".

    The stop words are English. word_tokenizer: `whitespace` or `datatrove`, see `split_words`.
    """
    return verdict(quality_scores(text, word_tokenizer), bounds)


def gopher_repetition(
    text: str, bounds: Bounds = GOPHER_REPETITION, word_tokenizer: str = "whitespace"
) -> RuleResult:
    """Repeated lines, paragraphs and n-grams: section A1.1, "Repetition removal"."""
    return verdict(repetition_scores(text, bounds, word_tokenizer), bounds)


def c4(text: str, bounds: Bounds = C4) -> RuleResult:
    """Placeholder text, program text, too few sentences. C4's rules for single lines are in no verdict: they edit."""
    return verdict(c4_scores(text), bounds)


def fineweb(text: str, bounds: Bounds = FINEWEB) -> RuleResult:
    """The shape of the lines: ended by punctuation, short, repeated, as many as a list has."""
    return verdict(fineweb_scores(text), bounds)


def verdict(scores: Iterator[tuple[str, float]], bounds: Bounds) -> RuleResult:
    """The first score outside its bounds decides; those behind it are not computed."""
    seen = {}
    for name, score in scores:
        seen[name] = score
        low, high = bounds[name]
        if not low <= score <= high:
            return RuleResult(False, name, seen)
    return RuleResult(True, "", seen)


def bounds_of(limits: Filter) -> Bounds:
    """The bounds of every rule that `scores` yields, from params.yaml."""
    return {
        "words": (limits.min_words, limits.max_words),
        "mean_word_length": (limits.min_mean_word_length, limits.max_mean_word_length),
        "symbols_per_word": (0, limits.max_symbols_per_word),
        "bullet_lines": (0, limits.max_bullet_lines),
        "ellipsis_lines": (0, limits.max_ellipsis_lines),
        "alphabetic_words": (limits.min_alphabetic_words, 1),
        "stop_words": (limits.min_stop_words, len(STOP_WORDS)),
        "duplicate_lines": (0, limits.max_duplicate_lines),
        "duplicate_paragraphs": (0, limits.max_duplicate_paragraphs),
        "duplicate_line_characters": (0, limits.max_duplicate_line_characters),
        "duplicate_paragraph_characters": (0, limits.max_duplicate_paragraph_characters),
        "top_2gram_characters": (0, limits.max_top_2gram_characters),
        "top_3gram_characters": (0, limits.max_top_3gram_characters),
        "top_4gram_characters": (0, limits.max_top_4gram_characters),
        "duplicate_5gram_characters": (0, limits.max_duplicate_5gram_characters),
        "duplicate_6gram_characters": (0, limits.max_duplicate_6gram_characters),
        "duplicate_7gram_characters": (0, limits.max_duplicate_7gram_characters),
        "duplicate_8gram_characters": (0, limits.max_duplicate_8gram_characters),
        "duplicate_9gram_characters": (0, limits.max_duplicate_9gram_characters),
        "duplicate_10gram_characters": (0, limits.max_duplicate_10gram_characters),
        "lorem_ipsum": (0, limits.max_lorem_ipsum),
        "curly_brackets": (0, limits.max_curly_brackets),
        "sentences": (limits.min_sentences, NO_END),
        "punctuated_lines": (limits.min_punctuated_lines, 1),
        "short_lines": (0, limits.max_short_lines),
        "repeated_line_characters": (0, limits.max_repeated_line_characters),
        "lines_per_word": (0, limits.max_lines_per_word),
        "function_words": (limits.min_function_words, 1),
        "joined_words": (limits.min_joined_words, 1),
        "adult_words": (0, limits.max_adult_words),
        "legal_phrases": (0, limits.max_legal_phrases),
    }


def scores(
    text: str, language: str, bounds: Bounds, word_tokenizer: str
) -> Iterator[tuple[str, float]]:
    """All rules in their order, by name and score. Those that know English words are asked of English text only."""
    english = language == "en"
    yield from (
        (name, score)
        for name, score in quality_scores(text, word_tokenizer)
        if english or name != "stop_words"
    )
    yield from repetition_scores(text, bounds, word_tokenizer)
    yield from c4_scores(text)
    yield from fineweb_scores(text)
    if english:
        yield from english_scores(text)


def split_words(text: str, word_tokenizer: str) -> list[str]:
    """What stands between spaces, as the papers say; with word_tokenizer `datatrove` punctuation marks are words too, as it counts
    them, which makes its rule on alphabetic words remove every tenth English page more."""
    return WORD_OR_MARK.findall(text) if word_tokenizer == "datatrove" else text.split()


def quality_scores(text: str, word_tokenizer: str) -> Iterator[tuple[str, float]]:
    words = split_words(text, word_tokenizer)
    distinct = set(words)
    count = max(1, len(words))
    if word_tokenizer == "datatrove":
        long = [word for word in words if any(map(str.isalnum, word))]
        lines, bullets = text.splitlines(), ("•", "-")
        bare = distinct
    else:
        long = words
        lines, bullets = [line for line in text.split("\n") if line.strip()], BULLETS
        bare = {word.strip(".,;:!?\"'()").lower() for word in distinct}
    yield "words", len(long)
    yield "mean_word_length", sum(map(len, long)) / max(1, len(long))
    yield "symbols_per_word", max(text.count("#"), len(ELLIPSIS.findall(text))) / count
    yield (
        "bullet_lines",
        sum(line.strip().startswith(bullets) for line in lines) / max(1, len(lines)),
    )
    yield (
        "ellipsis_lines",
        sum(line.rstrip().endswith(("...", "…")) for line in lines) / max(1, len(lines)),
    )
    letterless = {
        word for word in distinct if not word.isalpha() and not any(map(str.isalpha, word))
    }
    yield "alphabetic_words", 1 - sum(map(letterless.__contains__, words)) / count
    yield "stop_words", len(STOP_WORDS & bare)


def repetition_scores(
    text: str, bounds: Bounds, word_tokenizer: str
) -> Iterator[tuple[str, float]]:
    """Shares of lines, of paragraphs and of characters that repeat earlier ones.

    The share of a duplicate n-gram may be an upper bound, where that is within its bounds.
    """
    size = max(1, len(text))
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    paragraphs = [part.strip() for part in re.split(r"\n{2,}", text) if part.strip()]
    (line_share, line_characters), (paragraph_share, paragraph_characters) = (
        repeats(lines),
        repeats(paragraphs),
    )
    yield "duplicate_lines", line_share
    yield "duplicate_paragraphs", paragraph_share
    yield "duplicate_line_characters", line_characters / size
    yield "duplicate_paragraph_characters", paragraph_characters / size
    words = split_words(text, word_tokenizer)
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    ids = np.fromiter(map(numbers.__getitem__, words), np.int64, len(words))
    grams = ids
    for n in range(2, LONGEST_DUPLICATE + 1):
        if len(grams) < 2:
            return
        # An n-gram is the pair of an (n-1)-gram and a word; numbering the pairs anew keeps them small and exact.
        pairs = grams[:-1] * np.int64(len(numbers)) + ids[n - 1 :]
        _, first, grams, counts = np.unique(
            pairs, return_index=True, return_inverse=True, return_counts=True
        )
        if len(first) == len(grams):
            return  # nothing of n words occurs twice, so nothing longer does
        if n <= LONGEST_TOP:
            yield f"top_{n}gram_characters", top_gram_characters(first, counts, lengths, n) / size
            continue
        name = f"duplicate_{n}gram_characters"
        share = repeated_characters_bound(grams, first, lengths, n) / size
        if share > bounds[name][1]:
            share = repeated_characters(grams.tolist(), lengths.tolist(), n) / size
        yield name, share


def c4_scores(text: str) -> Iterator[tuple[str, float]]:
    """Sentences are counted in lines that have the words for one, so that a menu or a log has none."""
    yield "lorem_ipsum", text.lower().count("lorem ipsum")
    yield "curly_brackets", text.count("{")
    yield (
        "sentences",
        sum(
            len(SENTENCE_END.findall(line))
            for line in text.split("\n")
            if len(line.split()) >= WORDS_IN_A_SENTENCE_LINE
        ),
    )


def fineweb_scores(text: str) -> Iterator[tuple[str, float]]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    count = max(1, len(lines))
    yield "punctuated_lines", sum(bool(SENTENCE_END.search(line[-4:])) for line in lines) / count
    yield "short_lines", sum(len(line) <= SHORT_LINE for line in lines) / count
    yield "repeated_line_characters", repeats(lines)[1] / max(1, sum(map(len, lines)))
    yield "lines_per_word", len(lines) / max(1, len(text.split()))


def english_scores(text: str) -> Iterator[tuple[str, float]]:
    """Shares of the words that are function words, that are joined and that stand on our lists.

    A list of links has few function words.
    """
    lower = text.lower()
    words = [word.partition("'")[0] for word in ENGLISH_WORD.findall(lower.replace("’", "'"))]
    count = max(1, len(words))
    functional = np.fromiter(map(FUNCTION_WORDS.__contains__, words), bool, len(words))
    yield "function_words", float(functional.sum()) / count
    yield "joined_words", joined_words(words, functional)
    yield "adult_words", sum(map(ADULT_WORDS.__contains__, words)) / count
    yield "legal_phrases", len(LEGAL_PHRASES.findall(lower)) / count


def joined_words(words: list[str], functional: np.ndarray) -> float:
    """The share of neighbouring words that are both function words (it is, of the) or side by side more than once.

    A text whose words were drawn or swapped by a machine has function words, but hardly side by side, and comes back
    to nothing: the least of 330 real texts of 600 words has 0.20, of 230 embedded pages 0.19.
    """
    if len(words) < 2:
        return 0.0
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    ids = np.fromiter(map(numbers.__getitem__, words), np.int64, len(words))
    _, pair, counts = np.unique(
        ids[:-1] * len(numbers) + ids[1:], return_inverse=True, return_counts=True
    )
    return float(((functional[1:] & functional[:-1]) | (counts[pair] > 1)).mean())


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
    return int(most * (lengths[start : start + n].sum() + n - 1))


def repeated_characters_bound(
    grams: np.ndarray, first: np.ndarray, lengths: np.ndarray, n: int
) -> int:
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
            characters += sum(lengths[position : position + n])
            position += n
        else:
            seen.add(grams[position])
            position += 1
    return characters
