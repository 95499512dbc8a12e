"""What SFT learns: the trainer that stages/sft.py builds, stopped before its first step, down to the label of every token."""

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
from crawl2cart.dialogues.generator import shop_lexicon
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.formats.save import save_model
from crawl2cart.lm.models.gpt_oss import GptOss
from crawl2cart.lm.models.init import initialise
from crawl2cart.lm.training.losses import IGNORE
from crawl2cart.shop.tool_schemas import TOOLS
from stages import sft
from tests.conftest import ROOT, maker_of

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
    """A folder in which the stage runs on a tiny model and a few dialogues; what it sets for the whole process is put back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    for name in ("dvc.yaml", "requirements.txt", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    text = (ROOT / "params.yaml").read_text()
    text = text.replace("\nprofile: cpu\n", "\nprofile: smoke\n")
    text = text.replace(
        "threads: 2\n    processes: 2\n", "threads: 1\n    processes: 1\n"
    )  # two wait for each other on a busy machine
    (tmp_path / "params.yaml").write_text(text)
    maker = maker_of(ROOT / "data" / "store", 7)
    (tmp_path / "data" / "sft").mkdir(parents=True)
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "data" / "sft" / f"{split}.jsonl", maker.split(split, 10))
    write_json(tmp_path / "data" / "sft" / "lexicon.json", shop_lexicon(maker).to_dict())
    (tmp_path / "models" / "base").mkdir(parents=True)
    save_model(
        initialise(GptOss(SIZES, TABLE.n_vocab), seed=1), tmp_path / "models" / "base", TABLE
    )
    (tmp_path / "models" / "base" / "chat_template.jinja").write_text(harmony.TEMPLATE)
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
    """(ids, labels) of every row that the trainer goes through in an epoch, in order, without the padding, which nobody learns."""
    found = []
    for batch in trainer.get_train_dataloader():
        real = batch["attention_mask"].bool()
        assert (batch["labels"][~real] == IGNORE).all()
        found += [
            (ids[here].tolist(), labels[here].tolist())
            for ids, labels, here in zip(batch["input_ids"], batch["labels"], real, strict=True)
        ]
    return sorted(found)


def expected(rows: list[dict]) -> list[tuple[list[int], list[int]]]:
    """The same by tiktoken and our template, without TRL: nothing of the prompt is learnt, and all of the completion."""
    found = []
    for row in rows:
        prompt = TABLE.encode(
            harmony.render(row["prompt"], TOOLS, add_generation_prompt=True), allowed_special="all"
        )
        written = TABLE.encode(harmony.completion(row["completion"][0]), allowed_special="all")
        found.append((prompt + written, [IGNORE] * len(prompt) + written))
    return sorted(found)


def shown(ids: list[int], labels: list[int]) -> str:
    """A line for each token: what it is, and what is learnt there."""
    return "\n".join(
        f"{TABLE.decode([token])!r:>20} | {'' if label == IGNORE else repr(TABLE.decode([label]))}"
        for token, label in zip(ids, labels, strict=True)
    )


def rows_of(stage: Stage) -> list[dict]:
    scale = stage.params.profile.sft
    return sft.sample_rows("train", scale.max_steps * scale.batch_size, stage.params.seed)


def test_the_loss_is_on_the_tokens_of_the_turn_and_on_no_other(stopped):
    """`pytest -s` shows the mask. Among the rows are calls and replies, and prompts that hold earlier turns of the assistant's."""
    stage = Stage("sft")
    found, rows = labelled(trainer_of(stage)), rows_of(stage)
    for ids, labels in found:
        print(f"\n{shown(ids, labels)}")
    assert {bool(row["completion"][0].get("tool_calls")) for row in rows} == {True, False}
    assert any(message["role"] == "assistant" for row in rows for message in row["prompt"])
    assert found == expected(rows)
    learnt = sorted(
        TABLE.decode([label for label in labels if label != IGNORE]) for _, labels in found
    )
    assert learnt == sorted(harmony.completion(row["completion"][0]) for row in rows)


def test_without_trls_mask_the_prompt_would_be_learnt_too(stopped, monkeypatch):
    settings = sft.settings

    def unmasked(*words: object) -> trl.SFTConfig:
        arguments = settings(*words)
        arguments.completion_only_loss = False
        return arguments

    monkeypatch.setattr(sft, "settings", unmasked)
    stage = Stage("sft")
    found = labelled(trainer_of(stage))
    assert all(labels == ids for ids, labels in found) and found != expected(rows_of(stage))


def test_the_benchmarks_bare_loop_learns_what_the_trainer_learns(folder):
    """Both start from adapters that add nothing, and see the same batches: so do their losses, or the seconds would be of other work."""
    found, losses = measure(Stage("sft"), steps=2, rows=2)
    assert (
        len(losses) == 3
        and found["batch_tokens"] > 400
        and found["times_bare"] == found["trl_seconds"] / found["bare_seconds"]
    )
    assert [bare for _, bare in losses] == pytest.approx([trl for trl, _ in losses], rel=1e-4)


def test_without_a_base_model_the_benchmark_says_what_makes_it(folder):
    shutil.rmtree(folder / "models/base")
    with pytest.raises(UserError, match="dvc repro midtrain"):
        measure(Stage("sft"), steps=1, rows=1)
