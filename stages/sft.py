"""Fine-tune the base model on shopping dialogues, with TRL and LoRA on attention and experts.

in   models/base, data/sft/{train.jsonl,validation.jsonl,lexicon.json}
out  models/sft (merged weights) and models/sft/adapter, metrics/sft.json, metrics/sft.tsv

One example per assistant turn; the loss covers that turn and nothing before it. It keeps the
adapter with the highest token accuracy on held-out calls, with early stopping.
Hu et al. 2021, https://arxiv.org/abs/2106.09685
"""

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
from crawl2cart.dialogues.sft_examples import sample_examples, to_examples
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

EVALUATIONS = 8  # over the whole training
PATIENCE = 4  # evaluations without improvement before training stops
# What `dvc metrics` shows.
HEADLINES = (
    "sft.validation_loss",
    "sft.best_step",
    "validation.tool_accuracy",
    "validation.argument_exact_match",
)


def sample_rows(split: str, count: int, seed: int) -> list[dict]:
    """Draw `count` examples of a split of data/sft without replacement; at most all of them."""
    dialogues = read_jsonl(f"data/sft/{split}.jsonl")
    examples = [example for dialogue in dialogues for example in to_examples(dialogue)]
    return sample_examples(examples, count, seed)


def settings(stage: Stage, device: Device, folder: Path, config: PretrainedConfig) -> SFTConfig:
    """Return TRL's arguments. The router loss is off: pretraining balances the experts."""
    sft, scale = stage.params.sft, stage.params.profile.sft
    eval_interval = max(1, scale.max_steps // EVALUATIONS)
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
        logging_steps=eval_interval,
        report_to="none",
        disable_tqdm=None,
        eval_strategy="steps",
        eval_steps=eval_interval,
        save_strategy="steps",
        save_steps=eval_interval,
        save_total_limit=KEPT_CHECKPOINTS,
        load_best_model_at_end=True,
        metric_for_best_model="eval_mean_token_accuracy",
        greater_is_better=True,
    )


def dataset(examples: list[dict]) -> Dataset:
    """Return the columns that SFTTrainer reads."""
    columns = ("prompt", "completion", "tools")
    return json_dataset([{name: example[name] for name in columns} for example in examples])


def eval_history(log_history: list[dict]) -> list[dict]:
    """Return the learning curve: step, training loss since the last row, and both call metrics.

    eval_call_loss: mean loss on held-out calls. eval_call_token_accuracy: share of their tokens
    that are the most likely one.
    """
    columns = {
        "eval_loss": "eval_call_loss",
        "eval_mean_token_accuracy": "eval_call_token_accuracy",
    }
    # The first entry of a step: a later one, at the end, covers all held-out turns.
    evaluations = {row["step"]: row for row in reversed(curve(log_history, columns))}
    return [
        row | evaluations[row["step"]]
        for row in curve(log_history, {"loss": "loss"})
        if row["step"] in evaluations
    ]


def main(stage: Stage) -> None:
    sft, profile = stage.params.sft, stage.params.profile
    scale, seed = profile.sft, stage.params.seed
    device = open_device(profile.device, profile.dtype, profile.threads, seed)
    model, tokenizer = open_model("models/base", device)
    train = sample_rows("train", scale.max_steps * scale.batch_size, seed)
    held_out = sample_rows("validation", scale.eval_samples, seed)
    check_lengths(train + held_out, tokenizer, ("completion",), scale.max_length)
    calls = [turn for turn in held_out if turn["completion"][0].get("tool_calls")] or held_out

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
        history = eval_history(trainer.state.log_history)
        best = next(row for row in history if row["step"] == trainer.state.best_global_step)
        with atomic_directory("models/sft") as folder:
            save_adapter(trainer.model, folder / "adapter")
            merged = trainer.model.merge_and_unload()
            save_merged(merged, tokenizer, folder)
        writer = writer_of(merged, tokenizer, device, EVAL_TOKENS)
        texts = answer_turns(writer, held_out, EVAL_BATCH)

    write_curve("metrics/sft.tsv", history)
    write_metrics(
        "metrics/sft.json",
        {
            "sft": {
                "train_loss": best["loss"],
                "validation_loss": validation_loss,
                "best_step": best["step"],
                "rows": len(train),
            },
            "validation": without_intervals(summarize_turns(held_out, texts)),
        },
        HEADLINES,
    )


if __name__ == "__main__":
    run(main)
