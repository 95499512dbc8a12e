"""Compare two models' replies to the same prompts: wins, ties, losses, and the win rate without the
effect of length.

Length control after Dubois et al. 2024, https://arxiv.org/abs/2404.04475: a logistic regression of
the outcome on the difference in length, read where that difference is 0.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import binomtest

from crawl2cart.core.metrics import RESAMPLES
from crawl2cart.lm.formats import harmony
from crawl2cart.preferences.style_classifier import ToneScorer
from crawl2cart.shop.graders import grade_turn

TIE_MARGIN = 1e-6  # scores that differ by less tie
NEWTON_STEPS, RIDGE = 15, 0.1  # the penalty is on the length coefficient alone


def bootstrap(
    values: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic over resampled rows of `values` (n, ...).

    Efron 1979, https://doi.org/10.1214/aos/1176344552.
    """
    draws = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile([statistic(values[draw]) for draw in draws], (0.025, 0.975))
    return float(low), float(high)


def win_rate(comparisons: np.ndarray) -> float:
    """Return the mean outcome of comparisons (n, 2).

    Column 0 is the outcome (1 a win, 0.5 a tie, 0 a loss), column 1 the difference in length.
    """
    return float(comparisons[:, 0].mean())


def length_controlled_win_rate(comparisons: np.ndarray) -> float:
    """Return the probability of a win at equal length; comparisons as for `win_rate`.

    A tie counts as half a win and half a loss. One extra tie of equal length keeps the estimate
    inside (0, 1) where all outcomes are alike. Fitted by Newton's method.
    """
    outcome, longer = comparisons.T
    length = np.append(np.tanh(longer / (longer.std() or 1.0)), 0.0)
    x = np.stack([np.ones(len(comparisons) + 1), length], 1)  # (n + 1, 2)
    y, weights = np.append(outcome, 0.5), np.zeros(2)
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-x @ weights))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag([0.0, RIDGE])
        weights = weights + np.linalg.solve(hessian, x.T @ (y - p) - RIDGE * weights * [0, 1])
    return float(1 / (1 + np.exp(-weights[0])))


def compare(
    ours: list[float], theirs: list[float], our_words: list[int], their_words: list[int], seed: int
) -> dict[str, float | int]:
    """Compare paired scores of two models, whose replies have these lengths in words.

    Returns n, wins, ties, losses, both win rates with bootstrap intervals, and `p` of the two-sided
    sign test without ties.
    """
    gap = np.array(ours) - np.array(theirs)
    outcome = np.where(abs(gap) < TIE_MARGIN, 0.5, gap > 0)
    comparisons = np.stack([outcome, np.array(our_words) - np.array(their_words)], 1)
    wins, losses = int((gap >= TIE_MARGIN).sum()), int((gap <= -TIE_MARGIN).sum())
    metrics: dict[str, float | int] = {
        "n": len(comparisons),
        "wins": wins,
        "ties": len(comparisons) - wins - losses,
        "losses": losses,
        "p": float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
    }
    for statistic in (win_rate, length_controlled_win_rate):
        name = statistic.__name__
        low, high = bootstrap(comparisons, statistic, seed)
        metrics |= {name: statistic(comparisons), f"{name}_low": low, f"{name}_high": high}
    return metrics


def compare_replies(
    turns: list[dict], ours: dict[str, str], theirs: dict[str, str], tone: ToneScorer, seed: int
) -> dict[str, float | int]:
    """Compare two models' texts, by turn id, on these turns; the metrics of `compare`.

    tone: a scorer that the preference pairs were not made with.
    """
    texts = [[answers[turn["id"]] for turn in turns] for answers in (ours, theirs)]
    scores = [
        [_quality(turn, text, tone) for turn, text in zip(turns, side, strict=True)]
        for side in texts
    ]
    words = [[_count_words(text) for text in side] for side in texts]
    return compare(*scores, *words, seed)


def _quality(turn: dict, text: str, tone: ToneScorer) -> float:
    """Score a reply: 0 if wrong, else 1 plus its fact recall plus its tone, both in [0, 1]."""
    grade = grade_turn(turn, text)
    if not grade.right:
        return 0.0
    return 1 + grade.fact_recall + float(tone([grade.message["content"]])[0])


def _count_words(text: str) -> int:
    """Count the words of a reply; 0 for anything else."""
    parsed = harmony.parse_completion(text)
    return len(parsed.get("content", "").split()) if isinstance(parsed, dict) else 0
