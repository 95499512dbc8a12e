"""benchmarks/gpu.py runs at toy sizes, so that on a GPU one command is enough."""

import json
import subprocess
import sys

import pytest

from benchmarks.gpu import BASE, RUNS, SECTIONS
from crawl2cart.core.params import read_params
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def test_every_section_runs_alone_and_leaves_the_others_as_they_are(tmp_path):
    toy = ["--toy", "--folder", str(tmp_path), "--name", "toy", "--steps", "2"]

    def run(*words: str) -> dict:
        command = [sys.executable, "-m", "benchmarks.gpu", *toy, *words]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads((tmp_path / "toy.json").read_text())

    first = run("--section", "parity")
    assert set(first) == {"parity"}
    # float32 and float64 of one CPU: so the two sides compute the same thing.
    errors = {name: part for name, part in first["parity"].items() if name != "measured_on"}
    assert all(error < 1e-4 for part in errors.values() for error in part.values())
    others = [word for name in SECTIONS if name != "parity" for word in ("--section", name)]
    results = run(*others, "--tokens", "32")
    assert set(results) == set(SECTIONS) and results["parity"] == first["parity"]
    for section in SECTIONS:
        about = results[section].pop("measured_on")
        assert {"machine", "driver", "cuda", "torch", "command"} <= set(about)
    speeds = [row["tokens_per_s"] for name in ("sft", "dpo") for row in results[name].values()]
    assert min(speeds) > 0
    assert results["determinism"]["gpt_oss"] == {"equal_bits": True, "largest_difference": 0.0}


def test_the_benchmark_measures_the_shapes_that_the_profile_runs():
    profile = read_params(ROOT / "params.yaml").profiles.gpu
    _, config, _, context, batch_tokens, _ = RUNS["gpt_oss_410m"]
    gpt_oss, lstm = profile.models.gpt_oss.model_dump(), profile.models.lstm.model_dump()
    assert {name: config[name] for name in gpt_oss} == gpt_oss
    assert (context, batch_tokens) == (profile.pretrain.context, profile.pretrain.batch_tokens)
    _, config, _, bptt_length, _, _ = RUNS["lstm_2x1024"]
    assert config | lstm == config | {"bptt_length": bptt_length}
    matrices = 3 * BASE["hidden_size"] * BASE["intermediate_size"]
    experts = BASE["num_local_experts"] * BASE["num_hidden_layers"]
    assert experts * matrices == pytest.approx(19.1e9, rel=0.01)
