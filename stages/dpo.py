"""Prefer the better answers with DPO, and release the model that passes the guards.

in   models/sft, data/prefs/{train,validation}.jsonl, data/sft/{validation.jsonl,lexicon.json}, data/store
out  models/dpo, models/released, metrics/dpo.json, metrics/dpo.tsv

A new LoRA on the merged SFT model; the reference is the same model with the adapter off, so the loss starts at ln 2 (that of `apo_zero`
at 1, of `ipo` at 1 / 4β²). Guards judged on validation decide: if one fails, models/released is the SFT model.
Rafailov et al. 2023, https://arxiv.org/abs/2305.18290
"""

import math
import random
import shutil
from pathlib import Path

import torch
from transformers import PretrainedConfig
from trl import DPOConfig, DPOTrainer

from crawl2cart.agent.local_writer import EVAL_BATCH, EVAL_TOKENS, answer_turns, writer_of
from crawl2cart.core.device import Device, open_device
from crawl2cart.core.files import atomic_directory, read_jsonl
from crawl2cart.core.metrics import write_curve, write_metrics
from crawl2cart.core.stage import Stage, is_first, run
from crawl2cart.core.training_state import open_checkpoint
from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.evaluation.release_gates import guards, measure
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
    save_merged,
    trained,
)
from crawl2cart.preferences.losses import mean_divergence, preference_loss
from crawl2cart.preferences.style_classifier import ToneScorer
from crawl2cart.shop.env import ShopSessions

COLUMNS = ("prompt", "chosen", "rejected", "tools")
LOGGED = {
    "eval_loss": "loss",
    "eval_rewards/margins": "margin",
    "eval_rewards/accuracies": "accuracy",
    "eval_logps/chosen": "chosen_log_probability",
    "eval_logps/rejected": "rejected_log_probability",
    "eval_kl": "kl",
}
LOOKS = 3  # at the held-out pairs, besides the one before the first step
DIVERGENCE_PAIRS = (
    2  # held-out pairs whose turns the KL divergence is taken on: it needs all logits
)
# What `dvc metrics` shows of the metrics.
HEADLINES = ("dpo.loss", "dpo.reward_accuracy", "dpo.reward_margin", "dpo.kl", "released.model")


class Trainer(DPOTrainer):
    """TRL's trainer, whose looks at the held-out pairs give the preference loss alone, without the SFT term, and the KL divergence."""

    def evaluate(self, *words: object, **options: object) -> dict[str, float]:
        weights, self.loss_weights = self.loss_weights, [1.0, 0.0]
        found = super().evaluate(*words, **options)
        self.loss_weights = weights
        self.state.log_history[-1]["eval_kl"] = self.divergence()
        return found

    @torch.inference_mode()
    def divergence(self) -> float:
        rows = [self.eval_dataset[i] for i in range(min(DIVERGENCE_PAIRS, len(self.eval_dataset)))]
        batch = {
            name: tensor.to(self.model.device) for name, tensor in self.data_collator(rows).items()
        }
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with self.accelerator.autocast():
            policy = self.model(**inputs).logits
            with self.model.disable_adapter():
                reference = self.model(**inputs).logits
        return mean_divergence(policy, reference, batch["completion_mask"].bool()).item()


def settings(stage: Stage, device: Device, folder: Path, config: PretrainedConfig) -> DPOConfig:
    """TRL's arguments: a preference loss with a small share of the SFT loss, which holds the chosen answers likely."""
    dpo, scale = stage.params.dpo, stage.params.profile.dpo
    eval_interval = math.ceil(scale.max_steps / LOOKS)
    return DPOConfig(
        output_dir=str(folder),
        max_steps=scale.max_steps,
        **division(scale.batch_size, 2, scale.max_length, config, device),
        max_length=scale.max_length,
        beta=dpo.beta,
        loss_type=[dpo.loss_type, "sft"],
        loss_weights=[1.0, dpo.sft_weight],
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=2 * scale.batch_size
        if device.kind == "cpu"
        else None,  # on a card as many as `division` lets fit
        learning_rate=dpo.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(dpo.warmup_ratio * scale.max_steps),
        router_aux_loss_coef=0.0,
        gradient_checkpointing=device.kind == "cuda",
        use_cpu=device.kind == "cpu",
        bf16=str(device.dtype) == "torch.bfloat16",
        seed=stage.params.seed,
        data_seed=stage.params.seed,
        dataloader_pin_memory=False,
        logging_steps=scale.max_steps,
        report_to="none",
        eval_strategy="steps",
        eval_steps=eval_interval,
        save_strategy="steps",
        save_steps=eval_interval,
        save_total_limit=KEPT_CHECKPOINTS,
    )


def loss_at_start(beta: float, kind: str) -> float:
    """What the loss is where the policy is the reference."""
    zero, one = torch.zeros(1), torch.ones(1)
    return preference_loss(zero, zero, zero, zero, beta, kind, one, one).item()


def main(stage: Stage) -> None:
    dpo, profile, seed = stage.params.dpo, stage.params.profile, stage.params.seed
    scale = profile.dpo
    device = open_device(profile.device, profile.dtype, profile.threads, seed)
    model, tokenizer = open_model("models/sft", device)
    pairs = {split: read_jsonl(f"data/prefs/{split}.jsonl") for split in ("train", "validation")}
    for rows in pairs.values():
        check_lengths(rows, tokenizer, ("chosen", "rejected"), scale.max_length)
    dialogues = {dialogue["id"]: dialogue for dialogue in read_jsonl("data/sft/validation.jsonl")}
    turns = [row for dialogue in dialogues.values() for row in to_examples(dialogue)]
    random.Random(seed).shuffle(turns)
    turns = turns[: scale.eval_samples]
    shops = ShopSessions("data/store")
    tone = ToneScorer.fit(
        [row for row in read_jsonl("data/store/tone.jsonl") if row["split"] == "train"]
    )

    def evaluate(judged, name: str) -> dict:
        writer = writer_of(judged, tokenizer, device, EVAL_TOKENS)
        return measure(turns, answer_turns(writer, turns, EVAL_BATCH, name), dialogues, shops, tone)

    before = evaluate(model, "SFT on validation")
    with open_checkpoint(stage) as checkpoint:
        trainer = Trainer(
            model,
            args=settings(stage, device, checkpoint.directory / "trl", model.config),
            processing_class=tokenizer,
            train_dataset=json_dataset(
                [{key: row[key] for key in COLUMNS} for row in pairs["train"]]
            ),
            eval_dataset=json_dataset(
                [{key: row[key] for key in COLUMNS} for row in pairs["validation"]]
            ),
            peft_config=lora(dpo.lora_rank, dpo.lora_alpha),
        )
        check_trainable(trainer.model)
        loss, expected = trainer.evaluate()["eval_loss"], loss_at_start(dpo.beta, dpo.loss_type)
        assert math.isclose(loss, expected, rel_tol=1e-3), (
            f"an untrained adapter has the loss {loss}, not {expected}"
        )
        rows = curve(trainer.state.log_history, LOGGED)
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoint.directory / "trl"))
        if scale.max_steps % trainer.args.eval_steps:
            trainer.evaluate()
        stage.log_cost(*trained(trainer, 6))  # the reference's forward pass too
        if not is_first():  # of several processes one merges and writes
            return
        rows += curve(trainer.state.log_history, LOGGED)
        merged = trainer.model.merge_and_unload()
        with atomic_directory("models/dpo") as folder:
            save_merged(merged, tokenizer, folder)
        after = evaluate(merged, "DPO on validation")

    judged = guards(before, after, rows[0], rows[-1])
    failed = [guard.reason for guard in judged if not guard.passed]
    with atomic_directory("models/released") as folder:
        shutil.copytree(
            "models/sft" if failed else "models/dpo",
            folder,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("adapter"),
        )
    why = (
        f"SFT is released: {'; '.join(failed)}"
        if failed
        else f"DPO is released: all {len(judged)} guards hold"
    )
    write_curve("metrics/dpo.tsv", rows)
    measured = {
        name: {
            key: value for key, value in found.items() if key not in ("qualities", "calls", "runs")
        }
        for name, found in (("sft", before), ("dpo", after))
    }
    last = {
        "loss": rows[-1]["loss"],
        "reward_accuracy": rows[-1]["accuracy"],
        "reward_margin": rows[-1]["margin"],
        "kl": rows[-1]["kl"],
        "released_is_dpo": not failed,
    }
    write_metrics(
        "metrics/dpo.json",
        {
            "guards": {guard.name: guard.passed for guard in judged},
            "sft": measured["sft"],
            "dpo": measured["dpo"] | last,
            "released": {"model": "sft" if failed else "dpo", "why": why},
        },
        HEADLINES,
    )
    print(why)


if __name__ == "__main__":
    run(main)
