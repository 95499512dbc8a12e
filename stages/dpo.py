"""Prefer the better answers with DPO, and release the model that passes the guards.

in   models/sft, data/prefs/{train,validation}.jsonl, data/sft/validation.jsonl
out  models/dpo, models/released, metrics/dpo.json, metrics/dpo.tsv

A new LoRA on the merged SFT model; the reference is the same model with the adapter off, so the loss starts at ln 2. Guards
judged on validation decide: if one fails, models/released is the SFT model.
Rafailov et al. 2023, https://arxiv.org/abs/2305.18290
"""

import math
import random
import shutil
from pathlib import Path

from transformers import PretrainedConfig
from trl import DPOConfig, DPOTrainer

from stages.common.checkpoint import open_checkpoint
from stages.common.device import Device, open_device
from stages.common.files import atomic_directory, read_jsonl
from stages.common.metrics import write_curve, write_metrics
from stages.common.stage import Stage, is_first, run
from stages.shop.answer import LOOK_BATCH, Answerer, answer_turns
from stages.shop.dialogues import turn_rows
from stages.shop.tuning import (
    KEPT_CHECKPOINTS,
    check_lengths,
    check_trainable,
    curve,
    division,
    json_dataset,
    last_checkpoint,
    lora,
    open_model,
    save_merged,
    trained,
)
from stages.shop.verify import summarise, without_intervals

COLUMNS = ("prompt", "chosen", "rejected", "tools")
LOGGED = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy", "logps/chosen": "chosen_log_probability",
          "logps/rejected": "rejected_log_probability"}
CURVE_POINTS = 20


def settings(stage: Stage, device: Device, folder: Path, config: PretrainedConfig) -> DPOConfig:
    """TRL's arguments: the sigmoid loss with a small share of the SFT loss, which holds the chosen answers likely."""
    dpo, scale = stage.params.dpo, stage.params.profile.dpo
    return DPOConfig(
        output_dir=str(folder), max_steps=scale.steps, **division(scale.batch, 2, scale.max_length, config, device),
        max_length=scale.max_length, beta=dpo.beta,
        loss_type=["sigmoid", "sft"], loss_weights=[1.0, dpo.sft_weight], learning_rate=dpo.learning_rate,
        lr_scheduler_type="cosine", router_aux_loss_coef=0.0, gradient_checkpointing=device.kind == "cuda",
        use_cpu=device.kind == "cpu", bf16=str(device.dtype) == "torch.bfloat16", seed=stage.params.seed,
        data_seed=stage.params.seed, dataloader_pin_memory=False, logging_steps=max(1, scale.steps // CURVE_POINTS),
        report_to="none", save_strategy="steps", save_steps=max(1, scale.steps // 4), save_total_limit=KEPT_CHECKPOINTS)


def guards(before: dict, after: dict, start: dict, end: dict) -> dict[str, bool]:
    """Which promises hold on validation. before, after: summaries of SFT's and DPO's answers. start, end: TRL's evaluations.

    A share may fall by one standard error of its difference before its guard fails.
    """
    def not_worse(name: str) -> bool:
        a, b, n = before[name], after[name], max(1, before[f"{name}_n"])
        return b >= a - math.sqrt((a * (1 - a) + b * (1 - b)) / n)

    return {
        "right_tool": not_worse("right_tool"), "exact_arguments": not_worse("exact_arguments"),
        "unsupported_facts": after["unsupported_facts"] <= before["unsupported_facts"],
        "chosen_log_probability": end["eval_logps/chosen"] >= 1.05 * start["eval_logps/chosen"],
        "mean_length": abs(after["mean_length"] / max(1.0, before["mean_length"]) - 1) <= 0.15,
        "reward_accuracy": end["eval_rewards/accuracies"] >= 0.5,
    }


def main(stage: Stage) -> None:
    dpo, profile, seed = stage.params.dpo, stage.params.profile, stage.params.seed
    scale = profile.dpo
    device = open_device(profile.device, profile.dtype, profile.threads, seed)
    model, tokenizer = open_model("models/sft", device)
    pairs = {split: read_jsonl(f"data/prefs/{split}.jsonl") for split in ("train", "validation")}
    for rows in pairs.values():
        check_lengths(rows, tokenizer, ("chosen", "rejected"), scale.max_length)
    turns = [row for dialogue in read_jsonl("data/sft/validation.jsonl") for row in turn_rows(dialogue)]
    random.Random(seed).shuffle(turns)
    turns = turns[:scale.look_rows]
    before = summarise(turns, answer_turns(Answerer(model, tokenizer, device), turns, LOOK_BATCH, "SFT on validation"))

    with open_checkpoint(stage) as checkpoint:
        trainer = DPOTrainer(
            model, args=settings(stage, device, checkpoint.directory / "trl", model.config), processing_class=tokenizer,
            train_dataset=json_dataset([{key: row[key] for key in COLUMNS} for row in pairs["train"]]),
            eval_dataset=json_dataset([{key: row[key] for key in COLUMNS} for row in pairs["validation"]]),
            peft_config=lora(dpo.lora_rank, dpo.lora_alpha))
        check_trainable(trainer.model)
        start = trainer.evaluate()
        assert abs(start["eval_rewards/margins"]) < 1e-3, "an untrained adapter must leave the reference as it is: loss ln 2"
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoint.directory / "trl"))
        end = trainer.evaluate()
        stage.count(*trained(trainer, 6))   # the reference's forward pass too
        if not is_first():   # of several processes one merges and writes
            return
        rows = curve(trainer.state.log_history, LOGGED)
        merged = trainer.model.merge_and_unload()
        with atomic_directory("models/dpo") as folder:
            save_merged(merged, tokenizer, folder)
        after = summarise(turns, answer_turns(Answerer(merged, tokenizer, device), turns, LOOK_BATCH, "DPO on validation"))

    passed = guards(before, after, start, end)
    released = "models/dpo" if all(passed.values()) else "models/sft"
    with atomic_directory("models/released") as folder:
        shutil.copytree(released, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("adapter"))
    write_curve("metrics/dpo.tsv", rows)
    write_metrics("metrics/dpo.json", {
        "guards": passed, "sft": without_intervals(before),
        "dpo": without_intervals(after) | {"loss": rows[-1]["loss"], "reward_accuracy": end["eval_rewards/accuracies"],
                        "reward_margin": end["eval_rewards/margins"], "released_is_dpo": all(passed.values())}})


if __name__ == "__main__":
    run(main)
