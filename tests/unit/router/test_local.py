"""The local classifier against hand calculations, labelled queries and another shop."""

import re

import numpy as np
import pytest

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import write_jsonl
from crawl2cart.router.evaluation import accuracy_by_topic, calibration_error, measure
from crawl2cart.router.local import (
    Lexicon,
    LocalRouter,
    common_words,
    delexicalize,
    platt,
    tokenize_words,
)
from crawl2cart.router.training import read_lexicon, train, wording_queries
from crawl2cart.shop.data_model import Product, Review
from crawl2cart.shop.loader import rows
from tests.conftest import ROOT
from tests.unit.router.small_router import STORE, queries, small_router
from tools.lint_queries import lint_queries


def test_calibration_error_is_the_mean_gap_weighted_by_bin_size():
    # 0.05 and 0.15 are alone in their bins and false: gaps 0.05, 0.15. Two of 0.9 share a bin and
    # one is true: gap 0.4.
    truth = np.array([False, False, True, False])
    error = calibration_error(np.array([0.05, 0.15, 0.9, 0.9]), truth)
    assert error == pytest.approx((0.05 + 0.15 + 2 * 0.4) / 4)
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


def test_platt_meets_the_softened_targets_and_stays_finite_on_separable_scores():
    # Four queries a side: the targets are 5/6 and 1/6, and sigmoid(slope) = 5/6 at slope = ln 5.
    slope, offset = platt(np.array([1.0] * 4 + [-1.0] * 4), np.array([True] * 4 + [False] * 4))
    assert slope == pytest.approx(np.log(5), abs=1e-3)
    assert offset == pytest.approx(0, abs=1e-3)


def test_delexicalizing_keeps_the_phrasing_and_drops_the_topic():
    lexicon = Lexicon(
        things=frozenset({"lamp"}),
        brands=frozenset({"velm"}),
        used=frozenset({"brass", "dimmable"}),
        often=frozenset({"dimmable"}),
    )
    common = frozenset({"is", "the", "in", "which", "has", "most", "for"})
    expected = {
        "is the Velm Heron lamp dimmable in brass?": (
            "^ is the <brand> <name> <thing> <shop> in <rare> ? $"
        ),
        "which country has the most lakes": "^ which <rare> has the most <rare> $",
        "TB-48213, jo@example.org, $5.50 for 3": "^ <code> <mail> <price> for <number> $",
        "": "^ $",
    }
    actual = {text: " ".join(delexicalize(text, lexicon, common)) for text in expected}
    assert actual == expected


def test_a_word_is_common_when_many_topics_use_it():
    topics = ("sleet", "sin", "tyres", "rhyme")
    rows = [{"text": f"how {topic} does", "topic": topic} for topic in topics]
    assert common_words(rows) == {"how", "does"}
    assert common_words(rows[:3] * 2) == frozenset()


def test_a_loaded_router_is_the_saved_one_and_equal_routers_are_equal_bytes(tmp_path):
    router = small_router()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        router.save(tmp_path / name)
    for file in ("vocabulary.json", "router.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    loaded = LocalRouter.load(tmp_path / "one")
    texts = [row["text"] for row in queries("test")]
    assert np.array_equal(router.probabilities(texts), loaded.probabilities(texts))
    assert [loaded(text) for text in texts[:10]] == [router(text) for text in texts[:10]]


def test_a_missing_or_damaged_router_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match="dvc repro router"):
        LocalRouter.load(tmp_path)
    small_router().save(tmp_path)
    weights = tmp_path / "router.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged.*dvc repro router"):
        LocalRouter.load(tmp_path)


def test_the_classifier_is_far_better_than_the_majority_label_on_topics_it_never_saw():
    test = queries("test")
    quality, topics = measure(small_router(), test), accuracy_by_topic(small_router(), test)
    majority = max(sum(row["label"] == label for row in test) for label in ("shopping", "other"))
    correct = sum(values["right"] * values["n"] for values in topics.values())
    assert correct / len(test) > majority / len(test) + 0.1
    assert quality["auroc"] > 0.8
    assert quality["n"] == len(test) == sum(values["n"] for values in topics.values())


def test_shuffled_labels_teach_nothing():
    """The negative control of the test above."""
    train_rows, test = queries("train")[::4], queries("test")
    labels = np.random.default_rng(0).permutation([row["label"] for row in train_rows])
    shuffled = [row | {"label": str(label)} for row, label in zip(train_rows, labels, strict=True)]
    router = LocalRouter.fit(shuffled, queries("validation"), read_lexicon(STORE), 3.0, 0.6)
    truth = np.array([row["label"] == "shopping" for row in test])
    scores = router.scores([row["text"] for row in test])
    auroc = (scores[truth][:, None] > scores[~truth]).mean()
    assert 0.35 < auroc < 0.65


def test_the_phrasing_alone_tells_where_no_query_has_the_words():
    shopping = small_router()("do you have any splonkers under 40 dollars").shopping
    other = small_router()("which zorvian won the splonker of 1850").shopping
    assert shopping > 0.5 > other


def test_a_decision_below_the_threshold_is_unclear():
    router = small_router()
    decisions = [router(row["text"]) for row in queries("test")[::5]]
    assert {decision.label for decision in decisions} == {"shopping", "other", "unclear"}
    for decision in decisions:
        likelier = max(decision.shopping, 1 - decision.shopping)
        assert (decision.label == "unclear") == (likelier < router.abstain_threshold)


@pytest.mark.parametrize("text", ["", " ", "?", "🐕🐕", "日本語", "\x00\ud800", "word " * 50_000])
def test_any_text_gets_a_decision(text):
    assert 0 <= small_router()(text).shopping <= 1


# What a shop adds to the queries


@pytest.mark.parametrize("split", ["train", "test"])
def test_wordings_become_queries_about_products_of_their_split(split):
    wordings = wording_queries(STORE, split)
    assert wordings == wording_queries(STORE, split)
    assert {row["label"] for row in wordings} == {"shopping", "other"}
    assert not [row["text"] for row in wordings if "{" in row["text"]]
    text = "\n".join(row["text"] for row in wordings)
    products = rows(STORE / "products", Product)
    held_out = {product.held_out for product in products if product.name in text}
    assert held_out == {split != "train"}


def test_another_shop_has_a_lexicon_of_its_own():
    ours, theirs = read_lexicon(STORE), read_lexicon(ROOT / "tests" / "second_shop")
    assert "violins" in theirs.things - ours.things and "kettle" in ours.things - theirs.things
    assert theirs.brands and theirs.often <= theirs.used


def test_the_lexicon_knows_nothing_of_held_out_products():
    products = rows(STORE / "products", Product)
    held_out, public = set(), set(read_lexicon(STORE).things)
    for product in products:
        if product.held_out:
            held_out |= set(tokenize_words(product.name))
        else:
            public |= set(tokenize_words(f"{product.name} {product.description}"))
    for file in (STORE / "policies").glob("*.md"):
        public |= set(tokenize_words(file.read_text()))
    for review in rows(STORE / "reviews", Review):
        public |= set(tokenize_words(review.text))
    secret = held_out - public
    assert secret and not secret & read_lexicon(STORE).used


def test_a_file_of_queries_that_lacks_a_label_is_an_error_that_names_it(tmp_path):
    row = {"text": "a lamp", "label": "shopping", "topic": "search", "hard": False}
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [row])
    with pytest.raises(UserError, match="train.jsonl.*label"):
        train(tmp_path, STORE, 3.0, 0.6)


# The check of the queries themselves


GOOD_QUERIES = {
    "train": [
        ("do you sell lamps for a desk", "shopping", "search", False),
        ("why is the sky blue", "other", "sky", False),
    ],
    "validation": [
        ("where is my order", "shopping", "orders", False),
        ("who painted it", "other", "art", False),
    ],
    "test": [
        ("a red kettle", "shopping", "search", False),
        ("may I sue my landlord", "other", "law", True),
    ],
}


@pytest.mark.parametrize(
    ("split", "row", "fault"),
    [
        ("train", None, None),
        ("train", ("a lamp", "buying", "search", False), "train.jsonl:2: label"),
        ("test", ("a lamp", "other", "law", "no"), "test.jsonl:2: hard"),
        ("test", ("a lamp", "shopping", "search", False), "test.jsonl: no query has the label"),
        ("train", ("Who painted it ", "other", "sky", False), "the same text"),
        ("train", ("how high is it", "other", "art", False), "topic art"),
        ("train", ("sue my landlord may I", "other", "sky", False), "nearly.*test.jsonl:2"),
    ],
)
def test_each_kind_of_fault_in_the_queries_is_named(tmp_path, split, row, fault):
    rows = dict(GOOD_QUERIES)
    if row:
        rows[split] = [rows[split][0], row]
    (tmp_path / "queries").mkdir()
    for name, values in rows.items():
        keys = ("text", "label", "topic", "hard")
        lines = [dict(zip(keys, value, strict=True)) for value in values]
        write_jsonl(tmp_path / "queries" / f"{name}.jsonl", lines)
    faults = "\n".join(lint_queries(tmp_path))
    assert re.search(fault, faults) if fault else not faults
