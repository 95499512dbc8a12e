"""Tune the SFT model on preference pairs with DPO, and release the model that passes the gates.

in   models/sft, data/prefs/{train,validation}.jsonl, data/sft/{validation.jsonl,lexicon.json},
     data/store
out  models/dpo, models/released, metrics/dpo.json, metrics/dpo.tsv

A new LoRA is trained on the merged SFT model; the reference is the same model without the adapter,
so the loss starts at a known value. Gates on validation turns decide: if one fails, models/released
is the SFT model. Rafailov et al. 2023, https://arxiv.org/abs/2305.18290
"""

import math
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
from crawl2cart.dialogues.sft_examples import sample_examples, to_examples
from crawl2cart.evaluation.release_gates import measure, release_gates
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
# Trainer's log key -> column of metrics/dpo.tsv.
LOGGED = {
    "eval_loss": "loss",
    "eval_rewards/margins": "margin",
    "eval_rewards/accuracies": "accuracy",
    "eval_logps/chosen": "chosen_log_probability",
    "eval_logps/rejected": "rejected_log_probability",
    "eval_kl": "kl",
}
EVALUATIONS = 3  # during training, besides the one before the first step
DIVERGENCE_PAIRS = 2  # held-out pairs for the KL divergence, which needs all logits in memory
# What `dvc metrics` shows.
HEADLINES = ("dpo.loss", "dpo.reward_accuracy", "dpo.reward_margin", "dpo.kl", "released.model")


class Trainer(DPOTrainer):
    """Evaluate the preference loss alone, without the SFT term, and the KL divergence."""

    def evaluate(self, *arguments: object, **options: object) -> dict[str, float]:
        weights, self.loss_weights = self.loss_weights, [1.0, 0.0]
        metrics = super().evaluate(*arguments, **options)
        self.loss_weights = weights
        self.state.log_history[-1]["eval_kl"] = self.divergence()
        return metrics

    @torch.inference_mode()
    def divergence(self) -> float:
        """Return the mean KL divergence of the policy from the reference, in nats per token."""
        count = min(DIVERGENCE_PAIRS, len(self.eval_dataset))
        batch = {
            name: tensor.to(self.model.device)
            for name, tensor in self.data_collator(
                [self.eval_dataset[i] for i in range(count)]
            ).items()
        }
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with self.accelerator.autocast():
            policy = self.model(**inputs).logits
            with self.model.disable_adapter():
                reference = self.model(**inputs).logits
        return mean_divergence(policy, reference, batch["completion_mask"].bool()).item()


def settings(stage: Stage, device: Device, folder: Path, config: PretrainedConfig) -> DPOConfig:
    """Return TRL's arguments: a preference loss, and a little SFT loss that keeps chosen likely."""
    dpo, scale = stage.params.dpo, stage.params.profile.dpo
    eval_interval = math.ceil(scale.max_steps / EVALUATIONS)
    # On a GPU None: as many rows as `division` lets fit.
    reference_batch = 2 * scale.batch_size if device.kind == "cpu" else None
    return DPOConfig(
        output_dir=str(folder),
        max_steps=scale.max_steps,
        **division(scale.batch_size, 2, scale.max_length, config, device),
        max_length=scale.max_length,
        beta=dpo.beta,
        loss_type=[dpo.loss_type, "sft"],
        loss_weights=[1.0, dpo.sft_weight],
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=reference_batch,
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


def initial_loss(beta: float, kind: str) -> float:
    """Return the loss where the policy is the reference."""
    zero, one = torch.zeros(1), torch.ones(1)
    return preference_loss(zero, zero, zero, zero, beta, kind, one, one).item()


def train(trainer: Trainer, folder: Path, beta: float, kind: str) -> list[dict]:
    """Train from the last checkpoint in `folder`; return the rows of metrics/dpo.tsv."""
    loss, expected = trainer.evaluate()["eval_loss"], initial_loss(beta, kind)
    assert math.isclose(loss, expected, rel_tol=1e-3), (
        f"an untrained adapter has the loss {loss}, not {expected}"
    )
    rows = curve(trainer.state.log_history, LOGGED)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    if trainer.args.max_steps % trainer.args.eval_steps:
        trainer.evaluate()
    return rows + curve(trainer.state.log_history, LOGGED)


def release(before: dict, after: dict, history: list[dict]) -> None:
    """Copy the released model in place, and write the metrics. before, after: see `measure`."""
    gates = release_gates(before, after, history[0], history[-1])
    failures = [gate.reason for gate in gates if not gate.passed]
    winner = "sft" if failures else "dpo"
    if failures:
        why = f"SFT is released: {'; '.join(failures)}"
    else:
        why = f"DPO is released: all {len(gates)} guards hold"
    with atomic_directory("models/released") as folder:
        without_adapter = shutil.ignore_patterns("adapter")
        shutil.copytree(f"models/{winner}", folder, dirs_exist_ok=True, ignore=without_adapter)
    write_curve("metrics/dpo.tsv", history)
    hidden = ("qualities", "calls", "runs")
    sft, dpo = (
        {name: value for name, value in measured.items() if name not in hidden}
        for measured in (before, after)
    )
    dpo |= {
        "loss": history[-1]["loss"],
        "reward_accuracy": history[-1]["accuracy"],
        "reward_margin": history[-1]["margin"],
        "kl": history[-1]["kl"],
        "released_is_dpo": not failures,
    }
    write_metrics(
        "metrics/dpo.json",
        {
            "guards": {gate.name: gate.passed for gate in gates},
            "sft": sft,
            "dpo": dpo,
            "released": {"model": winner, "why": why},
        },
        HEADLINES,
    )
    print(why)


def main(stage: Stage) -> None:
    dpo, profile, seed = stage.params.dpo, stage.params.profile, stage.params.seed
    scale = profile.dpo
    device = open_device(profile.device, profile.dtype, profile.threads, seed)
    model, tokenizer = open_model("models/sft", device)
    pairs = {split: read_jsonl(f"data/prefs/{split}.jsonl") for split in ("train", "validation")}
    for rows in pairs.values():
        check_lengths(rows, tokenizer, ("chosen", "rejected"), scale.max_length)
    dialogues = {dialogue["id"]: dialogue for dialogue in read_jsonl("data/sft/validation.jsonl")}
    turns = [turn for dialogue in dialogues.values() for turn in to_examples(dialogue)]
    turns = sample_examples(turns, scale.eval_samples, seed)
    shops = ShopSessions("data/store")
    situations = [row for row in read_jsonl("data/store/tone.jsonl") if row["split"] == "train"]
    tone = ToneScorer.fit(situations)

    def evaluate(candidate, name: str) -> dict:
        writer = writer_of(candidate, tokenizer, device, EVAL_TOKENS)
        return measure(turns, answer_turns(writer, turns, EVAL_BATCH, name), dialogues, shops, tone)

    before = evaluate(model, "SFT on validation")
    datasets = {
        split: json_dataset([{key: row[key] for key in COLUMNS} for row in rows])
        for split, rows in pairs.items()
    }
    with open_checkpoint(stage) as checkpoint:
        trl_folder = checkpoint.directory / "trl"
        trainer = Trainer(
            model,
            args=settings(stage, device, trl_folder, model.config),
            processing_class=tokenizer,
            train_dataset=datasets["train"],
            eval_dataset=datasets["validation"],
            peft_config=lora(dpo.lora_rank, dpo.lora_alpha),
        )
        check_trainable(trainer.model)
        history = train(trainer, trl_folder, dpo.beta, dpo.loss_type)
        stage.log_cost(*trained(trainer, 6))  # the reference's forward pass too
        if not is_first():  # of several processes one merges and writes
            return
        merged = trainer.model.merge_and_unload()
        with atomic_directory("models/dpo") as folder:
            save_merged(merged, tokenizer, folder)
        after = evaluate(merged, "DPO on validation")
    release(before, after, history)


if __name__ == "__main__":
    run(main)
