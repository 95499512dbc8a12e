"""What is about shopping: a function of the text and of what was learnt, right on sites that it has not seen, off by default."""

import json
import random
from functools import cache
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from crawl2cart.core.errors import UserError
from crawl2cart.core.params import read_params
from crawl2cart.core.stage import Stage
from crawl2cart.crawl.embedded_web.sites import gold_text, read_sites
from crawl2cart.crawl.evaluate import read_labels, read_topics
from crawl2cart.crawl.filters.page_filters import Page, checks, filter_page
from crawl2cart.crawl.filters.topic_classifier import (
    INVERSE_PENALTY,
    LEAST_PAGES,
    Weights,
    learn_topic,
    topic_score,
    topic_words,
)
from crawl2cart.crawl.shards import shard_key
from stages import filter
from tests.conftest import ROOT
from tests.unit.crawl.test_filter import (
    corpus,
    digest,
    make_workplace,
    rejects,
    run_both,
    set_params,
)
from tests.unit.crawl.test_page_filters import HOSTS, LIMITS, record

TOPICS = read_topics(ROOT / "data/web/topics.csv")
LABELLED = [page for page in read_sites(ROOT / "data/web/sites") if page.url in TOPICS]
SEEN = [page for page in LABELLED if not page.site.held_out]
TEXTS, SHOPPING = [gold_text(page) for page in SEEN], [TOPICS[page.url] for page in SEEN]
SITES = (
    "thelongtest.example",
    "tidewaygazette.example",
    "themudroom.example",
    "marlstone.example",
    "thefold.example",
)


@cache
def weights() -> Weights:
    return learn_topic(TEXTS, SHOPPING)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    folder = make_workplace(
        tmp_path / "workplace", [ROOT / "data/web/sites" / site for site in SITES]
    )
    monkeypatch.chdir(folder)
    return folder


def test_each_page_to_keep_has_a_topic_and_both_occur_on_either_side():
    labels = read_labels(ROOT / "data/web/labels.csv")
    assert list(TOPICS) == sorted(url for url, label in labels.items() if label.keep)
    for held_out in (False, True):
        about = [TOPICS[page.url] for page in LABELLED if page.site.held_out == held_out]
        assert 0.2 < sum(about) / len(about) < 0.5


def test_a_line_that_is_no_topic_is_named(tmp_path):
    file = tmp_path / "topics.csv"
    for lines, fault in (
        ("url,subject\n", "topics.csv:1"),
        ("url,topic\nhttps://a.example/,shop\n", "topics.csv:2"),
        ("url,topic\nhttps://a.example/,other\nhttps://a.example/,shopping\n", "topics.csv:3"),
    ):
        file.write_text(lines)
        with pytest.raises(UserError, match=fault):
            read_topics(file)


def test_the_score_is_the_probability_that_scikit_learn_gives():
    model = make_pipeline(
        TfidfVectorizer(analyzer=topic_words, sublinear_tf=True, min_df=LEAST_PAGES),
        LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", tol=1e-8, max_iter=1000),
    ).fit(TEXTS, SHOPPING)
    texts = [gold_text(page) for page in LABELLED] + ["", "zzz", "$ 12.50 " * 300]
    theirs = model.predict_proba(texts)[:, 1]
    assert [topic_score(text, weights()) for text in texts] == pytest.approx(theirs, abs=1e-4)


def test_the_score_is_a_function_of_the_text_and_of_what_was_learnt():
    assert learn_topic(TEXTS, SHOPPING) == weights()
    words, bias = json.loads(json.dumps(weights()))
    draw = random.Random(4)
    for text in TEXTS[::20]:
        score = topic_score(text, weights())
        lines = text.split("\n")
        assert score == pytest.approx(
            topic_score("\n".join(draw.sample(lines, len(lines))).upper(), weights())
        )
        assert score == topic_score(text, Weights(words, bias))
        assert 0 < score < 1


def test_sites_that_were_never_seen_are_told_apart_and_labels_by_chance_teach_nothing():
    """Each fifth of the sites by a model that learnt from the others. Held-out sites take no part."""
    hosts = sorted({page.host for page in SEEN})
    chance = random.Random(1).sample(SHOPPING, len(SHOPPING))

    def unseen(labels: list[bool]) -> list[float]:
        scores = [0.0] * len(SEEN)
        for fifth in range(5):
            left_out = [page.host in hosts[fifth::5] for page in SEEN]
            learnt = learn_topic(
                [text for text, out in zip(TEXTS, left_out, strict=True) if not out],
                [label for label, out in zip(labels, left_out, strict=True) if not out],
            )
            scores = [
                topic_score(text, learnt) if out else score
                for text, out, score in zip(TEXTS, left_out, scores, strict=True)
            ]
        return scores

    scores = unseen(SHOPPING)
    right = sum(
        (score >= LIMITS.topic_threshold) == about
        for score, about in zip(scores, SHOPPING, strict=True)
    )
    assert right / len(SEEN) >= 0.8
    assert roc_auc_score(SHOPPING, scores) >= 0.87
    assert roc_auc_score(SHOPPING, unseen(chance)) < 0.65


def test_held_out_sites_are_judged_as_labelled():
    held_out = [page for page in LABELLED if page.site.held_out]
    right = sum(
        (topic_score(gold_text(page), weights()) >= LIMITS.topic_threshold) == TOPICS[page.url]
        for page in held_out
    )
    assert right / len(held_out) >= 0.8


def test_it_is_the_last_rule_for_one_page_and_asked_of_english_only():
    asked = list(checks(Page(record()), LIMITS, HOSTS, weights()))
    assert [check.rule for check in asked[:-1]] == [
        check.rule for check in checks(Page(record()), LIMITS, HOSTS)
    ]
    assert (asked[-1].rule, asked[-1].low, asked[-1].high) == ("topic", LIMITS.topic_threshold, 1)
    news, about = Weights({}, -2.0), Weights({}, 2.0)
    assert filter_page(record(), LIMITS, HOSTS, news)["reason"] == "topic"
    assert filter_page(record(), LIMITS, HOSTS, about) == filter_page(record(), LIMITS, HOSTS)
    german = record(
        "<p>" + "Niemand am Hafen weiß noch, wer das Bootshaus gelb gestrichen hat. " * 9
    )
    several = LIMITS.model_copy(update={"languages": "en, de"})
    assert "topic" not in [check.rule for check in checks(Page(german), several, HOSTS, news)]


def test_other_weights_and_another_threshold_use_no_shard_of_before():
    keys = {
        shard_key("a", limits, HOSTS, learnt, {})
        for learnt in (None, weights(), Weights({}, 0.0))
        for limits in (LIMITS, LIMITS.model_copy(update={"topic_threshold": 0.9}))
    }
    assert len(keys) == 6


def test_all_is_kept_unless_asked_and_then_nothing_is_learnt(workplace):
    assert LIMITS.topic_filter == "all"
    metrics = run_both()
    before = digest(workplace)
    assert "topic" not in metrics and "topic" not in metrics["removed"]
    no_labels = workplace / "data/web/topics.csv"
    no_labels.unlink()  # a link to ours
    no_labels.write_text("url,topic\n")
    set_params(workplace, topic_threshold="0.99")
    filter.main(Stage("filter"))
    assert digest(workplace) == before


def test_with_shopping_the_rule_takes_what_is_about_something_else(workplace, capsys):
    everything = run_both()
    kept = {row["url"] for row in corpus("train") + corpus("val")}
    set_params(workplace, keep="shopping")
    metrics = run_both()
    fewer = {row["url"] for row in corpus("train") + corpus("val")}
    gone = {row["url"]: row["score"] for row in rejects() if row["reason"] == "topic"}
    assert fewer < kept and kept - fewer <= set(gone)
    assert (
        metrics["removed"]["topic"] == len(gone)
        and metrics["documents"]["in"] == everything["documents"]["in"]
    )
    assert all(score < LIMITS.topic_threshold for score in gone.values())
    test, news = "https://thelongtest.example/kitchen/", "https://tidewaygazette.example/council/"
    assert sum(url.startswith(test) for url in fewer) >= 4 and not any(
        url.startswith(news) for url in fewer
    )
    held_out = {page.url for page in LABELLED if page.site.held_out and page.host in SITES}
    assert metrics["topic"]["n"] == len(held_out)
    assert metrics["topic"]["precision"] == pytest.approx(
        sum(TOPICS[url] for url in fewer & held_out) / len(fewer & held_out), rel=1e-4
    )
    assert filter.show([min(gone)]) is None
    assert "FAILS  topic: " in capsys.readouterr().out


def test_labels_of_one_topic_only_are_a_problem(workplace):
    (workplace / "data/web/topics.csv").unlink()
    (workplace / "data/web/topics.csv").write_text(
        "url,topic\n" + "".join(f"{page.url},other\n" for page in SEEN)
    )
    set_params(workplace, keep="shopping")
    with pytest.raises(UserError, match=r"data/web/topics\.csv"):
        run_both()


def test_an_unknown_topic_to_keep_is_named(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("  keep: all\n", "  keep: shoping\n"))
    with pytest.raises(
        UserError, match=r"filter\.keep: .*'all' or 'shopping', but it is 'shoping'"
    ):
        read_params(tmp_path / "params.yaml")
