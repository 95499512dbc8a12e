"""What is about shopping: right on sites that were not learnt from, and kept only if asked for."""

import json
import random
from functools import cache

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from crawl2cart.core.errors import UserError
from crawl2cart.core.params import read_params
from crawl2cart.crawl.embedded_web.sites import gold_text, read_sites
from crawl2cart.crawl.evaluate import read_topics
from crawl2cart.crawl.filters.page_filters import Page, checks, filter_page
from crawl2cart.crawl.filters.topic_classifier import (
    MIN_PAGES,
    C,
    Weights,
    learn_from_sites,
    learn_topic,
    topic_score,
    topic_words,
)
from crawl2cart.crawl.shards import shard_key
from tests.conftest import ROOT
from tests.unit.crawl.samples import GERMAN
from tests.unit.crawl.test_page_filters import HOSTS, LIMITS, record
from tests.unit.crawl.workplace import (
    corpus_urls,
    digest,
    make_workplace,
    rejects,
    run_both,
    run_filter,
    set_params,
)

TOPICS = read_topics(ROOT / "data/web/topics.csv")
LABELLED = [page for page in read_sites(ROOT / "data/web/sites") if page.url in TOPICS]
TUNED = [page for page in LABELLED if not page.site.held_out]
TEXTS, SHOPPING = [gold_text(page) for page in TUNED], [TOPICS[page.url] for page in TUNED]
SITES = ("thelongtest", "tidewaygazette", "themudroom", "marlstone", "thefold")


@cache
def weights() -> Weights:
    return learn_from_sites(LABELLED, TOPICS)


# ---- the classifier ----


def test_the_score_is_the_probability_that_scikit_learn_gives():
    model = make_pipeline(
        TfidfVectorizer(analyzer=topic_words, sublinear_tf=True, min_df=MIN_PAGES),
        LogisticRegression(C=C, class_weight="balanced", tol=1e-8, max_iter=1000),
    ).fit(TEXTS, SHOPPING)
    texts = [gold_text(page) for page in LABELLED] + ["", "zzz", "$ 12.50 " * 300]
    theirs = model.predict_proba(texts)[:, 1]
    assert [topic_score(text, weights()) for text in texts] == pytest.approx(theirs, abs=1e-4)


def test_the_score_is_a_function_of_the_text_and_of_the_weights():
    assert learn_topic(TEXTS, SHOPPING) == weights()
    words, bias = json.loads(json.dumps(weights()))
    draw = random.Random(4)
    for text in TEXTS[::20]:
        score, lines = topic_score(text, weights()), text.split("\n")
        shuffled = "\n".join(draw.sample(lines, len(lines))).upper()
        assert score == pytest.approx(topic_score(shuffled, weights()))
        assert score == topic_score(text, Weights(words, bias))
        assert 0 < score < 1


def test_unseen_sites_are_told_apart_and_random_labels_teach_nothing():
    """Each third of the sites is scored by a model of the others. Held-out sites take no part."""
    hosts = sorted({page.host for page in TUNED})
    folds = [[page.host in hosts[third::3] for page in TUNED] for third in range(3)]

    def unseen_scores(labels: list[bool]) -> list[float]:
        scores = [0.0] * len(TUNED)
        for is_left_out in folds:
            rows = list(zip(TEXTS, labels, is_left_out, strict=True))
            model = learn_topic(*zip(*[row[:2] for row in rows if not row[2]], strict=True))
            for place, text in enumerate(TEXTS):
                if is_left_out[place]:
                    scores[place] = topic_score(text, model)
        return scores

    scores = unseen_scores(SHOPPING)
    right = [
        (score >= LIMITS.topic_threshold) == topic
        for score, topic in zip(scores, SHOPPING, strict=True)
    ]
    assert sum(right) / len(right) >= 0.8
    assert roc_auc_score(SHOPPING, scores) >= 0.87
    shuffled = random.Random(1).sample(SHOPPING, len(SHOPPING))
    assert roc_auc_score(SHOPPING, unseen_scores(shuffled)) < 0.65


def test_held_out_sites_are_scored_as_labelled():
    held_out = [page for page in LABELLED if page.site.held_out]
    right = sum(
        (topic_score(gold_text(page), weights()) >= LIMITS.topic_threshold) == TOPICS[page.url]
        for page in held_out
    )
    assert right / len(held_out) >= 0.8


@pytest.mark.parametrize("topic", [True, False])
def test_labels_of_one_topic_only_are_an_error(topic):
    with pytest.raises(UserError, match=r"data/web/topics\.csv"):
        learn_from_sites(LABELLED, dict.fromkeys(TOPICS, topic))


# ---- the rule ----


def test_it_is_the_last_rule_for_one_page_and_knows_english_only():
    with_topic = list(checks(Page(record()), LIMITS, HOSTS, weights()))
    without = list(checks(Page(record()), LIMITS, HOSTS))
    assert with_topic[:-1] == without
    assert (with_topic[-1].rule, with_topic[-1].low) == ("topic", LIMITS.topic_threshold)
    other, shopping = Weights({}, -2.0), Weights({}, 2.0)
    assert filter_page(record(), LIMITS, HOSTS, other)["reason"] == "topic"
    assert filter_page(record(), LIMITS, HOSTS, shopping) == filter_page(record(), LIMITS, HOSTS)
    german = Page(record("<p>" + GERMAN * 9))
    several = LIMITS.model_copy(update={"languages": "en, de"})
    assert "topic" not in [check.rule for check in checks(german, several, HOSTS, other)]


def test_other_weights_and_another_threshold_use_no_shard_of_before():
    keys = {
        shard_key("a", limits, HOSTS, learnt, {})
        for learnt in (None, weights(), Weights({}, 0.0))
        for limits in (LIMITS, LIMITS.model_copy(update={"topic_threshold": 0.9}))
    }
    assert len(keys) == 6


def test_with_shopping_the_rule_removes_what_is_about_something_else(tmp_path, monkeypatch):
    sites = [ROOT / "data/web/sites" / f"{site}.example" for site in SITES]
    monkeypatch.chdir(folder := make_workplace(tmp_path / "workplace", sites))
    everything, all_urls, before = run_both(), corpus_urls(), digest(folder)
    assert "topic" not in everything and "topic" not in everything["removed"]
    set_params(folder, topic_threshold="0.99")  # of no effect while all topics are kept
    run_filter()
    assert digest(folder) == before
    set_params(folder, topic_threshold=str(LIMITS.topic_threshold), topic_filter="shopping")
    metrics, urls = run_filter(), corpus_urls()
    removed = {row["url"]: row["score"] for row in rejects() if row["reason"] == "topic"}
    assert urls < all_urls and all_urls - urls <= set(removed)
    assert metrics["removed"]["topic"] == len(removed)
    assert metrics["documents"]["in"] == everything["documents"]["in"]
    assert all(score < LIMITS.topic_threshold for score in removed.values())
    tests, news = (
        [url for url in urls if url.startswith(prefix)]
        for prefix in (
            "https://thelongtest.example/kitchen/",
            "https://tidewaygazette.example/council/",
        )
    )
    assert len(tests) >= 4 and not news
    hosts = {f"{site}.example" for site in SITES}
    held_out = {page.url for page in LABELLED if page.site.held_out and page.host in hosts}
    assert metrics["topic"]["n"] == len(held_out)
    precision = sum(TOPICS[url] for url in urls & held_out) / len(urls & held_out)
    assert metrics["topic"]["precision"] == pytest.approx(precision, rel=1e-4)


def test_an_unknown_topic_to_keep_is_named(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    wrong = text.replace("  topic_filter: all\n", "  topic_filter: shoping\n")
    (tmp_path / "params.yaml").write_text(wrong)
    with pytest.raises(UserError, match=r"filter\.topic_filter: .*'shopping'.*'shoping'"):
        read_params(tmp_path / "params.yaml")
