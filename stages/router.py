"""Train the local classifier, which routes queries where GPT-4 is not available.

in   data/queries/{train,validation,test}.jsonl, data/store
out  models/router, metrics/router.json

Logistic regression on TF-IDF, trained on the train queries and the shop's train wordings, and
calibrated on the validation queries. It is measured on the test queries, and on the shop's
validation and test wordings.
Platt 1999, Probabilistic Outputs for Support Vector Machines
"""

from pathlib import Path

from crawl2cart.core.files import atomic_directory, read_jsonl
from crawl2cart.core.metrics import write_metrics
from crawl2cart.core.stage import Stage, run
from crawl2cart.router.evaluation import accuracy_by_topic, measure
from crawl2cart.router.local import LocalRouter
from crawl2cart.router.training import train, wording_queries

# What `dvc metrics` shows.
HEADLINES = ("local.f1", "local.precision", "local.recall", "local.hard_negatives_to_shopping")


def main(stage: Stage) -> None:
    params, store = stage.params.router, Path("data/store")
    router = train(Path("data/queries"), store, params.C, params.abstain_threshold)
    with atomic_directory("models/router") as folder:
        router.save(folder)
    saved, test = LocalRouter.load("models/router"), read_jsonl("data/queries/test.jsonl")
    metrics = {
        "local": measure(saved, test),
        "by_topic": accuracy_by_topic(saved, test),
        "wordings_validation": measure(saved, wording_queries(store, "validation")),
        "wordings_test": measure(saved, wording_queries(store, "test")),
    }
    write_metrics("metrics/router.json", metrics, HEADLINES)


if __name__ == "__main__":
    run(main)
