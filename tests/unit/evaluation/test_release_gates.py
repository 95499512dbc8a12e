"""The release gates by hand calculation, and what they measure on recorded turns."""

import math

import pytest

from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.evaluation.release_gates import (
    measure,
    release_gates,
    repetition,
    turn_violations,
)
from crawl2cart.lm.formats import harmony
from tests import recorded_dialogues as recorded

BEFORE = {
    "tool_accuracy": 0.9,
    "argument_exact_match": 0.8,
    "calls": 100,
    "policy_violations": 0,
    "hallucination_rate": 0.1,
    "repetition": 0.05,
    "mean_reply_words": 20.0,
    "quality": 0.7,
    "qualities": [0.6, 0.8] * 50,
}
START = {"accuracy": 0.0, "chosen_log_probability": -40.0}
END = {"accuracy": 0.8, "chosen_log_probability": -39.0}


def failed(**changes: object) -> list[str]:
    """The gates that fail if these values differ from an unchanged model's."""
    end = {name: changes.pop(name) for name in END if name in changes}
    gates = release_gates(BEFORE, BEFORE | changes, START, END | end)
    return [gate.name for gate in gates if not gate.passed]


# One standard error of 0.8 against 0.74, of 100 each: sqrt(0.16 / 100 + 0.1924 / 100) = 0.0594.
@pytest.mark.parametrize(
    ("gate", "passing", "failing"),
    [
        ("argument_exact_match", {"argument_exact_match": 0.75}, {"argument_exact_match": 0.74}),
        ("tool_accuracy", {"tool_accuracy": 0.87}, {"tool_accuracy": 0.8}),
        ("policy_violations", {"policy_violations": 0}, {"policy_violations": 1}),
        ("hallucination_rate", {"hallucination_rate": 0.1}, {"hallucination_rate": 0.101}),
        ("repetition", {"repetition": 0.05}, {"repetition": 0.051}),
        ("mean_reply_words", {"mean_reply_words": 22.9}, {"mean_reply_words": 23.1}),
        ("mean_reply_words", {"mean_reply_words": 17.1}, {"mean_reply_words": 16.9}),
        (
            "chosen_log_probability",
            {"chosen_log_probability": -41.9},
            {"chosen_log_probability": -42.1},
        ),
        ("reward_accuracy", {"accuracy": 0.5}, {"accuracy": 0.4}),
        ("quality", {}, {"quality": 0.6, "qualities": [0.5, 0.7] * 50}),
    ],
)
def test_each_gate_has_its_bound_and_fails_alone(gate, passing, failing):
    assert failed(**passing) == []
    assert failed(**failing) == [gate]


def test_a_failed_gate_names_metric_value_and_bound():
    gates = release_gates(BEFORE, BEFORE | {"policy_violations": 2}, START, END)
    (reason,) = [gate.reason for gate in gates if not gate.passed]
    assert all(part in reason for part in ("policy violations", "2", "at most 0"))


def test_a_write_violates_the_rules_until_its_question_was_asked():
    seen = 0
    for dialogue in recorded.dialogues("validation"):
        turns = to_examples(dialogue)
        for question, write in zip(turns, turns[1:], strict=False):
            asks = any(act.endswith("_confirm") for act in question["acts"])
            text = harmony.completion(write["completion"][0])
            if asks and write["acts"] == ["call"] and "get_order" not in text:
                seen += 1
                assert turn_violations(write, text, dialogue, recorded.shops()) == 0
                assert turn_violations(question, text, dialogue, recorded.shops()) == 1
    assert seen >= 5


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        (["a b c d a b c d"], (0.2, 5)),  # abcd bcda cdab dabc abcd
        (["a b c", "a b c"], (0.0, 0)),
        (["a b c d", "a b c d"], (0.0, 2)),  # each reply by itself
    ],
)
def test_repetition_counts_repeated_runs_of_four_words(replies, expected):
    assert repetition(replies) == expected


def test_right_texts_measure_as_right(vocabulary_file):
    dialogues = recorded.dialogues("validation")[:20]
    turns = [turn for dialogue in dialogues for turn in to_examples(dialogue)]
    measured = measure(
        turns,
        recorded.right_texts(turns),
        {dialogue["id"]: dialogue for dialogue in dialogues},
        recorded.shops(),
        recorded.tone_scorer(),
    )
    assert measured["tool_accuracy"] == measured["argument_exact_match"] == 1
    assert measured["policy_violations"] == measured["hallucination_rate"] == 0
    assert min(measured["qualities"]) >= 0.5
    assert math.isclose(measured["quality"], sum(measured["qualities"]) / len(turns))
