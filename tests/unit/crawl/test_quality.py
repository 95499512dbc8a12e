"""The rules on text: compared with plain versions, and each on a text made to fail it."""

import gzip
import random
import re
from collections import Counter

import numpy as np
import pytest

from crawl2cart.core.params import read_params
from crawl2cart.crawl.extract.extract import html_to_text
from crawl2cart.crawl.filters.check import first_failure
from crawl2cart.crawl.filters.quality import (
    C4,
    ENGLISH_WORDS,
    FINEWEB,
    GOPHER_QUALITY,
    GOPHER_REPETITION,
    Bounds,
    bounds_of,
    joined_words,
    quality_checks,
)
from tests.conftest import ROOT
from tests.unit.crawl.samples import PLAIN_PROSE, PROSE

LIMITS = read_params(ROOT / "params.yaml").filter
BOUNDS = bounds_of(LIMITS)
GOPHER = GOPHER_QUALITY | GOPHER_REPETITION


def first_failed(text: str, bounds: Bounds) -> str:
    """The first rule that fails, or ""."""
    failed = first_failure(quality_checks(text, bounds))
    return failed.rule if failed else ""


def scores(text: str, bounds: Bounds, **options: str) -> dict[str, float]:
    return {check.rule: check.score for check in quality_checks(text, bounds, **options)}


def test_the_parameters_are_the_published_ones():
    """But for two of FineWeb's, which remove pages worth reading; params.yaml says why."""
    looser = {"punctuated_lines": (0.05, 1), "repeated_line_characters": (0, 0.02)}
    assert BOUNDS == GOPHER | C4 | FINEWEB | ENGLISH_WORDS | looser


def test_every_bound_has_a_score():
    repetitive = "\n".join(["to be or not to be that is the question for the two of us."] * 40)
    assert scores(repetitive, BOUNDS).keys() == BOUNDS.keys()
    assert scores(repetitive, C4).keys() == C4.keys()


def test_words_of_english_are_counted_in_english_only():
    english, german = (scores(PROSE, BOUNDS, language=code).keys() for code in ("en", "de"))
    assert english - german == {"stop_words", *ENGLISH_WORDS}


# ---- against plain versions ----


def plain_gopher(text: str) -> str:
    """Gopher's rules word by word as the paper has them: the first that fails, or ""."""
    words = text.split()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    paragraphs = [part.strip() for part in re.split(r"\n{2,}", text) if part.strip()]

    def share(parts, holds):
        return sum(1 for part in parts if holds(part)) / max(1, len(parts))

    if not LIMITS.min_words <= len(words) <= LIMITS.max_words:
        return "words"
    if (
        not LIMITS.min_mean_word_length
        <= sum(len(word) for word in words) / len(words)
        <= LIMITS.max_mean_word_length
    ):
        return "mean_word_length"
    if (
        max(text.count("#"), text.count("...") + text.count("…")) / len(words)
        > LIMITS.max_symbols_per_word
    ):
        return "symbols_per_word"
    if share(lines, lambda line: line[0] in "•‣▪◦·●-*–") > LIMITS.max_bullet_lines:
        return "bullet_lines"
    if (
        share(lines, lambda line: line.endswith("...") or line.endswith("…"))
        > LIMITS.max_ellipsis_lines
    ):
        return "ellipsis_lines"
    if (
        share(words, lambda word: any(letter.isalpha() for letter in word))
        < LIMITS.min_alphabetic_words
    ):
        return "alphabetic_words"
    bare = [word.strip(".,;:!?\"'()").lower() for word in words]
    if (
        sum(stop in bare for stop in ("the", "be", "to", "of", "and", "that", "have", "with"))
        < LIMITS.min_stop_words
    ):
        return "stop_words"

    def again(parts):
        return [part for number, part in enumerate(parts) if part in parts[:number]]

    for name, parts in (("lines", lines), ("paragraphs", paragraphs)):
        if len(again(parts)) / len(parts) > getattr(LIMITS, f"max_duplicate_{name}"):
            return f"duplicate_{name}"
    for name, parts in (("line", lines), ("paragraph", paragraphs)):
        if sum(map(len, again(parts))) / len(text) > getattr(
            LIMITS, f"max_duplicate_{name}_characters"
        ):
            return f"duplicate_{name}_characters"
    for n in (2, 3, 4):
        ((gram, count),) = Counter(
            " ".join(words[at : at + n]) for at in range(len(words) - n + 1)
        ).most_common(1)
        if count > 1 and len(gram) * count / len(text) > getattr(
            LIMITS, f"max_top_{n}gram_characters"
        ):
            return f"top_{n}gram_characters"
    for n in range(5, 11):
        seen, characters, at = set(), 0, 0
        while at + n <= len(words):
            gram = tuple(words[at : at + n])
            if gram in seen:
                characters += sum(map(len, gram))
                at += n
            else:
                seen.add(gram)
                at += 1
        if characters / len(text) > getattr(LIMITS, f"max_duplicate_{n}gram_characters"):
            return f"duplicate_{n}gram_characters"
    return ""


def random_text(seed: int) -> str:
    """Texts that pass, fail and nearly fail: phrases, lines and paragraphs repeat more or less."""
    draw = random.Random(seed)
    vocabulary = ["the", "of", "and", "to"] + [
        "".join(draw.choices("aeioulnrst", k=draw.randint(1, 9)))
        for _ in range(draw.choice([8, 40, 400]))
    ]
    phrases = [
        " ".join(draw.choices(vocabulary, k=draw.randint(3, 14)))
        for _ in range(draw.choice([2, 5, 60]))
    ]
    lines = []
    for _ in range(draw.randint(5, 60)):
        line = (
            draw.choice(phrases)
            if draw.random() < 0.3
            else " ".join(draw.choices(vocabulary, k=draw.randint(2, 20)))
        )
        lines.append(
            draw.choice(["", "", "", "- ", "# ", "7 "])
            + line
            + draw.choice(["", "", "", ".", "...", "\n"])
        )
    return "\n".join(lines)


def test_the_first_failure_is_that_of_the_plain_rules_on_random_texts():
    failures = Counter()
    for seed in range(400):
        text = random_text(seed)
        assert first_failed(text, GOPHER) == plain_gopher(text), seed
        failures[plain_gopher(text)] += 1
    assert failures[""] > 10 and len(failures) > 10, failures


def test_the_first_failure_is_that_of_the_plain_rules_on_real_texts(shared_data):
    texts = [
        html_to_text(gzip.decompress(file.read_bytes()), "utf-8", "resiliparse")
        for file in sorted((shared_data / "extraction_gold").glob("*__source.html.gz"))[::4]
    ]
    for file in sorted(file for file in (shared_data / "text").rglob("*") if file.is_file()):
        text = file.read_text(errors="replace")
        texts += [text[start : start + 3000] for start in range(0, len(text), 15_000)]
    assert len(texts) > 200
    failures = Counter()
    for text in texts:
        assert first_failed(text, GOPHER) == plain_gopher(text)
        failures[plain_gopher(text)] += 1
    assert failures[""] > len(texts) / 3 and len(failures) > 2


def plain_shape(text: str) -> dict[str, float]:
    """FineWeb's measures line by line, as datatrove's FineWebQualityFilter computes them."""
    lines = [line for line in text.split("\n") if line.strip()]
    ended = repeated = 0
    earlier = []
    for line in lines:
        bare = line.strip()
        ended += bare.rstrip("\"'”’)]").endswith((".", "!", "?", "…"))
        repeated += len(bare) if bare in earlier else 0
        earlier.append(bare)
    return {
        "punctuated_lines": ended / len(lines),
        "short_lines": sum(1 for line in lines if len(line.strip()) <= 30) / len(lines),
        "repeated_line_characters": repeated / sum(len(line.strip()) for line in lines),
        "lines_per_word": len(lines) / len(text.split()),
    }


def test_shapes_of_random_texts_are_those_of_the_plain_count():
    for seed in range(400):
        text = random_text(seed)
        assert scores(text, FINEWEB) == pytest.approx(plain_shape(text)), seed


def plain_c4(text: str) -> str:
    """C4's rules for pages letter by letter: the first that fails, or ""."""
    if "lorem ipsum" in text.lower():
        return "lorem_ipsum"
    if "{" in text:
        return "curly_brackets"
    sentences = 0
    for line in text.split("\n"):
        for place, letter in enumerate(line):
            behind = line[place + 1 :].lstrip("\"'”’)]")
            sentences += (
                len(line.split()) >= 5
                and letter in ".!?…。！？"
                and (not behind or behind[0].isspace())
            )
    return "sentences" if sentences < 3 else ""


def test_c4_fails_random_texts_as_the_plain_rules_do():
    draw, failures = random.Random(5), Counter()
    endings = ["", "", "", " {", "\nLorem ipsum dolor", '!"', "?) ", ".x"]
    for seed in range(500):
        text = random_text(seed)[: draw.randint(20, 1500)] + draw.choice(endings)
        assert first_failed(text, C4) == plain_c4(text), seed
        failures[plain_c4(text)] += 1
    assert min(failures[reason] for reason in ("", *C4)) > 25, failures


def test_joined_words_are_those_of_the_plain_count():
    for seed in range(120):
        words = random_text(seed).lower().split()
        functional = [word in ("the", "of", "and", "to") for word in words]
        pairs = list(zip(words, words[1:], strict=False))
        plain = sum(
            functional[place] and functional[place + 1] or pairs.count(pair) > 1
            for place, pair in enumerate(pairs)
        )
        assert joined_words(words, np.array(functional)) == pytest.approx(plain / len(pairs)), seed
    assert joined_words([], np.array([], bool)) == joined_words(["the"], np.array([True])) == 0


# ---- rule by rule ----


ENOUGH = "It was there that we found the boat, and nobody had touched it for a year or two."
NUMBERS = " ".join(f"{number} {number + 17}" for number in range(1000, 1060))
BROKEN_OFF = [f"{part.strip()}..." for part in PROSE.split(".") if len(part.split()) > 12]
LONG_WORDS = [word for word in PROSE.replace("|", "").split() if len(word) > 4]


@pytest.mark.parametrize(
    ("bounds", "rule", "text"),
    [
        (GOPHER, "words", "too short to be of use to anybody"),
        (GOPHER, "mean_word_length", "a b c d e f " * 20),
        (GOPHER, "symbols_per_word", PROSE * 2 + "#tag " * 60),
        (GOPHER, "bullet_lines", "\n".join(f"- the {w} and the other" for w in PROSE.split()[:40])),
        (GOPHER, "ellipsis_lines", "\n".join(BROKEN_OFF)),
        (GOPHER, "alphabetic_words", f"the and {NUMBERS}{' kettle' * 20}"),
        (GOPHER, "stop_words", " ".join(LONG_WORDS)),
        (GOPHER_QUALITY, "words", "The string you are reading is a short snippet of text."),
        (GOPHER_QUALITY, "mean_word_length", "the be " * 100),
        (GOPHER_QUALITY, "ellipsis_lines", f"{ENOUGH[:-1]}...\n" * 30),
        (GOPHER_REPETITION, "top_3gram_characters", "buy a good kettle for less " * 30),
        (C4, "lorem_ipsum", f"{ENOUGH} Lorem ipsum dolor sit amet. {ENOUGH} {ENOUGH}"),
        (C4, "curly_brackets", f"{ENOUGH} {ENOUGH} {ENOUGH}\nvoid main() {{ puts(); }}"),
        (C4, "sentences", f"Home.\nContact us.\nAbout the boats.\n{ENOUGH}\n{ENOUGH}"),
        (FINEWEB, "punctuated_lines", ENOUGH + "\nfrom one side of the wide bay to another" * 9),
        (FINEWEB, "short_lines", "\n".join([ENOUGH] * 2 + [f"{n} boats." for n in range(6)])),
        (
            FINEWEB,
            "repeated_line_characters",
            f"{ENOUGH}\nRead on about boats and about those who mend them.\n{ENOUGH}",
        ),
        (
            FINEWEB,
            "lines_per_word",
            "\n".join(f"Unpronounceable-hyphenated-entry-{n} there." for n in range(9)),
        ),
    ],
)
def test_each_rule_names_itself(bounds, rule, text):
    assert first_failed(text, bounds) == rule
    assert first_failed(PLAIN_PROSE, bounds) == ""


def test_lists_salads_notices_and_offers_fail_their_rules_and_prose_none():
    salad = (
        "Blue invoices gather under a pillow. Sandals quarrel, my carpet being seven. Honest "
        "rivers iron her telephone beyond cabbage. Every mayor of toast applauds gently. Green "
        "questions melt our ladder. Such violins postpone winter. A drawer sings against plural "
        "gravel. Perhaps buttons swim."
    )
    notice = (
        "The Supplier shall not be liable for consequential loss. Personal data is processed on "
        "the legal basis of consent, which may be withdrawn without prejudice to the foregoing. "
        "All rights are governed by the applicable law, and the competent authority has exclusive "
        "jurisdiction over what is set out herein."
    )
    offer = (
        "We have the sexy singles that you want, and there are naughty webcams for all of you who "
        "would like an escort."
    )
    links = (
        "Anchors Buoys Chandlers Dredgers Ferries Gangways Hawsers Jetties Keels Lanterns Moorings "
        "of Saltnes"
    )

    def failing(text: str) -> set[str]:
        return {check.rule for check in quality_checks(text, ENGLISH_WORDS) if not check.ok}

    assert failing(PROSE) == set()
    assert "joined_words" in failing(salad)
    assert failing(notice) == {"legal_phrases"}
    assert "adult_words" in failing(offer) and "function_words" not in failing(offer)
    assert "function_words" in failing(links)


def test_real_prose_passes_our_own_rules(shared_data):
    """Encyclopedia and drama, 600 words at a time."""
    rules = {rule: ENGLISH_WORDS[rule] for rule in ("joined_words", "adult_words", "legal_phrases")}
    for name in ("tinyshakespeare.txt", "wikitext2_test.txt"):
        words = next((shared_data / "text").rglob(name)).read_text().split()
        for start in range(0, min(len(words) - 600, 60_000), 600):
            assert first_failed(" ".join(words[start : start + 600]), rules) == "", start


def test_datatrove_counts_punctuation_among_the_words():
    """By hand: 7 words with a letter and 8 marks."""
    text = "so , it - was / ; there : when ? we ! came ."
    options = {"word_tokenizer": "datatrove"}
    assert scores(text, GOPHER_QUALITY, **options)["alphabetic_words"] == 7 / 15
    glued = "so, it- was/; there: when? we! came. so"
    assert scores(glued, GOPHER_QUALITY)["alphabetic_words"] == 1
    assert scores(glued, GOPHER_QUALITY, **options)["alphabetic_words"] == 8 / 16
    assert scores(glued, GOPHER_QUALITY, **options)["words"] == 8
