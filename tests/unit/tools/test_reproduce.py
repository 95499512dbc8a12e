"""Metrics are compared within tolerances, and tolerances are the spread over seeds."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from crawl2cart.core.errors import UserError
from tests.conftest import ROOT
from tools import tolerances
from tools.reproduce import differences, flat, metrics_below


def test_metrics_beyond_their_tolerance_are_named():
    committed = flat({"gru": {"bits": 2.0, "n": 10}, "released": True})
    measured = flat({"gru": {"bits": 2.3, "n": 11}, "released": False, "new": 1})
    assert differences(committed, committed, {}, []) == []
    within = differences(committed, measured, {"gru.bits": 0.5, "gru.n": 1.0}, ["released"])
    assert [message.split()[0] for message in within] == ["new"]
    beyond = differences(committed, measured, {"gru.*": 0.1}, [])
    names = [re.match(r"[\w.]+", message)[0] for message in beyond]
    assert names == ["gru.bits", "gru.n", "new", "released"]


def test_a_float_may_differ_in_its_last_digit_and_a_count_may_not():
    assert differences({"f1": 0.75664}, {"f1": 0.75665}, {}, []) == []
    assert len(differences({"f1": 0.75664}, {"f1": 0.75694}, {}, [])) == 1
    assert len(differences({"n": 123456}, {"n": 123457}, {}, [])) == 1


def test_a_tolerance_is_the_largest_minus_the_smallest_value():
    runs = [
        {"bits": 2.5, "n": 160, "pairs": 30, "released": True, "best": "gru", "wins": 4},
        {"bits": 2.25, "n": 160, "pairs": 33, "released": True, "best": "mlp"},
        {"bits": 2.375, "n": 160, "pairs": 31, "released": False, "best": "gru"},
    ]
    assert tolerances.spread(runs) == ({"bits": 0.25, "pairs": 3.0}, ["best", "released", "wins"])


def test_the_committed_tolerances_fit_the_committed_metrics():
    allowed = json.loads((ROOT / "metrics" / "tolerances.json").read_text())
    assert len(allowed["origin"]["seeds"]) >= tolerances.MIN_SEEDS
    metrics = metrics_below(ROOT)
    assert differences(metrics, metrics, allowed["tolerances"], allowed["free"]) == []
    for name in ("filter:documents.in", "filter:documents.kept", "router:local.n"):
        changed = metrics | {name: metrics[name] + 1}  # no seed moves these
        assert len(differences(metrics, changed, allowed["tolerances"], allowed["free"])) == 1


def test_seeds_that_are_measured_are_not_measured_again(tmp_path, monkeypatch):
    """Runs from elsewhere count: four as files, one as a folder."""
    monkeypatch.setattr(tolerances, "ROOT", tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "metrics", tmp_path / "metrics")
    commit = ["-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", "all"]
    for command in (["init", "-q"], ["add", "-A"], commit):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    runs = tmp_path / ".cache" / "tolerances" / tolerances.commit_of(tmp_path)
    runs.mkdir(parents=True)
    metrics = metrics_below(tmp_path)
    loss = "sft:sft.train_loss"
    for seed in (8, 9, 10):
        moved = metrics | {loss: metrics[loss] + seed}
        (runs / f"{seed}.json").write_text(json.dumps({"seed": seed, "metrics": moved}))
    monkeypatch.setattr(sys, "argv", ["tolerances", "--take", str(tmp_path), "8", "9", "10"])
    with pytest.raises(UserError, match="4 seeds are measured"):
        tolerances.main()
    (runs / "11.json").write_text(json.dumps({"seed": 11, "metrics": metrics}))
    tolerances.main()
    written = json.loads((tmp_path / "metrics" / "tolerances.json").read_text())
    assert written["origin"]["seeds"] == [7, 8, 9, 10, 11]
    assert written["tolerances"] == {loss: 10.0}
    assert written["free"] == []
