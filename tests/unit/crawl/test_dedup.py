"""What pages have in common: copies near and exact, lines of many pages, words of the shop's tests."""

import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crawl2cart.core.params import read_params
from crawl2cart.crawl.dedup import minhash
from crawl2cart.crawl.dedup.clusters import find_copies
from crawl2cart.crawl.dedup.fingerprint import plain_words, text_key
from crawl2cart.crawl.dedup.lines import exact_line_dedup
from crawl2cart.crawl.dedup.minhash import components, minhash_dedup, near_pairs
from crawl2cart.crawl.evaluate import Label, copy_quality
from crawl2cart.crawl.executor import daft
from crawl2cart.crawl.filters.decontaminate import HeldOut, read_held_out
from crawl2cart.crawl.filters.page_filters import SHARD
from tests.conftest import ROOT

LIMITS = read_params(ROOT / "params.yaml").filter


def words(draw: random.Random, count: int) -> list[str]:
    return [
        f"{draw.choice('bcdfgklmnprst')}{draw.choice('aeiou')}{draw.choice('bdgklmnrst')}{draw.randrange(400)}"
        for _ in range(count)
    ]


def edited(text: list[str], changes: int, draw: random.Random) -> list[str]:
    """The text with so many of its words replaced, at places of their own."""
    text = list(text)
    for place in draw.sample(range(len(text)), changes):
        text[place] = f"edit{draw.randrange(10**6)}"
    return text


def shingles(text: list[str]) -> set[tuple[str, ...]]:
    return {tuple(text[start : start + 5]) for start in range(len(text) - 4)}


def jaccard(one: list[str], other: list[str]) -> float:
    """The common share of shingles, counted."""
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


def write_shard(path: Path, pages: list[tuple[str, str, str]]) -> Path:
    """A shard of pages (url, text, reason)."""
    rows = [
        dict.fromkeys(SHARD.names)
        | {"url": url, "text": text, "reason": reason, "key": text_key(text)}
        for url, text, reason in pages
    ]
    pq.write_table(pa.Table.from_pylist(rows, SHARD), path)
    return path


def stays(shards: list[Path], scratch: Path) -> dict[str, str]:
    """For each URL that goes, the one that stays."""
    urls = [url for shard in shards for url in pq.read_table(shard)["url"].to_pylist()]
    return {urls[page]: copy.of for page, copy in find_copies(shards, LIMITS, scratch).gone.items()}


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    """300 texts of which every second is an edited copy of the one before, more and more edited."""
    draw = random.Random(3)
    found = []
    for number in range(150):
        text = words(draw, draw.randint(150, 500))
        found += [text, edited(text, number // 4, draw)]
    return found


def test_similarity_is_the_share_of_common_shingles(texts, tmp_path):
    frame = daft.from_pydict(
        {"id": list(range(len(texts))), "text": [" ".join(text) for text in texts]}
    )
    pairs = near_pairs(
        frame.with_column("id", daft.col("id").cast(daft.DataType.uint64())),
        5,
        28,
        4,
        0.0,
        tmp_path,
    )
    errors = [
        similarity - jaccard(texts[first], texts[second])
        for first, second, similarity in zip(*pairs, strict=True)
    ]
    assert len(errors) > 100
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.06  # 0.5 / sqrt(112) at most


def test_near_copies_are_found_and_nothing_else(texts, tmp_path):
    files = [tmp_path / f"{number:03}.txt" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(" ".join(text))
    counts = minhash_dedup(files, 112, 28, 5, 0.45, tmp_path / "out")
    left = {file.name for file in (tmp_path / "out").iterdir()}
    alike = {
        number: jaccard(texts[number], texts[number + 1]) for number in range(0, len(texts), 2)
    }
    sure = [number for number, share in alike.items() if share > 0.6]
    assert len(sure) > 60
    assert sum(f"{number + 1:03}.txt" not in left for number in sure) >= 0.95 * len(sure)
    assert {f"{number:03}.txt" for number in alike} <= left, "the first by name stays"
    assert all(f"{number + 1:03}.txt" in left for number, share in alike.items() if share < 0.3)
    assert counts["documents"] == len(texts) and counts["kept"] == len(left)
    assert (counts["clusters"], counts["largest"]) == (len(texts) - len(left), 2)


def test_fewer_bands_of_more_rows_find_fewer_of_the_light_copies(texts, tmp_path):
    """1 - (1 - s^rows)^bands: the chance to meet is what the formula says, so the parameters mean what they should."""
    frame = daft.from_pydict(
        {"id": list(range(len(texts))), "text": [" ".join(text) for text in texts]}
    )
    frame = frame.with_column("id", daft.col("id").cast(daft.DataType.uint64()))
    for bands, rows in ((14, 8), (28, 4)):
        pairs = near_pairs(frame, 5, bands, rows, 0.0, tmp_path)
        met = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
        expected = found = 0.0
        for number in range(0, len(texts), 2):
            expected += 1 - (1 - jaccard(texts[number], texts[number + 1]) ** rows) ** bands
            found += (number, number + 1) in met
        assert abs(found - expected) < 12, (bands, rows)


def test_many_passes_find_what_one_finds(texts, tmp_path):
    frame = daft.from_pydict(
        {"id": list(range(len(texts))), "text": [" ".join(text) for text in texts]}
    )
    frame = frame.with_column("id", daft.col("id").cast(daft.DataType.uint64()))
    at_once = near_pairs(frame, 5, 7, 4, 0.4, tmp_path)
    for limit in (120, 700):  # a part of a band, two bands
        assert len(list(minhash.passes(len(texts), 7, limit))) > 3
        parts = near_pairs(frame, 5, 7, 4, 0.4, tmp_path, limit * minhash.BYTES_A_BAND)
        assert all(np.array_equal(one, other) for one, other in zip(at_once, parts, strict=True))


def test_clusters_are_those_of_a_graph_search():
    draw = random.Random(5)
    for _ in range(20):
        count = draw.randint(2, 60)
        edges = [(draw.randrange(count), draw.randrange(count)) for _ in range(draw.randint(0, 50))]
        reach = {place: {place} for place in range(count)}
        for one, other in edges * count:
            reach[one] = reach[other] = reach[one] | reach[other]
            for place in reach[one]:
                reach[place] = reach[one]
        first, second = (np.array([edge[side] for edge in edges], np.int64) for side in (0, 1))
        assert components(count, first, second).tolist() == [
            min(reach[place]) for place in range(count)
        ]


def test_the_order_of_pages_and_files_changes_nothing(texts, tmp_path):
    pages = [
        (f"https://{number % 7}.example/{number}", " ".join(text), "")
        for number, text in enumerate(texts[:80])
    ]
    pages += [(url, text, reason) for url, text, reason in pages[::9]]  # recorded twice
    pages += [
        (url.replace("https://", "https://mirror.example/"), text.upper(), "")
        for url, text, _ in pages[::5]
    ]
    answers = set()
    for seed in range(3):
        random.Random(seed).shuffle(pages)
        cuts = [0, 20 + seed, 70, len(pages)]
        shards = [
            write_shard(tmp_path / f"{seed}-{number}", pages[start:end])
            for number, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False))
        ]
        answers.add(tuple(sorted(stays(shards, tmp_path).items())))
    assert len(answers) == 1 and len(answers.pop()) > 30


def test_the_place_that_copies_least_keeps_its_text(tmp_path):
    """Of equal pages the mirror's goes, although its name comes first."""
    draw = random.Random(8)
    ours = [" ".join(words(draw, 200)) for _ in range(12)]
    pages = [
        (f"https://{'one' if number < 6 else 'two'}.example/{number}", text, "")
        for number, text in enumerate(ours)
    ]
    mirror = [(f"https://all.example/{number}", ours[number], "") for number in (0, 1, 6, 7)]
    gone = stays([write_shard(tmp_path / "shard", pages + mirror)], tmp_path)
    assert gone == {f"https://all.example/{number}": pages[number][0] for number in (0, 1, 6, 7)}


def test_a_page_that_names_its_source_gives_way(tmp_path):
    text = " ".join(words(random.Random(9), 300))
    pages = [
        ("https://a.example/", f"{text} Reprinted by kind permission of the author.", ""),
        ("https://b.example/", text, ""),
    ]
    assert stays([write_shard(tmp_path / "shard", pages)], tmp_path) == {
        "https://a.example/": "https://b.example/"
    }
    both = [(url, text + " It first appeared in the Gazette.", "") for url, _, _ in pages]
    assert stays([write_shard(tmp_path / "both", both)], tmp_path) == {
        "https://b.example/": "https://a.example/"
    }


def test_an_address_that_cannot_be_read_stops_nothing(texts, tmp_path):
    """A bracket that is never closed, as broken links have: the page is one of no host."""
    copied, other = " ".join(texts[0]), " ".join(texts[2])
    urls = ("https://a.example/1", "https://b.example/2", "http://[::1/3")
    shard = write_shard(
        tmp_path / "shard", [*((url, copied, "") for url in urls), ("http://[broken", other, "")]
    )
    assert len(stays([shard], tmp_path)) == 2


def test_removed_pages_make_no_copies(tmp_path):
    text = " ".join(words(random.Random(1), 100))
    shard = write_shard(
        tmp_path / "shard",
        [("https://a.example/", text, "language"), ("https://b.example/", text, "")],
    )
    assert stays([shard], tmp_path) == {}
    assert (
        stays([write_shard(tmp_path / "none", [("https://a.example/", text, "words")])], tmp_path)
        == {}
    )


def test_recall_and_false_merges_by_hand():
    labels = {
        url: Label(True, "", "en", of, 0)
        for url, of in {"a": "", "b": "a", "c": "a", "d": "", "e": "", "f": "e", "g": "d"}.items()
    }
    everything = set(labels)
    assert copy_quality([["b", "a", "c"], ["d", "e"]], everything, labels, everything) == {
        "n": 4,
        "recall": 0.5,
        "false_merges": 1,
    }
    assert copy_quality([["b", "a", "c"], ["d", "e"]], everything - {"g"}, labels, {"b", "g"}) == {
        "n": 1,
        "recall": 1.0,
        "false_merges": 0,
    }
    assert copy_quality([], set(), labels, everything) == {"n": 0, "false_merges": 0}


def test_lines_of_many_files_go_and_the_rest_stays_as_it_is(tmp_path):
    texts = [
        "Menu\nfirst story\n\nShare this\n",
        "Menu\nsecond  story\nShare this\n\tlast line",
        "Menu \nMenu\nthird\n",
    ]
    files = [tmp_path / f"{number}.txt" for number in range(3)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    counts = exact_line_dedup(files, tmp_path / "out")
    assert [(tmp_path / "out" / file.name).read_text() for file in files] == [
        "first story\n\n",
        "second  story\n\tlast line",
        "third\n",
    ]
    assert counts == {"documents": 3, "lines": 11, "repeated": 6, "distinct_repeated": 2}
    exact_line_dedup(files, tmp_path / "often", least=3, least_letters=5)
    assert "Share this" in (tmp_path / "often" / "0.txt").read_text()


@pytest.mark.parametrize("times", [2, 255, 256, 257, 600])
def test_a_line_goes_however_often_one_file_repeats_it(tmp_path, times):
    """256 is where a counter of one byte would be at nought again; U+2028 and a form feed end no line."""
    file = tmp_path / "log"
    file.write_text("on\u2028and\x0con\n" * times + "off\n")
    assert exact_line_dedup([file], tmp_path / "out")["repeated"] == times
    assert (tmp_path / "out" / "log").read_text() == "off\n"


def test_the_count_of_lines_is_exact_however_many_there_are(tmp_path, monkeypatch):
    """Few counters stand for many lines in the first pass; the second must still count each for itself."""
    monkeypatch.setattr("crawl2cart.crawl.dedup.lines.SLOTS", 16)
    draw = random.Random(2)
    texts = [[f"line {draw.randrange(300)}" for _ in range(20)] for _ in range(30)]
    files = [tmp_path / f"{number}" for number in range(30)]
    for file, lines in zip(files, texts, strict=True):
        file.write_text("\n".join(lines))
    exact_line_dedup(files, tmp_path / "out", least=4)
    often = {
        line
        for line, count in Counter(line for lines in texts for line in lines).items()
        if count >= 4
    }
    assert often
    for file, lines in zip(files, texts, strict=True):
        assert (tmp_path / "out" / file.name).read_text().splitlines() == [
            line for line in lines if line not in often
        ]


def test_held_out_words_are_found_wherever_they_stand():
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    held_out = HeldOut(
        iter(
            [
                long,
                "Could you {product} tell me what it costs to send this back, please?",
                "how much is {product}",
            ]
        ),
        13,
        8,
    )
    assert len(held_out) == 3
    assert (
        held_out.found_in(
            "A page: One, two three FOUR five six seven eight nine ten eleven twelve thirteen."
        )
        == "one two three four five six seven eight nine ten eleven twelve thirteen"
    )
    assert held_out.found_in(
        "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen."
    )
    assert not held_out.found_in(
        "one two three four five six seven eight nine ten eleven twelve and thirteen fourteen"
    )
    assert (
        held_out.found_in("They asked: tell me what it costs to send this back please. We did.")
        == "tell me what it costs to send this back please"
    )
    assert not held_out.found_in("tell me what it costs to send this back")
    assert not held_out.found_in("how much is it")


def test_it_agrees_with_a_plain_search():
    """Against every sequence looked for in every page as text."""
    draw = random.Random(4)
    vocabulary = "the red kettle is on a low shelf by old door".split()
    wordings = [" ".join(draw.choices(vocabulary, k=draw.randint(1, 9))) for _ in range(40)]
    pages = [" ".join(draw.choices(vocabulary, k=200)) for _ in range(60)]
    held_out = HeldOut(iter(wordings), 5, 3)
    grams = set()
    for wording in wordings:
        split = wording.split()
        if len(split) >= 3:
            length = min(5, len(split))
            grams |= {
                " ".join(split[start : start + length]) for start in range(len(split) - length + 1)
            }
    hits = 0
    for text in pages:
        found = {gram for gram in grams if f" {gram} " in f" {text} "}
        assert (held_out.found_in(text) in found) if found else held_out.found_in(text) == ""
        hits += bool(found)
    assert 0 < hits


def test_the_wordings_of_the_shop_that_test_the_agent_are_held_out():
    ours = HeldOut(
        read_held_out(ROOT / "data/store/wordings", ROOT / "data/store/plans.jsonl"), 13, 8
    )
    assert len(ours) > 100
    texts = list(read_held_out(ROOT / "data/store/wordings", ROOT / "data/store/plans.jsonl"))
    assert len(texts) > 600
    whole = [
        plain_words(text)
        for text in texts
        if "{" not in text and len(plain_words(text).split()) >= 8
    ]
    assert whole and all(ours.found_in(f"so they wrote {text} and left") for text in whole)


def test_pairs_are_unique_and_in_order(texts, tmp_path):
    frame = daft.from_pydict({"id": [5, 3, 9, 9], "text": ["a b c d e f g"] * 4})
    pairs = near_pairs(
        frame.with_column("id", daft.col("id").cast(daft.DataType.uint64())),
        5,
        14,
        8,
        0.5,
        tmp_path,
    )
    assert set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) <= set(
        combinations((3, 5, 9), 2)
    )
    assert components(10, pairs.first.astype(int), pairs.second.astype(int))[
        [3, 5, 9]
    ].tolist() == [3, 3, 3]
    assert pairs.similarity.tolist() == [1.0] * len(pairs.first)
