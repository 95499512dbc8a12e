"""The training loop: killed and repeated it gives the same bytes, and what goes wrong is said in words."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from crawl2cart.core.device import Device
from crawl2cart.core.errors import UserError
from crawl2cart.core.stage import Stage
from crawl2cart.lm.formats.save import load_model
from stages import compare, encode, pretrain
from tests.conftest import ROOT

MODELS = ("mlp", "rnn", "lstm", "gru", "gpt_oss")


@pytest.fixture
def encoded(project: Path, monkeypatch) -> Path:
    """A copy of the project with tokens of a small corpus: its own sources."""
    monkeypatch.chdir(project)
    texts = [
        file.read_text() for file in sorted((ROOT / "stages").rglob("*.py")) if file.stat().st_size
    ]
    for split, part in (("train", texts[4:]), ("val", texts[:4])):
        (project / "data" / "corpus" / split).mkdir(parents=True)
        pq.write_table(pa.table({"text": part}), project / "data" / "corpus" / split / "0.parquet")
    encode.main(Stage("encode"))
    return project


def outs(project: Path, name: str) -> dict[str, bytes]:
    files = [
        *(project / "models" / "pretrain" / name).iterdir(),
        *(project / "metrics" / "pretrain").glob(f"{name}.*"),
    ]
    return {file.name: file.read_bytes() for file in files}


def set_own(project: Path, section: str, key: str, value: str) -> None:
    """A key of one model's section under `pretrain`, or of its loop."""
    params = project / "params.yaml"
    text = params.read_text()
    at = text.index(f" {key}:", text.index(f"  {section}:", text.index("\npretrain:")))
    params.write_text(text[:at] + f" {key}: {value}" + text[text.index("\n", at) :])


def program(project: Path, name: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "stages.pretrain", name],
        cwd=project,
        stdout=subprocess.PIPE,
        text=True,
    )


# The quick case has dropout, so that what is drawn after the kill counts as well.
KILLS = [
    pytest.param("lstm", [("lstm", "dropout", "0.2")], id="lstm with dropout"),
    *(pytest.param(name, [], marks=pytest.mark.slow, id=name) for name in MODELS),
    pytest.param(
        "gpt_oss",
        [("loop", "optimizer", "muon"), ("loop", "schedule", "wsd")],
        marks=pytest.mark.slow,
        id="muon and wsd",
    ),
]


@pytest.mark.parametrize(("name", "changes"), KILLS)
def test_a_run_killed_and_repeated_gives_the_same_bytes(encoded, name, changes):
    for section, key, value in changes:
        set_own(encoded, section, key, value)
    pretrain.main(Stage(f"pretrain@{name}"), name)
    whole = outs(encoded, name)
    assert not list((encoded / ".ckpt").rglob("*.safetensors")), (
        "a finished run leaves no checkpoint"
    )

    with program(encoded, name) as killed:
        for line in killed.stdout:
            if "step 4 of 6" in line:  # between two looks, after the first checkpoint
                killed.send_signal(signal.SIGKILL)
                break
    assert killed.returncode == -signal.SIGKILL
    with program(encoded, name) as repeated:
        said = repeated.stdout.read()
    assert repeated.returncode == 0
    assert "going on at step" in said
    assert outs(encoded, name) == whole


def test_outs_say_what_they_should(encoded):
    pretrain.main(Stage("pretrain@gpt_oss"), "gpt_oss")
    files = outs(encoded, "gpt_oss")
    metrics = json.loads(files["gpt_oss.json"])["gpt_oss"]
    model = load_model(encoded / "models" / "pretrain" / "gpt_oss")
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    one_expert = (
        model.blocks[0].gate_up[0].numel()
        + model.blocks[0].gate_up_bias[0].numel()
        + model.blocks[0].down[0].numel()
        + model.blocks[0].down_bias[0].numel()
    )
    assert (
        metrics["parameters"] - metrics["active_parameters"] == 2 * 2 * one_expert
    )  # 2 layers, 2 of 4 experts rest
    assert metrics["tokens"] == 6 * 256
    rows = files["gpt_oss.tsv"].decode().splitlines()
    assert rows[0].split("\t") == ["step", "loss", "val_bits_per_byte", "learning_rate"]
    assert [int(row.split("\t")[0]) for row in rows[1:]] == [2, 4, 6]
    samples = json.loads(files["samples.json"])
    assert [sample["prompt"] for sample in samples] == list(pretrain.PROMPTS)


def test_validation_is_the_negative_log_likelihood_over_the_bytes(encoded):
    pretrain.main(Stage("pretrain@gru"), "gru")
    model = load_model(encoded / "models" / "pretrain" / "gru")
    tokens = np.fromfile(encoded / "data" / "tokens" / "val.bin", np.uint16)
    meta = json.loads((encoded / "data" / "tokens" / "meta.json").read_text())
    ring = torch.from_numpy(np.roll(tokens, 1).astype(np.int64))[
        None
    ]  # the first token follows the last separator
    with torch.no_grad():
        logits = model.logits(model(ring)[0])[0]
    nats = F.cross_entropy(
        logits, torch.from_numpy(tokens.astype(np.int64)), reduction="sum"
    ).item()
    from crawl2cart.lm import tokenizer as tokenizers

    lengths = tokenizers.token_bytes(tokenizers.load(encoded / "data" / "tokenizer"))
    in_one_row = pretrain.validation(model, tokens, lengths, 1, 64, Device("cpu", torch.float32))
    assert in_one_row == pytest.approx(nats / np.log(2) / meta["val"]["text_bytes"], rel=1e-5)


def test_five_models_make_one_table(encoded):
    row = {"val_bits_per_byte": 1.5, "parameters": 10, "active_parameters": 8, "tokens": 100}
    (encoded / "metrics" / "pretrain").mkdir(parents=True, exist_ok=True)
    for name in (*MODELS, "left_over"):
        (encoded / "metrics" / "pretrain" / f"{name}.json").write_text(json.dumps({name: row}))
    compare.main(Stage("compare"))
    assert json.loads((encoded / "metrics" / "pretrain.json").read_text()) == dict.fromkeys(
        MODELS, row
    )
    (encoded / "metrics" / "pretrain" / "rnn.json").unlink()
    with pytest.raises(UserError, match=r"rnn\.json is missing"):
        compare.main(Stage("compare"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(encoded):
    set_own(encoded, "rnn", "learning_rate", "1.0e+38")
    with pytest.raises(
        UserError,
        match=r"The loss of step (\d) is (nan|inf) .*stages\.nn\.data\.batch\(tokens, \1, 8, 32, 7\) cuts them.*"
        r"Lower pretrain\.rnn\.learning_rate",
    ):
        pretrain.main(Stage("pretrain@rnn"), "rnn")
    assert not (encoded / "models").exists()


@pytest.mark.parametrize(
    ("tokens", "context", "rows"),
    [
        (4096, 256, [16]),
        (524_288, 1024, [64] * 8),
        (131_072, 65_536, [1, 1]),
        (131_072, 131_072, [1]),
        (3 * 65_536, 1024, [64] * 3),
    ],
)
def test_a_step_is_split_into_equal_parts_that_fit(tokens, context, rows):
    parts = pretrain.split_rows(tokens, context, 0, 1)
    assert [part.stop - part.start for part in parts] == rows
    assert parts[0].start == 0
    assert all(before.stop == after.start for before, after in zip(parts, parts[1:], strict=False))


def test_rows_that_do_not_fill_a_step_are_refused():
    with pytest.raises(UserError, match="must be a multiple of the 1,000 tokens"):
        pretrain.split_rows(4096, 1000, 0, 1)


def gradients(name: str, monkeypatch) -> list[list[torch.Tensor]]:
    """The gradients of all parameters at every step of a training run, as they come to be clipped."""
    seen, clip = [], torch.nn.utils.clip_grad_norm_

    def clipping(parameters, most):
        parameters = list(parameters)
        seen.append([parameter.grad.clone() for parameter in parameters])
        return clip(parameters, most)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", clipping)
        pretrain.main(Stage(f"pretrain@{name}"), name)
    return seen


@pytest.mark.parametrize(("name", "steps"), [("mlp", 6), ("lstm", 6), ("gpt_oss", 1)])
def test_parts_of_a_step_give_the_gradient_of_the_whole(encoded, monkeypatch, name, steps):
    """At a learning rate of next to nothing both runs keep the same weights, so that every step can be compared. (Of gpt_oss only the
    first: its blocks start by adding nothing, and behind weights of next to nothing gradients are rounding alone.)"""
    set_own(encoded, name, "learning_rate", "1.0e-30")
    whole = gradients(name, monkeypatch)
    monkeypatch.setattr(pretrain, "TOKENS_AT_ONCE", 64)
    parts = gradients(name, monkeypatch)
    assert len(whole) == len(parts) == 6
    for of_whole, of_parts in zip(whole[:steps], parts[:steps], strict=True):
        for one, other in zip(of_whole, of_parts, strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=5e-6 * one.abs().max().item())


# Several processes


def losses(project: Path, name: str) -> list[float]:
    rows = (project / "metrics" / "pretrain" / f"{name}.tsv").read_text().splitlines()
    return [float(row.split("\t")[1]) for row in rows[1:]]


def torchrun(project: Path, name: str, processes: int) -> str:
    said = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            "-m",
            "stages.pretrain",
            name,
        ],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    return said.stdout


def change(project: Path, old: str, new: str) -> None:
    params = project / "params.yaml"
    assert old in params.read_text()
    params.write_text(params.read_text().replace(old, new))


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["copies", "split"])
@pytest.mark.parametrize("name", ["gpt_oss", "lstm"])
def test_any_number_of_processes_gives_the_same_curve(encoded, name, sharded):
    pretrain.main(Stage(f"pretrain@{name}"), name)
    alone, weights = (
        losses(encoded, name),
        load_model(encoded / "models" / "pretrain" / name).state_dict(),
    )
    change(encoded, "sharded: false", f"sharded: {str(sharded).lower()}")
    for processes in (2, 4):
        torchrun(encoded, name, processes)
        assert losses(encoded, name) == pytest.approx(alone, abs=1e-5)
        for key, tensor in load_model(encoded / "models" / "pretrain" / name).state_dict().items():
            torch.testing.assert_close(tensor, weights[key], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["copies", "split"])
def test_a_run_goes_on_with_another_number_of_processes(encoded, monkeypatch, sharded):
    change(encoded, "sharded: false", f"sharded: {str(sharded).lower()}")
    pretrain.main(Stage("pretrain@gru"), "gru")
    alone = losses(encoded, "gru")
    save = pretrain.Checkpoint.save

    def save_and_die(checkpoint, tensors, state):
        save(checkpoint, tensors, state)
        if state["step"] == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain.Checkpoint, "save", save_and_die)
        pretrain.main(Stage("pretrain@gru"), "gru")
    assert "gru: going on at step 4" in torchrun(encoded, "gru", 2)
    assert losses(encoded, "gru") == pytest.approx(alone, abs=1e-5)


DIES = """
from stages import pretrain
from crawl2cart.core.stage import Stage

save = pretrain.Checkpoint.save

def save_and_die(checkpoint, tensors, state):
    save(checkpoint, tensors, state)
    if state["step"] == 4:
        raise KeyboardInterrupt

pretrain.Checkpoint.save = save_and_die
pretrain.main(Stage("pretrain@gru"), "gru")
"""


@pytest.mark.slow
def test_what_processes_split_among_them_one_goes_on_with(encoded, tmp_path):
    pretrain.main(Stage("pretrain@gru"), "gru")
    alone = losses(encoded, "gru")
    change(encoded, "sharded: false", "sharded: true")
    (tmp_path / "dies.py").write_text(DIES)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(tmp_path / "dies.py"),
    ]
    died = subprocess.run(
        command,
        cwd=encoded,
        env=os.environ | {"PYTHONPATH": str(encoded)},
        capture_output=True,
        text=True,
    )
    assert died.returncode and "KeyboardInterrupt" in died.stderr, died.stderr
    went_on = subprocess.run(
        [sys.executable, "-m", "stages.pretrain", "gru"],
        cwd=encoded,
        capture_output=True,
        text=True,
    )
    assert went_on.returncode == 0 and "gru: going on at step 4" in went_on.stdout, went_on.stderr
    assert losses(encoded, "gru") == pytest.approx(alone, abs=1e-5)


def test_rows_that_processes_can_not_share_are_refused():
    with pytest.raises(
        UserError, match="16 rows of a step can not be shared equally by 3 processes"
    ):
        pretrain.split_rows(4096, 256, 0, 3)
    rows = [part for rank in range(4) for part in pretrain.split_rows(4096, 256, rank, 4)]
    assert [row for part in rows for row in range(part.start, part.stop)] == list(range(16))
