"""SFT and DPO on two processes: what they learn is what one learns with the same batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from transformers import AutoConfig

from crawl2cart.core.device import Device
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_jsonl, write_json, write_jsonl
from crawl2cart.core.params import read_params
from crawl2cart.core.stage import Stage
from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.formats.save import MODELS, save_model
from crawl2cart.lm.models.gpt_oss import GptOss
from crawl2cart.lm.models.init import initialise
from crawl2cart.lm.training.trl_utils import division, row_bytes
from stages import build_sft
from tests.conftest import ROOT, copy_project

CONFIGS = sorted((ROOT / "scale" / "accelerate").glob("*.yaml"))
SMOKE = read_params(ROOT / "params.yaml").profiles.smoke
# The shape of openai/gpt-oss-20b, from its config.json.
BASE = AutoConfig.for_model(
    "gpt_oss",
    hidden_size=2880,
    intermediate_size=2880,
    num_hidden_layers=24,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=64,
    num_local_experts=32,
    num_experts_per_tok=4,
    vocab_size=201_088,
)


def small_model() -> tuple[GptOss, object]:
    """Make the smoke profile's gpt_oss, with blocks that are no identity, and its tokenizer."""
    tokenizer = tokenizers.encoding(
        tokenizers.read_ranks(ROOT / "data" / "ranks" / "o200k_4096.tiktoken")
    )
    model = initialise(
        MODELS["gpt_oss"](
            SMOKE.models.gpt_oss.model_dump()
            | {"router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0},
            tokenizer.n_vocab,
        ),
        1,
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model, tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A smoke project with dialogues, pairs and an untrained model as both base and SFT model."""
    project = copy_project(tmp_path_factory.mktemp("tuning") / "project")
    before = Path.cwd()
    os.chdir(project)
    build_sft.main(Stage("build_sft"))
    os.chdir(before)
    model, tokenizer = small_model()
    for name in ("base", "sft"):
        (project / "models" / name).mkdir(parents=True)
        save_model(model, project / "models" / name, tokenizer)
        (project / "models" / name / "chat_template.jinja").write_text(harmony.TEMPLATE)
    (project / "data" / "prefs").mkdir()
    for split, count in (("train", 8), ("validation", 4)):
        rows = [
            row
            for dialogue in read_jsonl(project / "data" / "sft" / f"{split}.jsonl")
            for row in to_examples(dialogue)
        ][: count + 1]
        write_jsonl(
            project / "data" / "prefs" / f"{split}.jsonl",
            [
                {
                    "prompt": row["prompt"],
                    "chosen": row["completion"],
                    "rejected": other["completion"],
                    "tools": row["tools"],
                }
                for row, other in zip(rows, rows[1:], strict=False)
            ],
        )
    return project


def launch(project: Path, stage: str, processes: int) -> dict:
    """Run a stage under `accelerate launch` or alone; return its curve, weights and costs."""
    start = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "scale/accelerate/cpu.yaml"),
        "-m",
    ]
    command = [*(start if processes > 1 else [sys.executable, "-m"]), f"stages.{stage}"]
    output = subprocess.run(
        command,
        cwd=project,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert output.returncode == 0, output.stdout[-2000:] + output.stderr[-4000:]
    head, *rows = [
        row.split("\t") for row in (project / "metrics" / f"{stage}.tsv").read_text().splitlines()
    ]
    return {
        "losses": [float(row[head.index("loss")]) for row in rows],
        "weights": load_file(project / "models" / stage / "model.safetensors"),
        "noted": json.loads((project / "runs" / f"{stage}.json").read_text()),
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_two_processes_learn_what_one_does(prepared, stage):
    """The SFT term of DPO is a mean over each part's tokens, so it may differ a little."""
    sft = load_file(prepared / "models/sft/model.safetensors")
    alone, together = launch(prepared, stage, 1), launch(prepared, stage, 2)
    assert together["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    for name, tensor in alone["weights"].items():
        torch.testing.assert_close(together["weights"][name], tensor, rtol=0, atol=1e-5)
    assert any(not torch.equal(tensor, sft[name]) for name, tensor in alone["weights"].items()), (
        "nothing was learnt"
    )
    assert together["noted"]["tokens"] == alone["noted"]["tokens"] > 0
    assert together["noted"]["flops"] == pytest.approx(alone["noted"]["flops"])
    assert not list((prepared / ".ckpt" / stage).rglob("checkpoint-*")), (
        "a finished run leaves no checkpoint"
    )


def test_a_batch_that_processes_can_not_share_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="batch of 4 can not be shared equally by 3 processes"):
        division(4, 1, 64, BASE, Device("cpu", torch.float32))


@pytest.mark.parametrize(
    ("free_gib", "pairs", "parts"),
    [(38, 1, (2, 8)), (90, 1, (4, 4)), (4, 1, (1, 16)), (38, 2, (1, 16))],
)
def test_a_card_takes_as_many_rows_at_once_as_fit(monkeypatch, free_gib, pairs, parts):
    """Beside the 39 GiB of gpt-oss-20b: 38 GiB are free on a card of 80 GB, 90 on one of 141 GB."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_gib * 2**30, 0))
    shared = division(16, pairs, 4096, BASE, Device("cuda", torch.bfloat16))
    assert (shared["per_device_train_batch_size"], shared["gradient_accumulation_steps"]) == parts
    assert shared["per_device_eval_batch_size"] == parts[0]


def test_the_base_model_and_a_pair_at_4096_tokens_fit_80_gb_by_the_estimate():
    """Weights in bfloat16, adapters of rank 16 in float32 with Adam (16 bytes each), two rows."""
    adapters = (
        16
        * 16
        * (24 * 32 * (2 * (2880 + 2880) + 2880) + 24 * (2 * (2880 + 4096) + 2 * (2880 + 512)))
    )
    assert 20.9e9 * 2 + adapters + 2 * row_bytes(BASE, 4096) < 80e9


def test_the_tokenizer_of_a_pointer_is_the_hub_s_with_our_template(tmp_path):
    """Read from huggingface_hub's cache, in a process of its own without a network."""
    model, tokenizer = small_model()
    revision = "6" * 40
    snapshot = tmp_path / "hub/models--openai--gpt-oss-20b/snapshots" / revision
    snapshot.mkdir(parents=True)
    save_model(model, snapshot, tokenizer)
    pointer = {"hub_id": "openai/gpt-oss-20b", "revision": revision}
    write_json(tmp_path / "base/pointer.json", pointer)
    (tmp_path / "base/chat_template.jinja").write_text(harmony.TEMPLATE)
    code = (
        "from pathlib import Path; from crawl2cart.lm.training.trl_utils import hub_tokenizer; "
        f"t = hub_tokenizer(Path({str(tmp_path / 'base')!r}), {pointer!r}); "
        "print(len(t), len(t.chat_template))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert output.returncode == 0, output.stderr
    assert output.stdout.split() == [str(tokenizer.n_vocab), str(len(harmony.TEMPLATE))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_committed_configurations_are_what_accelerate_reads_and_the_readme_starts(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == 2
    assert f"scale/accelerate/{path.name}" in (ROOT / "docs" / "distributed.md").read_text()


@pytest.mark.slow
def test_compiled_blocks_give_what_plain_ones_give():
    """Without a code generator, so that it is only about what is traced."""
    model, _ = small_model()
    tokens = torch.randint(0, 4000, (2, 33), generator=torch.Generator().manual_seed(1))
    found = []
    for compiled in (False, True):
        for block in model.blocks:
            if compiled:
                block.compile(backend="aot_eager")
        model.zero_grad()
        loss, _ = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for plain, traced in zip(*found, strict=True):
        torch.testing.assert_close(traced, plain)
