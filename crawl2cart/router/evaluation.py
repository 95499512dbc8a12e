"""Measure the local classifier on labelled queries."""

from collections import Counter

import numpy as np
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score, roc_curve

from crawl2cart.router.local import LocalRouter

BINS = 10
THRESHOLD = 0.5  # the probability is calibrated, and both errors cost one query


def is_shopping(queries: list[dict]) -> np.ndarray:
    """Return the true labels as (n,) bools."""
    return np.array([row["label"] == "shopping" for row in queries])


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the expected calibration error over ten bins of equal width, weighted by size.

    probabilities: (n,) in [0, 1]. truth: (n,) bools. Guo et al. 2017, section 2.
    """
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = [
        abs(probabilities[bins == b].mean() - truth[bins == b].mean()) * (bins == b).mean()
        for b in range(BINS)
        if (bins == b).any()
    ]
    return float(sum(gaps))


def measure(router: LocalRouter, queries: list[dict]) -> dict[str, float]:
    """Return the classifier's quality, with shopping as the positive class.

    A query counts by its likelier label, also where the classifier abstains.
    recall_at_1_percent: recall at a threshold that at most 1 % of the other queries pass.
    """
    probabilities = router.probabilities([row["text"] for row in queries])
    truth, predicted = is_shopping(queries), probabilities >= THRESHOLD
    hard_negatives = np.array([bool(row["hard"]) for row in queries]) & ~truth
    false_positive_rate, true_positive_rate, _ = roc_curve(truth, probabilities)
    return {
        "precision": precision_score(truth, predicted),
        "recall": recall_score(truth, predicted),
        "f1": f1_score(truth, predicted),
        "auroc": roc_auc_score(truth, probabilities),
        "ece": calibration_error(probabilities, truth),
        "recall_at_1_percent": float(true_positive_rate[false_positive_rate <= 0.01].max()),
        "threshold": THRESHOLD,
        "hard_negatives_to_shopping": (
            float(predicted[hard_negatives].mean()) if hard_negatives.any() else 0.0
        ),
        "hard_negatives": int(hard_negatives.sum()),
        "n": len(queries),
    }


def accuracy_by_topic(router: LocalRouter, queries: list[dict]) -> dict[str, dict[str, float]]:
    """Return the share of correct labels and n for each label and topic, hard queries apart."""
    predicted = router.probabilities([row["text"] for row in queries]) >= THRESHOLD
    names = [f"{row['label']}: {row['topic']}{', hard' if row['hard'] else ''}" for row in queries]
    counts, correct = Counter(names), Counter(np.array(names)[predicted == is_shopping(queries)])
    return {name: {"right": correct[name] / n, "n": n} for name, n in counts.items()}
