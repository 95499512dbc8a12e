"""Tell from a text alone whether a page is worth reading: rules, each a score with its bounds.

Gopher: Rae et al. 2021, table A1, https://arxiv.org/abs/2112.11446
C4: Raffel et al. 2020, section 2.2, https://arxiv.org/abs/1910.10683
FineWeb: Penedo et al. 2024, section 3.6, https://arxiv.org/abs/2406.17557
Function words tell running text from lists and from search bait: Pomikálek 2011 (jusText), section
3.4, https://is.muni.cz/th/45523/fi_d/phdthesis.pdf; Ntoulas et al. 2006, section 4,
https://doi.org/10.1145/1135777.1135794

    first_failure(quality_checks(text, GOPHER_QUALITY | C4))     # None: the text passes all rules

Repeated n-grams are counted in arrays of numbers. The exact count, in Python, is made only where an
upper bound exceeds the limit. The results are those of the plain count, four times as fast.
"""

import re
from collections.abc import Iterator

import numpy as np

from crawl2cart.crawl.filters.check import Check
from crawl2cart.crawl.filters.wordlists import ADULT_WORDS, FUNCTION_WORDS, LEGAL_PHRASES
from crawl2cart.crawl.params import Filter

Bounds = dict[str, tuple[float, float]]

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
BULLETS = ("•", "‣", "▪", "◦", "·", "●", "-", "*", "–")
ELLIPSIS = re.compile(r"\.\.\.|…")
# Close to datatrove's tokenizers (spaCy's): each punctuation mark is a word of its own.
WORD_OR_MARK = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*(?=\s|$)")
WORDS_IN_A_SENTENCE_LINE = 5
SHORT_LINE = 30  # characters
ENGLISH_WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?")
# Of n-grams up to this length the most frequent one is counted, of longer ones all repeats.
LONGEST_TOP = 4
LONGEST_DUPLICATE = 10
NO_END = float("inf")

# The published bounds, {rule: (least, greatest)}.
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
# This project's rules, for English text only.
ENGLISH_WORDS: Bounds = {
    "function_words": (0.33, 1),
    "joined_words": (0.16, 1),
    "adult_words": (0, 0.03),
    "legal_phrases": (0, 0.015),
}


def bounds_of(limits: Filter) -> Bounds:
    """Return the bounds of all rules from the section `filter` of params.yaml."""
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


def quality_checks(
    text: str, bounds: Bounds, language: str = "en", word_tokenizer: str = "whitespace"
) -> Iterator[Check]:
    """Yield the checks of all rules in `bounds`, in a fixed order, each computed when asked for.

    language: ISO 639-1; rules that know English words are left out for other languages.
    word_tokenizer: `whitespace` or `datatrove`, see `split_words`.
    """
    rules = bounds.keys()
    if language != "en":
        rules = rules - ENGLISH_WORDS.keys() - {"stop_words"}
    groups = (
        (GOPHER_QUALITY, gopher_quality_scores(text, word_tokenizer)),
        (GOPHER_REPETITION, gopher_repetition_scores(text, bounds, word_tokenizer)),
        (C4, c4_scores(text)),
        (FINEWEB, fineweb_scores(text)),
        (ENGLISH_WORDS, english_scores(text)),
    )
    for group, scores in groups:
        if group.keys() & rules:
            yield from (
                Check(rule, score, *bounds[rule]) for rule, score in scores if rule in rules
            )


def split_words(text: str, word_tokenizer: str) -> list[str]:
    """Split a text at white space, as the papers say, or as datatrove does.

    With `datatrove` punctuation marks are words too. Its rule on alphabetic words then removes ten
    percent more English pages.
    """
    return WORD_OR_MARK.findall(text) if word_tokenizer == "datatrove" else text.split()


def gopher_quality_scores(text: str, word_tokenizer: str) -> Iterator[tuple[str, float]]:
    """Yield the scores of section A1.1, "Quality filtering". The stop words are English."""
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


def gopher_repetition_scores(
    text: str, bounds: Bounds, word_tokenizer: str
) -> Iterator[tuple[str, float]]:
    """Yield the scores of section A1.1, "Repetition removal": shares that repeat earlier ones.

    The score of `duplicate_*gram_characters` is an upper bound where that is within its bounds.
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
        # An n-gram is an (n-1)-gram and a word. New numbers for the pairs keep them small.
        pairs = grams[:-1] * np.int64(len(numbers)) + ids[n - 1 :]
        _, first, grams, counts = np.unique(
            pairs, return_index=True, return_inverse=True, return_counts=True
        )
        if len(first) == len(grams):
            return  # no n-gram occurs twice, so no longer one does
        if n <= LONGEST_TOP:
            yield f"top_{n}gram_characters", top_gram_characters(first, counts, lengths, n) / size
            continue
        name = f"duplicate_{n}gram_characters"
        share = repeated_characters_bound(grams, first, lengths, n) / size
        if name in bounds and share > bounds[name][1]:
            share = repeated_characters(grams.tolist(), lengths.tolist(), n) / size
        yield name, share


def c4_scores(text: str) -> Iterator[tuple[str, float]]:
    """Yield the scores of C4's rules for pages; its rules for single lines are not applied.

    Sentences count in lines of five words or more only, so that a menu or a log has none.
    """
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
    """Yield the scores for the shape of the lines: punctuated, short, repeated, per word."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    count = max(1, len(lines))
    yield "punctuated_lines", sum(bool(SENTENCE_END.search(line[-4:])) for line in lines) / count
    yield "short_lines", sum(len(line) <= SHORT_LINE for line in lines) / count
    yield "repeated_line_characters", repeats(lines)[1] / max(1, sum(map(len, lines)))
    yield "lines_per_word", len(lines) / max(1, len(text.split()))


def english_scores(text: str) -> Iterator[tuple[str, float]]:
    """Yield shares of the words: function words, joined words, adult words, legal phrases.

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
    """Return the share of neighbouring words that belong together.

    words: in lower case. functional: bool[words], which of them are function words.
    Two neighbours belong together if both are function words (it is, of the), or if they stand
    side by side more than once. Text that a machine has drawn or spun word by word has few such
    pairs.
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
    """Return the share of parts that equal an earlier one, and the characters in them."""
    earlier: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in earlier:
            count += 1
            characters += len(part)
        earlier.add(part)
    return count / max(1, len(parts)), characters


def top_gram_characters(first: np.ndarray, counts: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Count the characters, spaces included, in all occurrences of the most frequent n-gram.

    first: where each distinct n-gram occurs first. counts: how often it occurs. lengths: of all
    words. Of equally frequent n-grams the one that occurs first is taken.
    """
    most = counts.max()
    start = first[counts == most].min()
    return int(most * (lengths[start : start + n].sum() + n - 1))


def repeated_characters_bound(
    grams: np.ndarray, first: np.ndarray, lengths: np.ndarray, n: int
) -> int:
    """Return an upper bound of `repeated_characters`: words in any n-gram that occurred before.

    grams: the number of the n-gram at each word. first: where each distinct n-gram occurs first.
    """
    again = np.ones(len(grams), bool)
    again[first] = False
    starts = np.flatnonzero(again)
    edges = np.zeros(len(lengths) + 1, np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + n, -1)
    return int(lengths[np.cumsum(edges[:-1]) > 0].sum())


def repeated_characters(grams: list[int], lengths: list[int], n: int) -> int:
    """Count the characters of words in repeated n-grams, left to right, no word twice."""
    earlier: set[int] = set()
    position = characters = 0
    while position < len(grams):
        if grams[position] in earlier:
            characters += sum(lengths[position : position + n])
            position += n
        else:
            earlier.add(grams[position])
            position += 1
    return characters
