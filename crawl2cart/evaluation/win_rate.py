"""Two models' replies to the same prompts: wins, ties, losses, and how often one wins when length counts for nothing.

Length control after Dubois et al. 2024, https://arxiv.org/abs/2404.04475: a logistic regression of the outcome on the difference in
length, read where that difference is 0.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import binomtest

from crawl2cart.core.metrics import RESAMPLES

SAME = 1e-6  # scores nearer than this are a tie
STEPS, RIDGE = 15, 0.1  # of the fit; the penalty is on length alone


def bootstrap(
    values: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int
) -> tuple[float, float]:
    """95 % percentile interval of a statistic over resampled rows. Efron 1979, https://doi.org/10.1214/aos/1176344552."""
    draws = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile([statistic(values[draw]) for draw in draws], (0.025, 0.975))
    return float(low), float(high)


def win_rate(rows: np.ndarray) -> float:
    """rows (n, 2): outcome (1 a win, 0.5 a tie, 0 a loss) and difference in length -> mean outcome."""
    return float(rows[:, 0].mean())


def length_controlled_win_rate(rows: np.ndarray) -> float:
    """Probability of a win at equal length. rows as for `win_rate`; a tie counts as half a win and half a loss.

    One tie more, of equal length, keeps it from certainty where all outcomes are alike. Fitted by Newton's method.
    """
    outcome, longer = rows.T
    x = np.stack(
        [np.ones(len(rows) + 1), np.append(np.tanh(longer / (longer.std() or 1.0)), 0.0)], 1
    )  # (n + 1, 2)
    y, weights = np.append(outcome, 0.5), np.zeros(2)
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-x @ weights))
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag([0.0, RIDGE])
        weights = weights + np.linalg.solve(curvature, x.T @ (y - p) - RIDGE * weights * [0, 1])
    return float(1 / (1 + np.exp(-weights[0])))


def compare(
    ours: list[float], theirs: list[float], our_words: list[int], their_words: list[int], seed: int
) -> dict[str, float | int]:
    """Paired scores of two models, and the lengths of their replies in words, as metrics. `p`: two-sided sign test without ties."""
    gap = np.array(ours) - np.array(theirs)
    rows = np.stack(
        [np.where(abs(gap) < SAME, 0.5, gap > 0), np.array(our_words) - np.array(their_words)], 1
    )
    wins, losses = int((gap >= SAME).sum()), int((gap <= -SAME).sum())
    found: dict[str, float | int] = {
        "n": len(rows),
        "wins": wins,
        "ties": len(rows) - wins - losses,
        "losses": losses,
        "p": float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
    }
    for name, statistic in (
        ("win_rate", win_rate),
        ("length_controlled_win_rate", length_controlled_win_rate),
    ):
        low, high = bootstrap(rows, statistic, seed)
        found |= {name: statistic(rows), f"{name}_low": low, f"{name}_high": high}
    return found
