"""Metrics are finite and rounded; intervals agree with scipy."""

import pytest
from scipy.stats import binomtest

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_json
from crawl2cart.core.metrics import share_interval, write_metrics
from tests.conftest import ROOT


def test_metrics_must_be_finite(tmp_path):
    with pytest.raises(UserError, match="nan"):
        write_metrics(tmp_path / "m.json", {"model": {"loss": float("nan")}})


def test_headlines_are_written_beside_and_unmeasured_ones_are_left_out(tmp_path):
    values = {
        "sft": {"tool_accuracy": 0.7123456, "n": 300},
        "dpo": {"tool_accuracy": 0.5, "loss": 1.0},
        "compared": {"n": 3},
    }
    write_metrics(tmp_path / "m.json", values, ("*.tool_accuracy", "dpo.loss", "compared.p"))
    assert read_json(tmp_path / "m.json")["sft"] == {"tool_accuracy": 0.71235, "n": 300}
    assert read_json(tmp_path / "headlines" / "m.json") == {
        "sft": {"tool_accuracy": 0.71235},
        "dpo": {"tool_accuracy": 0.5, "loss": 1.0},
    }


def test_headlines_are_few_and_equal_to_the_metrics():
    metrics = {path.stem: read_json(path) for path in (ROOT / "metrics").glob("*.json")}
    headlines = {path.stem: read_json(path) for path in (ROOT / "metrics/headlines").glob("*.json")}
    assert headlines.keys() == metrics.keys() - {"tolerances"}
    assert sum(len(group) for file in headlines.values() for group in file.values()) <= 60
    for stage, groups in headlines.items():
        for name, group in groups.items():
            assert group.items() <= metrics[stage][name].items()


def test_the_interval_of_a_share_is_wilsons():
    for hits, n in ((8, 10), (0, 7), (300, 300)):
        low, high = binomtest(hits, n).proportion_ci(method="wilson")
        assert share_interval(hits, n) == pytest.approx((low, high), abs=1e-6)
    assert share_interval(0, 0) == (0.0, 1.0)
