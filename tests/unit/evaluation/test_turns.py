"""Metrics over single turns: shares, tables, transcripts, routing, baselines."""

import re

import pytest

from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.evaluation.baselines import BASELINES, call_by_keywords
from crawl2cart.evaluation.routing import routed_metrics
from crawl2cart.evaluation.transcripts import format_transcript, turn_transcripts
from crawl2cart.evaluation.turn_metrics import (
    intent_table,
    sample_turns,
    share,
    summarize_turns,
    without_intervals,
)
from tests import recorded_dialogues as recorded
from tests.recorded_dialogues import call, reply


@pytest.fixture(scope="module")
def turns() -> list[dict]:
    return recorded.turns("test")


def test_right_turns_have_perfect_metrics_and_malformed_ones_none(turns):
    right = summarize_turns(turns, recorded.right_texts(turns), recorded.vocabulary())
    shares = (
        "tool_accuracy",
        "argument_exact_match",
        "schema_valid_rate",
        "call_or_reply_accuracy",
        "citation_accuracy",
        "out_of_scope_refusal_rate",
        "fact_recall",
    )
    assert {right[name] for name in shares} == {1.0}
    assert right["hallucination_rate"] == 0
    wrong = summarize_turns(turns, ["malformed"] * len(turns), recorded.vocabulary())
    names = ("tool_accuracy", "argument_exact_match", "fact_recall", "mean_reply_words")
    assert {wrong[name] for name in names} == {0}
    assert wrong["hallucination_rate_n"] == 0


def test_each_share_has_its_own_denominator(turns):
    calls = sum(bool(turn["completion"][0].get("tool_calls")) for turn in turns)
    summary = summarize_turns(turns, [call("list_orders")] * len(turns), recorded.vocabulary())
    assert summary["n"] == summary["call_or_reply_accuracy_n"] == len(turns)
    assert summary["tool_accuracy_n"] == summary["argument_exact_match_n"] == calls
    assert summary["schema_valid_rate_n"] == len(turns) and summary["schema_valid_rate"] == 1
    assert summary["call_or_reply_accuracy"] == calls / len(turns)
    assert not any(re.search("_(low|high|n)$", name) for name in without_intervals(summary))


def test_a_share_has_wilsons_interval():
    """Of 5 in 10, R's prop.test(5, 10, correct = FALSE) gives 0.2366 to 0.7634."""
    values = share("x", [True, False] * 5)
    assert values["x"] == 0.5 and values["x_n"] == 10
    assert (values["x_low"], values["x_high"]) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert share("x", []) == {"x": 0, "x_low": 0, "x_high": 1, "x_n": 0}


def test_sampled_turns_cover_all_dialogues_before_a_second_of_any():
    dialogues = recorded.dialogues("test")
    turns = sample_turns(dialogues, len(dialogues), 3)
    assert len({turn["id"].partition(":")[0] for turn in turns}) == len(dialogues)
    everything = sample_turns(dialogues, 10**6, 3)
    assert turns == everything[: len(turns)]
    assert sorted(turn["id"] for turn in everything) == sorted(
        turn["id"] for dialogue in dialogues for turn in to_examples(dialogue)
    )


def test_the_intent_table_sums_up_to_the_summary(turns, vocabulary_file):
    texts = [text if i % 3 else "malformed" for i, text in enumerate(recorded.right_texts(turns))]
    by_turn = {turn["id"]: text for turn, text in zip(turns, texts, strict=True)}
    table, summary = intent_table(turns, {"model": by_turn}), summarize_turns(turns, texts)
    for metric in ("tool_accuracy", "argument_exact_match", "call_or_reply_accuracy"):
        rows = [row for row in table if row["metric"] == metric]
        assert sum(row["n"] for row in rows) == summary[f"{metric}_n"]
        hits = sum(row["value"] * row["n"] for row in rows)
        assert hits / summary[f"{metric}_n"] == pytest.approx(summary[metric])
    right = [row for row in table if row["metric"] == "right"]
    assert sum(row["value"] * row["n"] for row in right) == pytest.approx(
        sum(text != "malformed" for text in texts)
    )


def test_transcripts_hold_every_message_and_grade(vocabulary_file):
    dialogue = next(d for d in recorded.dialogues("test") if len(d["messages"]) > 4)
    lines = format_transcript(dialogue["messages"])
    assert len(lines) == len(dialogue["messages"])
    assert {who for who, _ in lines} == {"customer", "assistant", "call", "tool"}
    turns = to_examples(dialogue)
    right = dict(zip((turn["id"] for turn in turns), recorded.right_texts(turns), strict=True))
    wrong = dict.fromkeys(right, "malformed")
    rows = turn_transcripts(turns, {"right": right, "wrong": wrong}, {dialogue["id"]: 4})
    for row in rows:
        assert row["line"] == 4 and row["gold"] == row["answers"]["right"]["text"]
        assert row["answers"]["right"]["right"] and not row["answers"]["right"]["reasons"]
        assert row["answers"]["right"]["tool"] == row["gold_tool"]
        assert not row["answers"]["wrong"]["right"] and row["answers"]["wrong"]["reasons"]
        assert row["answers"]["wrong"]["tool"] == "malformed"


@pytest.mark.parametrize("label", ["shopping", "other", "unclear"])
@pytest.mark.parametrize("right", [True, False])
def test_an_answer_counts_only_if_its_query_was_routed_to_the_agent(turns, label, right):
    metrics = routed_metrics(
        lambda text: label,
        [],
        recorded.dialogues("test"),
        turns,
        {turn["id"]: right for turn in turns},
    )
    first = [t for t in turns if len(t["prompt"]) == 1 and t["intent"] != "out_of_scope"]
    assert metrics["end_to_end_accuracy_n"] == len(first) > 10
    assert metrics["end_to_end_accuracy"] == float(label == "shopping" and right)
    assert metrics["routing_accuracy"] == float(label == "shopping")


# Baselines


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_call_tools_but_seldom_with_the_right_arguments(turns, name):
    texts = BASELINES[name](turns, recorded.turns("train"))
    summary = summarize_turns(turns, texts, recorded.vocabulary())
    assert summary["tool_accuracy"] > 0.1 and summary["argument_exact_match"] < 0.5


def test_the_nearest_training_turn_of_a_training_turn_is_itself():
    train = recorded.turns("train")
    texts, right = BASELINES["nearest"](train, train), recorded.right_texts(train)
    same = sum(text == own for text, own in zip(texts, right, strict=True))
    assert same > 0.8 * len(train)  # the same conversation may have several right replies


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "where is TB-12345? I'm a.b@example.com",
            call("get_order", order="TB-12345", email="a.b@example.com"),
        ),
        (
            "a tent under 90 dollars",
            call("search_products", query="90 dollars", max_price=90.0),
        ),
        ("can I return it?", call("list_orders")),
        ("I want a person", call("hand_off", reason="complaint")),
    ],
)
def test_keyword_rules(text, expected):
    assert call_by_keywords(text) == expected != reply(text)
