"""The tone scorer on situations that it was not fitted on, with shuffled labels as a control."""

import random

import pytest

from crawl2cart.preferences.style_classifier import (
    FAULTS,
    GOOD,
    broken_rules,
    fit_with_accuracy,
    manner_features,
)
from tests import recorded_dialogues as recorded

KINDS = (GOOD, *FAULTS)


def test_the_good_reply_wins_in_held_out_situations():
    assert fit_with_accuracy(recorded.situations())[1]["accuracy"] >= 0.95


def test_with_shuffled_labels_nothing_is_learnt():
    draw = random.Random(1)
    shuffled = [
        dict(zip(KINDS, draw.sample([row[kind] for kind in KINDS], len(KINDS)), strict=True))
        for row in recorded.situations()
    ]
    assert 0.4 < fit_with_accuracy(shuffled)[1]["accuracy"] < 0.6


def test_scorers_of_disjoint_situations_agree():
    """The pairs are made with one, the evaluation uses the other."""
    assert recorded.tone_scorer().accuracy(recorded.situations("test")) >= 0.9


def test_rules_spare_every_good_reply_and_catch_most_faulty_ones():
    assert not [row["id"] for row in recorded.situations() if broken_rules(row[GOOD])]
    faulty = [row[kind] for row in recorded.situations() for kind in ("wordy", "over_apologetic")]
    assert sum(bool(broken_rules(text)) for text in faulty) > len(faulty) / 2


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("Good choice! It is here!", ["shouts"]),
        ("It is here. It is here.", ["says a sentence twice"]),
        ("TB-10984 is with ZIM.", []),
        ("Sorry. I do apologise.", ["apologises more than once"]),
    ],
)
def test_rules_by_hand(text, broken):
    assert broken_rules(text) == broken


def test_features_exist_for_every_text():
    assert manner_features(["", "?", "One two.\n- three"]).shape == (3, 13)
