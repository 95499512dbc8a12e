"""Fine-tune the base model on shopping dialogues, with TRL and LoRA on attention and experts.

in   models/base, data/sft/{train.jsonl,validation.jsonl,lexicon.json}
out  models/sft (merged weights) and models/sft/adapter, metrics/sft.json, metrics/sft.tsv

One row per assistant turn: the loss covers the turn's tokens and nothing before it. LOOKS times the held-out turns are read: what is kept
is the adapter with which most tokens of their calls were right, and after PATIENCE looks without a better one training ends.
Hu et al. 2021, https://arxiv.org/abs/2106.09685
"""

import random
from pathlib import Path

from datasets import Dataset
from transformers import EarlyStoppingCallback, PretrainedConfig
from trl import SFTConfig, SFTTrainer

from crawl2cart.agent.local_writer import EVAL_BATCH, EVAL_TOKENS, answer_turns, writer_of
from crawl2cart.core.device import Device, open_device
from crawl2cart.core.files import atomic_directory, read_jsonl
from crawl2cart.core.metrics import write_curve, write_metrics
from crawl2cart.core.stage import Stage, is_first, run
from crawl2cart.core.training_state import open_checkpoint
from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.evaluation.turn_metrics import summarize_turns, without_intervals
from crawl2cart.lm.training.trl_utils import (
    KEPT_CHECKPOINTS,
    check_lengths,
    check_trainable,
    curve,
    division,
    json_dataset,
    last_checkpoint,
    lora,
    open_model,
    save_adapter,
    save_merged,
    trained,
)

LOOKS, PATIENCE = 8, 4
# What `dvc metrics` shows of the metrics.
HEADLINES = (
    "sft.validation_loss",
    "sft.best_step",
    "validation.tool_accuracy",
    "validation.argument_exact_match",
)


def sample_rows(split: str, count: int, seed: int) -> list[dict]:
    """`count` rows of a split, drawn without repeats; all of them if there are fewer."""
    rows = [
        row for dialogue in read_jsonl(f"data/sft/{split}.jsonl") for row in to_examples(dialogue)
    ]
    random.Random(seed).shuffle(rows)
    return rows[:count]


def settings(stage: Stage, device: Device, folder: Path, config: PretrainedConfig) -> SFTConfig:
    """TRL's arguments. The router loss is off: pretraining owns the balance of the experts."""
    sft, scale = stage.params.sft, stage.params.profile.sft
    look = max(1, scale.max_steps // LOOKS)
    return SFTConfig(
        output_dir=str(folder),
        max_steps=scale.max_steps,
        **division(scale.batch_size, 1, scale.max_length, config, device),
        max_length=scale.max_length,
        packing=False,
        completion_only_loss=True,
        learning_rate=sft.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(sft.warmup_ratio * scale.max_steps),
        router_aux_loss_coef=0.0,
        gradient_checkpointing=device.kind == "cuda",
        use_cpu=device.kind == "cpu",
        bf16=str(device.dtype) == "torch.bfloat16",
        seed=stage.params.seed,
        data_seed=stage.params.seed,
        dataloader_pin_memory=False,
        logging_steps=look,
        report_to="none",
        disable_tqdm=None,
        eval_strategy="steps",
        eval_steps=look,
        save_strategy="steps",
        save_steps=look,
        save_total_limit=KEPT_CHECKPOINTS,
        load_best_model_at_end=True,
        metric_for_best_model="eval_mean_token_accuracy",
        greater_is_better=True,
    )


def dataset(rows: list[dict]) -> Dataset:
    return json_dataset(
        [{key: row[key] for key in ("prompt", "completion", "tools")} for row in rows]
    )


def eval_history(log_history: list[dict]) -> list[dict]:
    """Rows step, loss since the row before, and of held-out calls their loss and the share of their tokens that are right."""
    held_out = {
        "eval_loss": "eval_call_loss",
        "eval_mean_token_accuracy": "eval_call_token_accuracy",
    }
    read = {
        row["step"]: row for row in reversed(curve(log_history, held_out))
    }  # the first of a step: at the end all rows are read
    return [
        row | read[row["step"]]
        for row in curve(log_history, {"loss": "loss"})
        if row["step"] in read
    ]


def main(stage: Stage) -> None:
    sft, profile = stage.params.sft, stage.params.profile
    scale, seed = profile.sft, stage.params.seed
    device = open_device(profile.device, profile.dtype, profile.threads, seed)
    model, tokenizer = open_model("models/base", device)
    train = sample_rows("train", scale.max_steps * scale.batch_size, seed)
    held_out = sample_rows("validation", scale.eval_samples, seed)
    check_lengths(train + held_out, tokenizer, ("completion",), scale.max_length)

    calls = [row for row in held_out if row["completion"][0].get("tool_calls")] or held_out
    with open_checkpoint(stage) as checkpoint:
        trainer = SFTTrainer(
            model,
            args=settings(stage, device, checkpoint.directory / "trl", model.config),
            processing_class=tokenizer,
            train_dataset=dataset(train),
            eval_dataset=dataset(calls),
            peft_config=lora(sft.lora_rank, sft.lora_alpha),
            callbacks=[EarlyStoppingCallback(PATIENCE)],
        )
        check_trainable(trainer.model)
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoint.directory / "trl"))
        validation_loss = trainer.evaluate(dataset(held_out))["eval_loss"]
        stage.log_cost(*trained(trainer, 4))
        if not is_first():  # of several processes one merges and writes
            return
        rows = eval_history(trainer.state.log_history)
        kept = next(row for row in rows if row["step"] == trainer.state.best_global_step)
        with atomic_directory("models/sft") as folder:
            save_adapter(trainer.model, folder / "adapter")
            merged = trainer.model.merge_and_unload()
            save_merged(merged, tokenizer, folder)
        answers = answer_turns(
            writer_of(merged, tokenizer, device, EVAL_TOKENS), held_out, EVAL_BATCH
        )

    write_curve("metrics/sft.tsv", rows)
    write_metrics(
        "metrics/sft.json",
        {
            "sft": {
                "train_loss": kept["loss"],
                "validation_loss": validation_loss,
                "best_step": kept["step"],
                "rows": len(train),
            },
            "validation": without_intervals(summarize_turns(held_out, answers)),
        },
        HEADLINES,
    )


if __name__ == "__main__":
    run(main)
