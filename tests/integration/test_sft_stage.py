"""What SFT learns: the trainer that stages/sft.py builds, stopped before its first step."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import trl

from benchmarks.sft import measure
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import write_json, write_jsonl
from crawl2cart.core.stage import Stage
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.formats.save import save_model
from crawl2cart.lm.models.gpt_oss import GptOss
from crawl2cart.lm.models.init import initialise
from crawl2cart.lm.training.losses import IGNORE
from crawl2cart.shop.tool_schemas import TOOLS
from stages import sft
from tests import recorded_dialogues as recorded
from tests.conftest import ROOT

SIZES = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "intermediate_size": 24,
    "num_experts": 2,
    "experts_per_token": 1,
    "sliding_window": 16,
    "max_position_embeddings": 4096,
    "rope_factor": 1.0,
    "router_aux_loss_coef": 0.0,
    "router_z_loss_coef": 0.0,
}
TABLE = tokenizers.encoding(tokenizers.read_ranks(ROOT / "data" / "ranks" / "o200k_4096.tiktoken"))


class BeforeTheFirstStep(Exception):
    """Carries the trainer out of the stage."""


class Stopped(trl.SFTTrainer):
    def train(self, *_words: object, **_named: object) -> None:
        raise BeforeTheFirstStep(self)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which the stage runs on a tiny model and few dialogues, on one thread."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    for name in ("dvc.yaml", "requirements.txt", "stages", "crawl2cart"):
        (tmp_path / name).symlink_to(ROOT / name)
    params = (ROOT / "params.yaml").read_text().replace("\nprofile: cpu\n", "\nprofile: smoke\n")
    for key in ("threads", "num_processes"):
        params = params.replace(f"{key}: 2\n", f"{key}: 1\n")
    (tmp_path / "params.yaml").write_text(params)
    data, base = tmp_path / "data/sft", tmp_path / "models/base"
    for split in ("train", "validation"):
        data.mkdir(parents=True, exist_ok=True)
        write_jsonl(data / f"{split}.jsonl", recorded.dialogues(split)[:10])
    write_json(data / "lexicon.json", recorded.vocabulary().to_dict())
    base.mkdir(parents=True)
    save_model(initialise(GptOss(SIZES, TABLE.n_vocab), seed=1), base, TABLE)
    (base / "chat_template.jinja").write_text(harmony.TEMPLATE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, where the stage ends before it trains."""
    monkeypatch.setattr(sft, "SFTTrainer", Stopped)
    return folder


def trainer_of(stage: Stage) -> trl.SFTTrainer:
    with pytest.raises(BeforeTheFirstStep) as raised:
        sft.main(stage)
    return raised.value.args[0]


def labelled(trainer: trl.SFTTrainer) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of every training row, without padding, which has no labels."""
    rows = []
    for batch in trainer.get_train_dataloader():
        real = batch["attention_mask"].bool()
        assert (batch["labels"][~real] == IGNORE).all()
        rows += [
            (ids[here].tolist(), labels[here].tolist())
            for ids, labels, here in zip(batch["input_ids"], batch["labels"], real, strict=True)
        ]
    return sorted(rows)


def expected(turns: list[dict]) -> list[tuple[list[int], list[int]]]:
    """The same by tiktoken and our template: labels on all of the completion, none before it."""
    rows = []
    for turn in turns:
        prompt = TABLE.encode(
            harmony.render(turn["prompt"], TOOLS, add_generation_prompt=True), allowed_special="all"
        )
        written = TABLE.encode(harmony.completion(turn["completion"][0]), allowed_special="all")
        rows.append((prompt + written, [IGNORE] * len(prompt) + written))
    return sorted(rows)


def turns_of(stage: Stage) -> list[dict]:
    scale = stage.params.profile.sft
    return sft.sample_rows("train", scale.max_steps * scale.batch_size, stage.params.seed)


def test_the_loss_covers_the_tokens_of_the_turn_and_no_other(stopped):
    stage = Stage("sft")
    rows, turns = labelled(trainer_of(stage)), turns_of(stage)
    assert {bool(turn["completion"][0].get("tool_calls")) for turn in turns} == {True, False}
    assert any(message["role"] == "assistant" for turn in turns for message in turn["prompt"])
    assert rows == expected(turns)


def test_without_trls_mask_the_loss_would_cover_the_prompt(stopped, monkeypatch):
    settings = sft.settings

    def unmasked(*arguments: object) -> trl.SFTConfig:
        config = settings(*arguments)
        config.completion_only_loss = False
        return config

    monkeypatch.setattr(sft, "settings", unmasked)
    assert all(labels == ids for ids, labels in labelled(trainer_of(Stage("sft"))))


@pytest.mark.slow
def test_the_benchmarks_bare_loop_has_the_trainers_losses(folder):
    """Otherwise the benchmark would compare the seconds of different work."""
    speeds, losses = measure(Stage("sft"), steps=2, rows=2)
    assert speeds["batch_tokens"] > 400 and len(losses) == 3
    assert [bare for _, bare in losses] == pytest.approx([trl for trl, _ in losses], rel=1e-4)


def test_without_a_base_model_the_benchmark_names_the_stage_that_makes_it(folder):
    shutil.rmtree(folder / "models/base")
    with pytest.raises(UserError, match="dvc repro midtrain"):
        measure(Stage("sft"), steps=1, rows=1)
