"""Win rates by hand calculation, and their length control on simulated outcomes."""

import numpy as np
import pytest

from crawl2cart.evaluation.win_rate import compare, length_controlled_win_rate, win_rate


def test_win_rate_and_sign_test_by_hand():
    metrics = compare([2, 2, 2, 1, 1], [1, 1, 1, 1, 2], [5] * 5, [5] * 5, seed=0)
    assert [metrics[name] for name in ("wins", "ties", "losses", "n")] == [3, 1, 1, 5]
    assert metrics["win_rate"] == pytest.approx(3.5 / 5)
    assert metrics["win_rate_low"] < 0.7 < metrics["win_rate_high"]
    # Two-sided, of 4 without the tie: P(at most 1 of either).
    assert metrics["p"] == pytest.approx(2 * (1 + 4) / 2**4)


@pytest.fixture(scope="module")
def longer() -> np.ndarray:
    """Differences in length; ours is the longer reply more often."""
    return np.random.default_rng(0).normal(3, 4, 2000)


def outcomes(probability: np.ndarray | float, longer: np.ndarray) -> np.ndarray:
    wins = np.random.default_rng(1).random(len(longer)) < probability
    return np.stack([wins.astype(float), longer], 1)


def test_wins_from_length_alone_do_not_count_at_equal_length(longer):
    comparisons = outcomes(1 / (1 + np.exp(-longer)), longer)
    assert win_rate(comparisons) > 0.7
    assert length_controlled_win_rate(comparisons) == pytest.approx(0.5, abs=0.08)


def test_wins_that_length_does_not_explain_stay(longer):
    rate = length_controlled_win_rate(outcomes(0.8, longer))
    assert rate == pytest.approx(0.8, abs=0.04)


def test_fifty_wins_of_fifty_are_not_certainty():
    rate = length_controlled_win_rate(np.stack([np.ones(50), np.zeros(50)], 1))
    assert 0.9 < rate < 1
