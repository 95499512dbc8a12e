"""The training loop in one process: its outs, its validation, and its errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from crawl2cart.core.device import Device
from crawl2cart.core.errors import UserError
from crawl2cart.core.stage import Stage
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats.save import load_model
from stages import compare, pretrain
from tests.encoded_project import encoded, outs, set_param  # noqa: F401


def test_outs_of_gpt_oss(encoded):  # noqa: F811
    pretrain.main(Stage("pretrain@gpt_oss"), "gpt_oss")
    files = outs(encoded, "gpt_oss")
    metrics = json.loads(files["gpt_oss.json"])["gpt_oss"]
    model = load_model(encoded / "models" / "pretrain" / "gpt_oss")
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    block = model.blocks[0]
    parts = block.gate_up, block.gate_up_bias, block.down, block.down_bias
    idle = 2 * 2 * sum(part[0].numel() for part in parts)  # 2 layers, 2 of 4 experts
    assert metrics["parameters"] - metrics["active_parameters"] == idle
    assert metrics["tokens"] == 6 * 256
    rows = files["gpt_oss.tsv"].decode().splitlines()
    assert rows[0].split("\t") == ["step", "loss", "val_bits_per_byte", "learning_rate"]
    assert [int(row.split("\t")[0]) for row in rows[1:]] == [2, 4, 6]
    samples = json.loads(files["samples.json"])
    assert [sample["prompt"] for sample in samples] == list(pretrain.PROMPTS)
    assert not list((encoded / ".ckpt").rglob("*.safetensors"))


def test_validation_is_the_negative_log_likelihood_over_the_bytes(encoded):  # noqa: F811
    pretrain.main(Stage("pretrain@gru"), "gru")
    model = load_model(encoded / "models" / "pretrain" / "gru")
    tokens = np.fromfile(encoded / "data" / "tokens" / "val.bin", np.uint16)
    meta = json.loads((encoded / "data" / "tokens" / "meta.json").read_text())
    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        hidden, _ = model(ids.roll(1)[None])  # the first token follows the last separator
        nats = F.cross_entropy(hidden[0] @ model.head.T, ids, reduction="sum").item()
    lengths = tokenizers.token_bytes(tokenizers.load(encoded / "data" / "tokenizer"))
    in_one_row = pretrain.validation(model, tokens, lengths, 1, 64, Device("cpu", torch.float32))
    assert in_one_row == pytest.approx(nats / np.log(2) / meta["val"]["text_bytes"], rel=1e-5)


def test_five_models_make_one_table(project, monkeypatch):
    monkeypatch.chdir(project)
    row = {"val_bits_per_byte": 1.5, "parameters": 10, "active_parameters": 8, "tokens": 100}
    folder = project / "metrics" / "pretrain"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*compare.MODELS, "left_over"):
        (folder / f"{name}.json").write_text(json.dumps({name: row}))
    compare.main(Stage("compare"))
    table = json.loads((project / "metrics" / "pretrain.json").read_text())
    assert table == dict.fromkeys(compare.MODELS, row)
    (folder / "rnn.json").unlink()
    with pytest.raises(UserError, match=r"rnn\.json is missing"):
        compare.main(Stage("compare"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(encoded):  # noqa: F811
    set_param(encoded, "rnn", "learning_rate", "1.0e+38")
    facts = r"step (\d) is (nan|inf).*batch\(tokens, \1, 8, 32, 7\).*pretrain\.rnn\.learning_rate"
    with pytest.raises(UserError, match=facts):
        pretrain.main(Stage("pretrain@rnn"), "rnn")
    assert not (encoded / "models").exists()


@given(st.integers(1, 6), st.integers(1, 64), st.sampled_from([64, 1024, 65_536, 131_072]))
def test_parts_of_a_step_are_equal_fit_and_cover_its_rows(size, own, context):
    rows = size * own
    parts = [
        part
        for rank in range(size)
        for part in pretrain.split_rows(rows * context, context, rank, size)
    ]
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows))
    (length,) = {part.stop - part.start for part in parts}
    assert length == 1 or length * context <= pretrain.TOKENS_AT_ONCE
    larger = [n for n in range(length + 1, own + 1) if own % n == 0]
    assert all(n * context > pretrain.TOKENS_AT_ONCE for n in larger), "parts could be larger"


def test_rows_that_can_not_be_shared_are_refused():
    with pytest.raises(UserError, match="multiple of the 1,000 tokens"):
        pretrain.split_rows(4096, 1000, 0, 1)
    with pytest.raises(UserError, match="3 processes can not share the 16 rows"):
        pretrain.split_rows(4096, 256, 0, 3)


def gradients(name: str, monkeypatch) -> list[list[torch.Tensor]]:
    """Return the gradients of all parameters at every step of a run, before they are clipped."""
    steps, clip = [], torch.nn.utils.clip_grad_norm_

    def recording(parameters, limit):
        parameters = list(parameters)
        steps.append([parameter.grad.clone() for parameter in parameters])
        return clip(parameters, limit)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", recording)
        pretrain.main(Stage(f"pretrain@{name}"), name)
    return steps


@pytest.mark.parametrize(("name", "steps"), [("lstm", 6), ("gpt_oss", 1)])
def test_parts_of_a_step_give_the_gradient_of_the_whole(
    encoded: Path,  # noqa: F811
    monkeypatch,
    name: str,
    steps: int,
):
    """With a learning rate near 0 all steps can be compared.

    Of gpt_oss only the first: later its blocks, which start as the identity, have gradients of
    rounding alone.
    """
    set_param(encoded, name, "learning_rate", "1.0e-30")
    whole = gradients(name, monkeypatch)
    monkeypatch.setattr(pretrain, "TOKENS_AT_ONCE", 64)
    parts = gradients(name, monkeypatch)
    assert len(whole) == len(parts) == 6
    for of_whole, of_parts in zip(whole[:steps], parts[:steps], strict=True):
        for one, other in zip(of_whole, of_parts, strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=5e-6 * one.abs().max().item())
