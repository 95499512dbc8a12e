"""Measure SFT's step in TRL's trainer and in a bare loop, on the same batches with the same LoRA.

    python -m benchmarks.sft            # on models/base and data/sft
    python -m benchmarks.sft --steps 1 --rows 1     # only to see whether it runs

out  metrics/speed/sft.json: {sft: {trl_seconds, bare_seconds, times_bare, batch_tokens, rows,
     steps}}

The trainer has the settings of stages/sft.py without validation, checkpoints and schedule. The bare
loop is transformers' model with PEFT's adapters, its own loss, backward, clipping and AdamW. Both
take turns, so that a busy machine slows both, and the median step counts. The trainer's time
includes fetching and padding rows, and counting tokens, accuracy and entropy.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.report import write_report
from crawl2cart.core.device import Device, open_device
from crawl2cart.core.errors import UserError
from crawl2cart.core.stage import Stage
from crawl2cart.lm.training.trl_utils import (
    check_lengths,
    check_trainable,
    json_dataset,
    lora,
    open_model,
)
from stages.sft import sample_rows

PACKAGES = ("torch", "transformers", "trl", "peft")
INPUTS = ("input_ids", "attention_mask", "labels")


class RememberingTrainer(SFTTrainer):
    """A trainer that keeps its last batch."""

    def training_step(
        self, model: torch.nn.Module, inputs: dict, *words: object, **named: object
    ) -> torch.Tensor:
        self.batch = {name: inputs[name].clone() for name in INPUTS}
        return super().training_step(model, inputs, *words, **named)


class Turns(TrainerCallback):
    """Runs a step of the bare loop after each of the trainer's, on the same batch.

    seconds: of the trainer's steps, and of the bare ones.
    """

    def __init__(self, bare: PeftModel, learning_rate: float, clip: float, device: Device):
        self.bare, self.clip, self.device = bare.train(), clip, device
        self.trained = [parameter for parameter in bare.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, learning_rate, weight_decay=0.0, fused=True
        )
        self.seconds: tuple[list[float], list[float]] = ([], [])
        self.tokens: list[int] = []
        self.losses: list[float] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        ended = time.perf_counter()
        loss = self.step(self.trainer.batch)
        done = time.perf_counter()
        self.seconds[0].append(ended - self.started)
        self.seconds[1].append(done - ended)
        self.tokens.append(self.trainer.batch["input_ids"].numel())
        self.losses.append(loss.item())
        self.started = time.perf_counter()

    def step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with self.device.autocast():
            loss = self.bare(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def measure(
    stage: Stage, steps: int, rows: int
) -> tuple[dict[str, float | int], list[tuple[float, float]]]:
    """Return median seconds per step of each, and both losses of each step.

    One more step at the start does not count. rows: of a step. Raises UserError without a base
    model.
    """
    if not Path("models/base").is_dir():
        raise UserError("models/base is missing. `dvc repro midtrain` makes it.")
    sft, profile, seed = stage.params.sft, stage.params.profile, stage.params.seed
    device = open_device(profile.device, profile.dtype, profile.threads, seed)
    if device.kind != "cpu":
        raise UserError(
            "This benchmark is for a CPU: set `profile: cpu`. "
            "`python -m benchmarks.gpu --section sft` measures a GPU."
        )
    model, tokenizer = open_model("models/base", device)
    bare = get_peft_model(open_model("models/base", device)[0], lora(sft.lora_rank, sft.lora_alpha))
    train = sample_rows("train", (steps + 1) * rows, seed)
    check_lengths(train, tokenizer, ("completion",), profile.sft.max_length)
    learnt = [{name: row[name] for name in ("prompt", "completion", "tools")} for row in train]
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=steps + 1,
            per_device_train_batch_size=rows,
            max_length=profile.sft.max_length,
            packing=False,
            completion_only_loss=True,
            learning_rate=sft.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            router_aux_loss_coef=0.0,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=device.dtype == torch.bfloat16,
            seed=seed,
            data_seed=seed,
            dataloader_pin_memory=False,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        turns = Turns(bare, sft.learning_rate, arguments.max_grad_norm, device)
        turns.trainer = RememberingTrainer(
            model,
            args=arguments,
            processing_class=tokenizer,
            train_dataset=json_dataset(learnt),
            peft_config=lora(sft.lora_rank, sft.lora_alpha),
            callbacks=[turns],
        )
        check_trainable(turns.trainer.model)
        check_trainable(bare)
        turns.trainer.train()
    losses = [entry["loss"] for entry in turns.trainer.state.log_history if "loss" in entry]
    trl_seconds, bare_seconds = (statistics.median(seconds[1:]) for seconds in turns.seconds)
    return {
        "trl_seconds": trl_seconds,
        "bare_seconds": bare_seconds,
        "times_bare": trl_seconds / bare_seconds,
        "batch_tokens": int(statistics.median(turns.tokens[1:])),
        "rows": rows,
        "steps": steps,
    }, list(zip(losses, turns.losses, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sft", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--steps", type=int, default=15, help="measured steps of each (%(default)s)"
    )
    parser.add_argument(
        "--rows", type=int, help="rows of a step, those of the profile if not given"
    )
    arguments = parser.parse_args()
    try:
        stage = Stage("sft")
        result, _ = measure(
            stage, arguments.steps, arguments.rows or stage.params.profile.sft.batch_size
        )
    except UserError as problem:
        sys.exit(f"benchmarks.sft: {problem}")
    print(result)
    write_report("sft", {"sft": result}, PACKAGES)


if __name__ == "__main__":
    main()
