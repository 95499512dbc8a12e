"""Which prompts are sampled, what customers' thumbs give, and the data card."""

from collections import Counter
from types import SimpleNamespace

import pytest

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import write_jsonl
from crawl2cart.dialogues.sft_examples import sample_examples
from crawl2cart.preferences.card import card
from crawl2cart.preferences.from_feedback import feedback_slots, read_feedback
from crawl2cart.preferences.pairs import balance_lengths, message_text, style_pairs
from crawl2cart.preferences.prompts import CALL_SHARE, choose_prompts, freshness
from crawl2cart.preferences.reward import score
from crawl2cart.preferences.summary import summarize_pairs
from crawl2cart.shop.tool_schemas import TOOLS
from stages.build_prefs import load_feedback
from tests import recorded_dialogues as recorded
from tests.recorded_dialogues import reply
from tests.unit.preferences.test_pairs import a_pair, a_score

# Prompts


@pytest.fixture(scope="module")
def turns() -> list[dict]:
    return recorded.turns("train")


def is_call(turn: dict) -> bool:
    return bool(turn["completion"][0].get("tool_calls"))


def test_prompts_share_no_wording_or_plan_with_what_sft_saw(turns):
    dialogues = recorded.dialogues("train")
    seen = sample_examples(turns, 30, 7)
    levels = freshness(dialogues, seen)
    assert {levels[turn["id"]] for turn in seen} == {3}
    phrasings = {d["id"]: {*d["wordings"], d["plan"]} - {None} for d in dialogues}
    seen_phrasings = set().union(*(phrasings[dialogue_of(turn)] for turn in seen))
    prompts = choose_prompts(turns, levels, 50, 7)
    assert not any(phrasings[dialogue_of(turn)] & seen_phrasings for turn in prompts)
    assert sum(map(is_call, prompts)) == CALL_SHARE * len(prompts) == CALL_SHARE * 50


def dialogue_of(turn: dict) -> str:
    return turn["id"].rpartition(":")[0]


def test_seen_prompts_are_better_than_none(turns):
    levels = freshness(recorded.dialogues("train"), turns)
    assert len(choose_prompts(turns, levels, 50, 7)) == 50


# Thumbs

MARGIN = 0.0125


def thumb(query: str, text: str, liked: bool) -> dict:
    messages = [{"role": "user", "content": query}]
    return {"messages": messages, "reply": {"content": text}, "liked": liked}


def slots_of(example: dict, samples: list) -> list[list[dict]]:
    return feedback_slots(example, samples, recorded.tone_scorer(), MARGIN, recorded.vocabulary())


def test_thumbs_give_pairs_and_a_liked_invention_is_never_chosen(tmp_path):
    good, bad = "Yes, a program of the shop's. What can I look up?", "No."
    write_jsonl(
        tmp_path / "day.jsonl",
        [
            thumb("are you a robot", good, True),
            thumb("are you a robot", bad, False),
            thumb("hi", "Take it for $3.33!", True),
            thumb("bye", "OK.", False),
        ],
    )
    robot, invention, bye = read_feedback(tmp_path)
    [[pair]] = slots_of(robot, [])
    assert (message_text(pair["chosen"]), message_text(pair["rejected"])) == (good, bad)
    assert pair["origin"] == "feedback"
    tone, vocabulary = recorded.tone_scorer(), recorded.vocabulary()
    wrong = score(invention, reply("It is $9.99 for you."), tone, vocabulary)
    assert slots_of(invention, [wrong]) == []
    farewell = "Glad that's clear. Keep the order number somewhere and you're set."
    right = score(bye, reply(farewell), tone, vocabulary)
    [[pair]] = slots_of(bye, [right, wrong])
    assert message_text(pair["rejected"]) == "OK." and pair["chosen"] == [right.message]


def test_replies_with_both_thumbs_are_in_no_pair(tmp_path):
    thumbs = [thumb("hi", "Hello.", liked) for liked in (True, False)]
    write_jsonl(tmp_path / "day.jsonl", thumbs)
    (example,) = read_feedback(tmp_path)
    assert slots_of(example, []) == []


def test_a_bad_line_of_thumbs_is_named(tmp_path):
    with pytest.raises(UserError, match="jsonl"):
        read_feedback(tmp_path)
    write_jsonl(tmp_path / "day.jsonl", [thumb("hi", "x", True), thumb("hi", "x", 1)])
    with pytest.raises(UserError, match="day.jsonl:2: liked"):
        read_feedback(tmp_path)


def stage(folder: str, *deps: str) -> SimpleNamespace:
    build_sft = SimpleNamespace(max_characters=200)
    params = SimpleNamespace(build_prefs=SimpleNamespace(feedback=folder), build_sft=build_sft)
    return SimpleNamespace(definition=SimpleNamespace(deps=deps), params=params)


def test_a_folder_of_thumbs_has_to_be_a_dependency():
    assert load_feedback(stage("", "data/sft")) == []
    with pytest.raises(UserError, match="data/thumbs.*dvc.yaml"):
        load_feedback(stage("data/thumbs", "data/sft"))


def test_conversations_longer_than_sft_reads_are_left_out(tmp_path):
    thumbs = [thumb(query, "Hello.", True) for query in ("hi", "hi " * 100)]
    write_jsonl(tmp_path / "day.jsonl", thumbs)
    (example,) = load_feedback(stage(str(tmp_path), str(tmp_path)))
    assert example["prompt"][0]["content"] == "hi"


# Summary and data card


def test_the_card_counts_the_pairs_and_explains_a_leak():
    slots = style_pairs(recorded.situations(), TOOLS, recorded.vocabulary(), recorded.tone_scorer())
    pairs = {"train": balance_lengths(slots), "validation": [a_pair("a", "b")]}
    samples = [a_score("a", 0.8), a_score("b", 0.1)]
    summary, telling = summarize_pairs(pairs, samples, {"accuracy": 0.98})
    written = len(pairs["train"])
    assert summary["pairs"]["written"] == summary["pairs"]["train"] == written
    assert summary["samples"] == {"n": 2, "right": 0.5, "unreadable": 0.0}
    assert all(0.5 <= value <= 1 for value in summary["artifact_auc"].values())
    params = SimpleNamespace(samples=4, temperature=0.9, top_p=0.95)
    summary["artifact_auc"]["bag_of_words"] = 0.8
    summary["artifact_auc_by_origin"]["written"]["bag_of_words"] = 0.9
    text = card(pairs, summary, Counter({"wording and plan": 4}), telling, params)
    assert f"| written | {written} | 0 |" in text
    assert all(word in text for word in telling["chosen"]) and "0.80" in text
    summary["artifact_auc"] = {"length": 0.5, "bag_of_words": 0.5}
    text = card(pairs, summary, Counter({"wording and plan": 4}), telling, params)
    assert telling["chosen"][0] not in text.partition("## Leaks")[2].partition("## Examples")[0]
