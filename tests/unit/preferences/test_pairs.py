"""Pairs: who stands against whom, the balance of lengths, and what tells the sides apart."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crawl2cart.preferences.pairs import (
    MAX_LONGER,
    artifact_auc,
    balance_lengths,
    candidate_pairs,
    cap_reference,
    chosen_longer_rate,
    make_pair,
    message_text,
    style_pairs,
)
from crawl2cart.preferences.reward import HELPFUL, RIGHT, WRONG, Score
from crawl2cart.preferences.style_classifier import GOOD
from crawl2cart.shop.tool_schemas import TOOLS
from tests import recorded_dialogues as recorded

EXAMPLE = {
    "prompt": [{"role": "user", "content": "?"}],
    "completion": [{"role": "assistant", "content": "gold"}],
    "tools": TOOLS,
    "intent": "price",
    "id": "x:1",
}
MALFORMED = Score(None, False, ("malformed",), 0.0)


def a_score(text: str, total: float) -> Score:
    """A right reply with this total at neutral tone, or a wrong one."""
    message = {"role": "assistant", "content": text}
    if total >= RIGHT:
        return Score(message, True, (), 1.0, helpful=(total - RIGHT) / HELPFUL, tone=0.0)
    return Score(message, False, ("wrong",), total / WRONG)


def a_pair(
    chosen: str, rejected: str, origin: str = "sampled", margin: float = 0.5, prompt: str = "?"
) -> dict:
    example = EXAMPLE | {"prompt": [{"role": "user", "content": prompt}]}
    better, worse = ({"role": "assistant", "content": text} for text in (chosen, rejected))
    return make_pair(example, (better, 0.9), (worse, 0.9 - margin), [], origin)


def pairs_of(slots: list[list[dict]]) -> list[dict]:
    return [pair for slot in slots for pair in slot]


# Candidates

totals = st.lists(st.floats(0, 0.3) | st.floats(0.5, 0.97), max_size=6)


@settings(deadline=None, derandomize=True)
@given(totals, st.floats(0.001, 0.3), st.integers(0, 9))
def test_only_a_right_or_the_recorded_turn_is_chosen(totals, margin, seed):
    scores = [a_score(str(number), total) for number, total in enumerate(totals)]
    slots = candidate_pairs(EXAMPLE, [*scores, MALFORMED], margin, random.Random(seed))
    assert len(slots) <= 2 and all(slots)
    for pair in pairs_of(slots):
        if any(total >= RIGHT for total in totals):
            assert pair["origin"] == "sampled"
            assert pair["scores"][0] == pytest.approx(max(totals)) and pair["scores"][0] >= RIGHT
            assert pair["scores"][0] - pair["scores"][1] >= margin
        else:
            assert pair["origin"] == "gold" and pair["chosen"] == EXAMPLE["completion"]
    if slots:
        assert slots[0][0]["scores"][1] == pytest.approx(min(totals))


def test_some_prompts_give_a_second_pair_from_the_middle():
    scores = [a_score("a", 0.8), a_score("b", 0.7), a_score("c", 0.2), a_score("d", 0.1)]
    slots = [candidate_pairs(EXAMPLE, scores, 0.05, random.Random(seed)) for seed in range(60)]
    counts = Counter(map(len, slots))
    assert set(counts) == {1, 2} and counts[1] > counts[2]
    (middle,) = next(both[1] for both in slots if len(both) == 2)
    assert middle["kind"] == "middle" and message_text(middle["rejected"]) == "c"


def test_style_pairs_need_no_tool_and_state_no_unknown_fact():
    vocabulary, tone = recorded.vocabulary(), recorded.tone_scorer()
    slots = style_pairs(recorded.situations(), TOOLS, vocabulary, tone)
    by_situation = Counter(slot[0]["id"] for slot in slots)
    assert len(slots) >= 10 and max(by_situation.values()) <= 2
    situations = {row["id"]: row for row in recorded.situations()}
    for pair in pairs_of(slots):
        assert message_text(pair["chosen"]) == situations[pair["id"]][GOOD]
        assert not vocabulary.unsupported(message_text(pair["rejected"]), pair["prompt"])
    reasons = {pair["reasons"][0] for pair in balance_lengths(slots)}
    assert reasons >= {"sounds cold", "sounds pushy"}
    invented = recorded.situations()[0] | {"asks": "hi", GOOD: "It is $4.20."}
    assert not style_pairs([invented], TOOLS, vocabulary, tone)


# Choosing

lengths = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.lists(lengths, min_size=1, max_size=3), max_size=30))
def test_the_longer_turn_is_chosen_about_half_the_time(slots):
    slots = [[a_pair("x" * chosen, "y" * rejected) for chosen, rejected in slot] for slot in slots]
    taken = balance_lengths(slots)
    assert 1 - MAX_LONGER <= chosen_longer_rate(taken) <= MAX_LONGER
    assert all(any(pair in slot for slot in slots) for pair in taken)


def test_balance_takes_the_pair_that_mends_it_and_drops_narrow_margins_first():
    either = [[a_pair("xx", "y"), a_pair("xx", "yyy")] for _ in range(50)]
    taken = balance_lengths(either)
    assert len(taken) == 50 and chosen_longer_rate(taken) == 0.5
    narrow, wide, shorter = a_pair("xx", "y", margin=0.1), a_pair("xxx", "y"), a_pair("x", "yy")
    assert balance_lengths([[narrow], [wide], [shorter]]) == [wide, shorter]


@pytest.mark.parametrize(("ratio", "kept"), [(0.5, 4), (0.0, 0), (0.2, 1), (1.0, 9)])
def test_recorded_turns_are_capped_and_the_others_stay(ratio, kept):
    slots = [[a_pair("a", "b", "gold")]] * 9 + [[a_pair("a", "b")]] * 4
    origins = Counter(slot[0]["origin"] for slot in cap_reference(slots, ratio))
    assert origins["gold"] == kept and origins["sampled"] == 4


# What tells the sides apart


def words(draw: random.Random) -> str:
    vocabulary = ("red", "blue", "green", "tall", "low", "new")
    return " ".join(draw.choice(vocabulary) for _ in range(8))


def test_equal_sides_are_not_told_apart():
    draw = random.Random(5)
    pairs = [a_pair(words(draw), words(draw), prompt=str(number)) for number in range(120)]
    auc, _ = artifact_auc(pairs)
    assert auc["length"] < 0.6 and 0.35 < auc["bag_of_words"] < 0.65


def test_a_telltale_word_is_found():
    draw = random.Random(5)
    pairs = [
        a_pair(f"{words(draw)} gladly", words(draw), prompt=str(number)) for number in range(120)
    ]
    auc, telling = artifact_auc(pairs)
    assert auc["bag_of_words"] > 0.95 and telling["chosen"][0] == "gladly"


def test_auc_of_length_by_hand():
    """Chosen lengths 1 and 3, rejected 2 and 4: chosen is longer in one of four comparisons."""
    assert artifact_auc([a_pair("x", "yy"), a_pair("xxx", "yyyy")])[0]["length"] == 0.75
