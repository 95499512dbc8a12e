"""Train the local classifier that stands in for GPT-4 when there is no key or no network.

in   data/queries/{train,validation,test}.jsonl
out  models/router, metrics/router.json

Logistic regression on TF-IDF, calibrated on the validation queries (Platt 1999), measured on the test queries.
Calibration error: Guo et al. 2017, https://arxiv.org/abs/1706.04599
"""

import numpy as np
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from demo.local_router import LocalRouter
from stages.common.files import atomic_directory, read_jsonl
from stages.common.metrics import write_metrics
from stages.common.problem import Problem
from stages.common.stage import Stage, run

BINS = 10


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error: mean distance of stated and true share over ten bins of equal width, by size."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = [abs(probabilities[bins == b].mean() - truth[bins == b].mean()) * (bins == b).mean()
            for b in range(BINS) if (bins == b).any()]
    return float(sum(gaps))


def measure(router: LocalRouter, rows: list[dict]) -> dict[str, float]:
    """Quality on labelled queries, shopping being the positive class, `unclear` counted by its likelier side."""
    probabilities = router.probabilities([row["text"] for row in rows])
    truth = np.array([row["label"] == "shopping" for row in rows])
    said = probabilities >= 0.5
    hard = np.array([bool(row["hard"]) and row["label"] == "other" for row in rows])
    return {
        "precision": precision_score(truth, said), "recall": recall_score(truth, said), "f1": f1_score(truth, said),
        "auroc": roc_auc_score(truth, probabilities), "ece": calibration_error(probabilities, truth),
        "hard_negatives_to_shopping": float(said[hard].mean()) if hard.any() else 0.0,
        "hard_negatives": int(hard.sum()), "n": len(rows),
    }


def main(stage: Stage) -> None:
    params = stage.params.router
    rows = {split: read_jsonl(f"data/queries/{split}.jsonl") for split in ("train", "validation", "test")}
    for split, queries in rows.items():
        if {row["label"] for row in queries} != {"shopping", "other"}:
            raise Problem(f"data/queries/{split}.jsonl needs queries of both labels, shopping and other.")
    router = LocalRouter.fit(rows["train"], rows["validation"], params.inverse_penalty, params.unclear_below)
    with atomic_directory("models/router") as folder:
        router.save(folder)
    write_metrics("metrics/router.json", {"local": measure(LocalRouter.load("models/router"), rows["test"])})


if __name__ == "__main__":
    run(main)
