"""benchmarks/gpu.py runs from end to end at toy sizes, so that on a card one command is enough; its figures here mean nothing."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import BASE, RUNS, SECTIONS
from crawl2cart.core.params import read_params
from tests.conftest import ROOT


@pytest.mark.slow
def test_every_section_runs_alone_and_leaves_the_others_as_they_are(tmp_path):
    def run(*words: str) -> dict:
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu",
            "--toy",
            "--folder",
            str(tmp_path),
            "--name",
            "toy",
            "--steps",
            "2",
            *words,
        ]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr[-3000:]
        return json.loads((tmp_path / "toy.json").read_text())

    first = run("--section", "parity")
    assert set(first) == {"parity"}
    # The CPU's fp32 against its float64: what is compared is alike.
    assert all(
        error < 1e-4
        for name, part in first["parity"].items()
        if name != "measured_on"
        for error in part.values()
    )
    rest = [word for section in SECTIONS if section != "parity" for word in ("--section", section)]
    found = run(*rest, "--tokens", "32")
    assert set(found) == set(SECTIONS) and found["parity"] == first["parity"]
    for section in SECTIONS:
        about = found[section].pop("measured_on")
        assert {"machine", "driver", "cuda", "torch", "command"} <= set(about)
    assert {row["tokens_per_s"] > 0 for name in ("sft", "dpo") for row in found[name].values()} == {
        True
    }
    assert found["determinism"]["gpt_oss"] == {"equal_bits": True, "largest_difference": 0.0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_it_says_so_and_writes_nothing(tmp_path):
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--folder", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 1 and "torch finds no CUDA device: not measured." in said.stderr
    assert not list(tmp_path.iterdir())


def test_the_benchmark_measures_the_shapes_that_the_profile_runs():
    profile = read_params(ROOT / "params.yaml").profiles.gpu
    _, config, _, context, batch_tokens, _ = RUNS["gpt_oss_410m"]
    assert {
        name: config[name] for name in profile.models.gpt_oss.model_dump()
    } == profile.models.gpt_oss.model_dump()
    assert (context, batch_tokens) == (profile.pretrain.context, profile.pretrain.batch_tokens)
    _, lstm, _, steps_back, _, _ = RUNS["lstm_2x1024"]
    assert (lstm["width"], lstm["layers"], steps_back) == tuple(
        profile.models.lstm.model_dump().values()
    )
    assert BASE["num_local_experts"] * BASE["num_hidden_layers"] * 3 * BASE["hidden_size"] * BASE[
        "intermediate_size"
    ] == pytest.approx(19.1e9, rel=0.01)
