"""What pages have in common: near copies and exact ones, lines of many pages, held-out texts."""

import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crawl2cart.core.errors import UserError
from crawl2cart.core.params import read_params
from crawl2cart.crawl.dedup import lines, minhash
from crawl2cart.crawl.dedup.clusters import find_copies
from crawl2cart.crawl.dedup.fingerprint import plain_words, text_key, unit_interval
from crawl2cart.crawl.dedup.lines import cut_lines, repeated_lines
from crawl2cart.crawl.dedup.minhash import Pairs, components, near_pairs
from crawl2cart.crawl.executor import daft
from crawl2cart.crawl.filters.decontaminate import HeldOutNgrams, read_held_out
from crawl2cart.crawl.filters.page_filters import SHARD
from tests.conftest import ROOT
from tests.unit.crawl.samples import examples

LIMITS = read_params(ROOT / "params.yaml").filter
CONSONANTS, VOWELS = "bcdfgklmnprst", "aeiou"


def random_words(draw: random.Random, count: int) -> list[str]:
    return [
        draw.choice(CONSONANTS) + draw.choice(VOWELS) + str(draw.randrange(4000))
        for _ in range(count)
    ]


def edited(words: list[str], changes: int, draw: random.Random) -> list[str]:
    """The words with so many of them replaced."""
    words = list(words)
    for place in draw.sample(range(len(words)), changes):
        words[place] = f"edit{draw.randrange(10**6)}"
    return words


def jaccard(one: list[str], other: list[str]) -> float:
    """The common share of shingles of five words, counted."""
    shingles = [
        {tuple(words[at : at + 5]) for at in range(len(words) - 4)} for words in (one, other)
    ]
    return len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    """200 texts; every second is an edited copy of the one before, later ones more edited."""
    draw = random.Random(3)
    words = []
    for number in range(100):
        original = random_words(draw, draw.randint(150, 400))
        words += [original, edited(original, number * 3 // 8, draw)]
    return words


def find_pairs(
    texts: list[list[str]],
    scratch: Path,
    bands: int = 28,
    rows: int = 4,
    threshold: float = 0.0,
    memory_bytes: int | None = None,
) -> Pairs:
    """near_pairs of texts whose ids are their places."""
    columns = {"id": list(range(len(texts))), "text": [" ".join(words) for words in texts]}
    return near_pairs(
        daft.from_pydict(columns),
        scratch,
        ngram=5,
        bands=bands,
        rows=rows,
        threshold=threshold,
        memory_bytes=memory_bytes,
    )


# ---- near copies ----


def test_similarity_is_the_share_of_common_shingles(texts, tmp_path):
    errors = [
        similarity - jaccard(texts[first], texts[second])
        for first, second, similarity in zip(*find_pairs(texts, tmp_path), strict=True)
    ]
    assert len(errors) > 70
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.06  # 0.5 / sqrt(112) at most


def test_near_copies_are_found_and_nothing_else(texts, tmp_path):
    pairs = find_pairs(texts, tmp_path, threshold=0.45)
    clusters = components(len(texts), pairs.first.astype(int), pairs.second.astype(int))
    removed = set(np.flatnonzero(clusters != np.arange(len(texts))).tolist())
    shares = {at: jaccard(texts[at - 1], texts[at]) for at in range(1, len(texts), 2)}
    sure = {at for at, share in shares.items() if share > 0.6}
    assert len(sure) > 35
    assert len(sure & removed) >= 0.95 * len(sure)
    assert removed <= {at for at, share in shares.items() if share >= 0.3}, "the first stays"


def test_fewer_bands_of_more_rows_find_fewer_of_the_light_copies(texts, tmp_path):
    """The chance to meet is 1 - (1 - s^rows)^bands."""
    for bands, rows in ((14, 8), (28, 4)):
        pairs = find_pairs(texts, tmp_path, bands, rows)
        met = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
        expected = count = 0.0
        for number in range(0, len(texts), 2):
            expected += 1 - (1 - jaccard(texts[number], texts[number + 1]) ** rows) ** bands
            count += (number, number + 1) in met
        assert abs(count - expected) < 10, (bands, rows)


def test_many_passes_find_what_one_finds(texts, tmp_path):
    at_once = find_pairs(texts, tmp_path, bands=7, threshold=0.4)
    for limit in (120, 500):  # a part of a band, two bands
        assert len(list(minhash.passes(len(texts), 7, limit))) > 3
        memory = limit * minhash.BYTES_PER_BAND
        parts = find_pairs(texts, tmp_path, bands=7, threshold=0.4, memory_bytes=memory)
        assert all(np.array_equal(one, other) for one, other in zip(at_once, parts, strict=True))


def test_pairs_are_unique_and_in_order_and_equal_texts_may_share_an_id(tmp_path):
    frame = daft.from_pydict({"id": [5, 3, 9, 9], "text": ["a b c d e f g"] * 4})
    pairs = near_pairs(frame, tmp_path, ngram=5, bands=14, rows=8, threshold=0.5)
    ids = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert ids == sorted(set(ids)) and set(ids) <= set(combinations((3, 5, 9), 2))
    clusters = components(10, pairs.first.astype(int), pairs.second.astype(int))
    assert clusters[[3, 5, 9]].tolist() == [3, 3, 3]
    assert pairs.similarity.tolist() == [1.0] * len(pairs.first)


def test_no_texts_have_no_pairs(tmp_path):
    frame = daft.from_pydict({"id": [1], "text": ["a"]}).where(daft.col("id") > 1)
    pairs = near_pairs(frame, tmp_path, ngram=5, bands=2, rows=2, threshold=0.5)
    assert [len(column) for column in pairs] == [0, 0, 0]


NODES = st.integers(0, 29)


@examples(200)
@given(st.lists(st.tuples(NODES, NODES), max_size=40))
def test_clusters_are_those_of_a_graph_search(edges):
    reached = {node: {node} for node in range(30)}
    for one, other in edges:
        joined = reached[one] | reached[other]
        for node in joined:
            reached[node] = joined
    first, second = (np.array([edge[side] for edge in edges], np.int64) for side in (0, 1))
    assert components(30, first, second).tolist() == [min(reached[node]) for node in range(30)]


# ---- which copy stays ----


def write_shard(path: Path, pages: list[tuple[str, str, str]]) -> Path:
    """A shard of pages (url, text, reason)."""
    empty = dict.fromkeys(SHARD.names)
    rows = [
        empty | {"url": url, "text": text, "reason": reason, "key": text_key(text)}
        for url, text, reason in pages
    ]
    pq.write_table(pa.Table.from_pylist(rows, SHARD), path)
    return path


def kept_instead(shards: list[Path], scratch: Path) -> dict[str, str]:
    """For each URL that goes, the one that stays."""
    urls = [url for shard in shards for url in pq.read_table(shard)["url"].to_pylist()]
    removed = find_copies(shards, LIMITS, scratch).removed
    return {urls[page]: copy.of for page, copy in removed.items()}


def test_the_order_of_pages_and_files_changes_nothing(texts, tmp_path):
    pages = [
        (f"https://{number % 7}.example/{number}", " ".join(words), "")
        for number, words in enumerate(texts[:60])
    ]
    mirrored = [
        (url.replace("https://", "https://mirror.example/"), text.upper(), "")
        for url, text, _ in pages[::5]
    ]
    pages += [*pages[::9], *mirrored]  # some recorded twice
    answers = set()
    for seed in range(3):
        random.Random(seed).shuffle(pages)
        cuts = [0, 20 + seed, 50, len(pages)]
        shards = [
            write_shard(tmp_path / f"{seed}-{start}", pages[start:end])
            for start, end in zip(cuts, cuts[1:], strict=False)
        ]
        answers.add(tuple(sorted(kept_instead(shards, tmp_path).items())))
    assert len(answers) == 1 and len(answers.pop()) > 20


def test_the_host_that_copies_least_keeps_its_text(tmp_path):
    """Of equal pages the mirror's goes, although its name comes first."""
    draw = random.Random(8)
    originals = [" ".join(random_words(draw, 200)) for _ in range(12)]
    pages = [
        (f"https://{'one' if number < 6 else 'two'}.example/{number}", text, "")
        for number, text in enumerate(originals)
    ]
    mirrored = (0, 1, 6, 7)
    mirror = [(f"https://all.example/{number}", originals[number], "") for number in mirrored]
    assert kept_instead([write_shard(tmp_path / "shard", pages + mirror)], tmp_path) == {
        f"https://all.example/{number}": pages[number][0] for number in mirrored
    }


def test_a_page_that_credits_its_source_gives_way(tmp_path):
    text = " ".join(random_words(random.Random(9), 300))
    a, b = "https://a.example/", "https://b.example/"
    one = [(a, f"{text} Reprinted by kind permission of the author.", ""), (b, text, "")]
    assert kept_instead([write_shard(tmp_path / "one", one)], tmp_path) == {a: b}
    both = [(url, f"{text} It first appeared in the Gazette.", "") for url in (a, b)]
    assert kept_instead([write_shard(tmp_path / "both", both)], tmp_path) == {b: a}


def test_an_address_that_cannot_be_parsed_stops_nothing(texts, tmp_path):
    """A bracket that is never closed, as broken links have: the page has no host."""
    copied, other = " ".join(texts[0]), " ".join(texts[2])
    urls = ("https://a.example/1", "https://b.example/2", "http://[::1/3")
    pages = [*((url, copied, "") for url in urls), ("http://[broken", other, "")]
    assert len(kept_instead([write_shard(tmp_path / "shard", pages)], tmp_path)) == 2


def test_removed_pages_make_no_copies(tmp_path):
    text = " ".join(random_words(random.Random(1), 100))
    pages = [("https://a.example/", text, "language"), ("https://b.example/", text, "")]
    assert kept_instead([write_shard(tmp_path / "shard", pages)], tmp_path) == {}
    assert kept_instead([write_shard(tmp_path / "none", pages[:1])], tmp_path) == {}


def test_the_hash_spreads_texts_evenly():
    places = [unit_interval(text_key(f"page {number}")) for number in range(4000)]
    assert all(0 <= place < 1 for place in places)
    assert abs(sum(place < 0.08 for place in places) / 4000 - 0.08) < 0.015


# ---- repeated lines ----


@pytest.fixture(autouse=True)
def few_counters(monkeypatch):
    """Few counters stand for many lines in the first pass; the second counts each for itself."""
    monkeypatch.setattr(lines, "SLOTS", 16)


def dedup(texts: list[str], min_pages: int = 2, min_letters: int = 1) -> list[str]:
    """The texts without the lines of many of them."""
    repeated = repeated_lines(lambda: texts, min_pages, min_letters)
    return [cut_lines(text, repeated, min_letters)[0] for text in texts]


def test_lines_of_many_texts_go_and_the_rest_stays_as_it_is():
    texts = [
        "Menu\nfirst story\n\nnext part\nShare this",
        "Menu\nsecond  story\nShare this\n\tlast line",
        "Menu \nthird\n\n\n\nMenu\n\nend",
    ]
    assert dedup(texts) == [
        "first story\n\nnext part",
        "second  story\n\tlast line",
        "third\n\nend",
    ]
    assert dedup(texts, min_pages=3, min_letters=5) == texts
    assert "Share this" in dedup(texts, min_pages=3)[0]
    assert dedup([]) == []


@pytest.mark.parametrize("times", [2, 255, 256, 257, 600])
def test_a_line_goes_however_many_texts_repeat_it(times):
    """At 256 a counter of one byte would start again; U+2028 and a form feed end no line."""
    assert dedup(["on\u2028and\x0con\noff"] * times + ["on"], min_pages=times) == [""] * times + [
        "on"
    ]


LINES = st.lists(st.integers(0, 40).map("line {}".format), max_size=12)


@examples(100)
@given(st.lists(LINES, max_size=12))
def test_the_count_of_lines_is_exact_and_counts_texts(pages):
    often = {
        line
        for line, count in Counter(x for page in pages for x in set(page)).items()
        if count >= 3
    }
    left = ["\n".join(line for line in page if line not in often) for page in pages]
    assert dedup(["\n".join(page) for page in pages], min_pages=3) == left


# ---- held-out texts ----


def test_held_out_words_are_found_wherever_they_stand():
    numbers = (
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen".split()
    )
    question = "Could you {product} tell me what it costs to send this back, please?"
    texts = [" ".join(numbers), question, "how much is {product}"]
    held_out = HeldOutNgrams(texts, 13, 8)
    assert len(held_out) == 3
    page = "A page: One, two three FOUR five six seven eight nine ten eleven twelve thirteen."
    assert held_out.first_match(page) == " ".join(numbers[:13])
    assert held_out.first_match(f"zero {' '.join(numbers[1:])}.")
    assert not held_out.first_match(" ".join([*numbers[:12], "and", *numbers[12:]]))
    piece = "tell me what it costs to send this back please"
    assert held_out.first_match(f"They asked: {piece}. We did.") == piece
    assert not held_out.first_match("tell me what it costs to send this back")
    assert not held_out.first_match("how much is it")
    with pytest.raises(UserError, match="min_ngram"):
        HeldOutNgrams(texts, 8, 13)


WORDS = st.sampled_from("the red kettle is on a low".split())


@examples(100)
@given(
    st.lists(st.lists(WORDS, min_size=1, max_size=9), max_size=8),
    st.lists(WORDS, max_size=60),
)
def test_held_out_ngrams_are_those_of_a_plain_search(wordings, page):
    held_out = HeldOutNgrams(map(" ".join, wordings), 5, 3)
    ngrams = set()
    for words in wordings:
        length = min(5, len(words))
        if length >= 3:
            ngrams |= {
                " ".join(words[start : start + length]) for start in range(len(words) - length + 1)
            }
    text = " ".join(page)
    matches = {ngram for ngram in ngrams if f" {ngram} " in f" {text} "}
    match = held_out.first_match(text)
    assert match in matches if matches else match == ""


def test_the_wordings_of_the_shop_that_test_the_agent_are_held_out():
    texts = list(read_held_out(ROOT / "data/store/wordings", ROOT / "data/store/plans.jsonl"))
    held_out = HeldOutNgrams(texts, 13, 8)
    assert len(held_out) > 100 and len(texts) > 600
    whole = [plain_words(text) for text in texts if "{" not in text]
    whole = [text for text in whole if len(text.split()) >= 8]
    assert whole and all(held_out.first_match(f"so they wrote {text} and left") for text in whole)
