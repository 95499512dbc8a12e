"""Measure one GPU: speed, memory, parity with the CPU and repeatability, with random weights.

    python -m benchmarks.gpu                                # every section, each under 5 minutes
    python -m benchmarks.gpu --section sft --tokens 4096    # one of them
    python -m benchmarks.gpu --toy --folder /tmp/toy        # tiny shapes on any device

out  metrics/speed/<name>.json: {section: {…, measured_on: GPU, driver, versions, command}};
     sections measured earlier stay. Without a CUDA device nothing is written, except with --toy.

pretrain     tokens/s, mfu, peak memory in bfloat16 of a dense 124M model, a 410M mixture of
             experts and an LSTM of 2 x 1,024
sft, dpo     the same of LoRA steps of TRL's trainers on openai/gpt-oss-20b's shape
decode       tokens/s written with our cache of keys and values
parity       largest error of outputs and gradients of attention, experts and recurrent cells:
             float32 here and float64 on the CPU
determinism  whether two runs of a few steps from one seed end in the same bits

mfu counts active parameters (crawl2cart/lm/training/flops.py). --peak is the GPU's published rate
in FLOP/s: 989e12 for H100 and H200 in dense bfloat16.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python benchmarks/gpu.py`
from benchmarks.report import FOLDER, machine
from crawl2cart.core.device import Device, open_device
from crawl2cart.core.files import read_json
from crawl2cart.core.metrics import write_metrics
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats.save import MODELS
from crawl2cart.lm.inference.engine import Engine
from crawl2cart.lm.models.attention import attention
from crawl2cart.lm.models.init import initialise
from crawl2cart.lm.models.moe import experts
from crawl2cart.lm.training.flops import flops_per_token, peak_memory
from crawl2cart.lm.training.optim import adamw
from crawl2cart.lm.training.trl_utils import check_trainable, lora, trained

ROOT = Path(__file__).parent.parent
TRANSFORMER = {
    "num_layers": 12,
    "hidden_size": 768,
    "num_heads": 12,
    "num_kv_heads": 12,
    "head_dim": 64,
    "sliding_window": 128,
    "max_position_embeddings": 4096,
    "rope_factor": 1.0,
    "router_aux_loss_coef": 0.0,
    "router_z_loss_coef": 0.0,
}
MIXTURE = TRANSFORMER | {
    "num_kv_heads": 4,
    "num_experts": 16,
    "experts_per_token": 4,
    "intermediate_size": 768,
}
# name: model, sizes, vocabulary, context, tokens of a step, tokens at once
RUNS = {
    # One expert of 8/3 times the width has the weights of GPT-2's feed-forward layer.
    "dense_124m": (
        "gpt_oss",
        TRANSFORMER | {"num_experts": 1, "experts_per_token": 1, "intermediate_size": 2048},
        50_304,
        1024,
        524_288,
        65_536,
    ),
    "gpt_oss_410m": ("gpt_oss", MIXTURE, 32_768, 1024, 524_288, 65_536),
    "lstm_2x1024": (
        "lstm",
        {"hidden_size": 1024, "num_layers": 2, "dropout": 0.0},
        32_768,
        256,
        131_072,
        131_072,
    ),
}
SMALL = TRANSFORMER | {
    "num_layers": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "sliding_window": 8,
    "num_experts": 4,
    "experts_per_token": 2,
    "intermediate_size": 24,
}
TOY_RUNS = {
    "gpt_oss_toy": ("gpt_oss", SMALL, 512, 32, 128, 64),
    "lstm_toy": ("lstm", {"hidden_size": 32, "num_layers": 2, "dropout": 0.0}, 512, 32, 128, 128),
}
BASE = {
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 201_088,
}
TOY_BASE = BASE | {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_local_experts": 4,
    "vocab_size": 5_000,
}
RECURRENT = ("rnn", "lstm", "gru")


def settle(device: Device) -> None:
    """Free what went before and reset the peak of memory."""
    gc.collect()
    if device.kind == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def finish(device: Device) -> float:
    """Return the time when the device has done all its work."""
    if device.kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def pretrain_speed(
    kind: str,
    config: dict,
    vocabulary: int,
    context: int,
    batch_tokens: int,
    tokens_at_once: int,
    steps: int,
    compiled: bool,
    peak: float,
    device: Device,
) -> dict:
    settle(device)
    model = initialise(MODELS[kind](config, vocabulary), 1).to(device.kind)
    for block in model.blocks if compiled and kind == "gpt_oss" else []:
        block.compile()
    optimizer = adamw(model, 0.1, 0.9, 0.95)
    ids = torch.randint(0, vocabulary, (tokens_at_once // context, context + 1), device=device.kind)
    parts = batch_tokens // tokens_at_once
    for step in range(-2, steps):  # two to warm up and compile
        if step == 0:
            started = finish(device)
        for _ in range(parts):
            with device.autocast():
                loss, _ = model.loss(ids[:, :-1], ids[:, 1:])
            (loss / parts).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    rate = steps * batch_tokens / (finish(device) - started)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "tokens_per_s": rate,
        "mfu": flops_per_token(model, context) * rate / peak,
        "parameters": parameters,
        "active_parameters": model.active_parameters() if kind == "gpt_oss" else parameters,
        "memory_gib": peak_memory(device.kind),
    }


def pretraining(arguments: argparse.Namespace, device: Device) -> dict:
    runs = TOY_RUNS if arguments.toy else RUNS
    compiled = device.kind == "cuda" and not arguments.eager
    return {
        name: pretrain_speed(*run, arguments.steps, compiled, arguments.peak, device)
        for name, run in runs.items()
    }


class Clock(TrainerCallback):
    """Records when each step of a Trainer ends."""

    def __init__(self, device: Device):
        self.device, self.ends = device, []

    def on_step_end(self, *_, **__) -> None:
        self.ends.append(finish(self.device))

    def seconds(self) -> float:
        """Return the median of the steps, without the first."""
        return statistics.median(
            after - before for before, after in zip(self.ends, self.ends[1:], strict=False)
        )


def tuning_speed(kind: str, tokens: int, arguments: argparse.Namespace, device: Device) -> dict:
    """Measure LoRA steps of one row, or one pair, of so many tokens; half of them are learnt."""
    settle(device)
    config = AutoConfig.for_model("gpt_oss", **(TOY_BASE if arguments.toy else BASE))
    with torch.device(device.kind):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=torch.float32 if device.kind == "cpu" else device.dtype,
            attn_implementation=arguments.attention,
        )
    half = tokens // 2  # words of a token each; what an end token adds is cut off again
    row = (
        {"input_ids": [5] * tokens, "completion_mask": [0] * half + [1] * (tokens - half)}
        if kind == "sft"
        else {
            "prompt": " the" * half,
            "chosen": " of" * (tokens - half),
            "rejected": " and" * (tokens - half),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        tokenizers.save_tokenizer(
            tokenizers.encoding(
                tokenizers.read_ranks(ROOT / "data" / "ranks" / "o200k_4096.tiktoken")
            ),
            Path(folder),
        )
        common = {
            "output_dir": folder,
            "max_steps": arguments.steps + 1,
            "per_device_train_batch_size": 1,
            "max_length": tokens,
            "router_aux_loss_coef": 0.0,
            "gradient_checkpointing": device.kind == "cuda",
            "use_cpu": device.kind == "cpu",
            "bf16": device.kind == "cuda",
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
        }
        maker, settings = (SFTTrainer, SFTConfig) if kind == "sft" else (DPOTrainer, DPOConfig)
        clock = Clock(device)
        trainer = maker(
            model,
            args=settings(**common),
            processing_class=AutoTokenizer.from_pretrained(folder),
            callbacks=[clock],
            train_dataset=Dataset.from_list([row] * (arguments.steps + 1)),
            peft_config=lora(16, 32),
        )
        check_trainable(trainer.model)
        trainer.train()
    seconds, sequences = clock.seconds(), 1 if kind == "sft" else 2
    _, flops = trained(trainer, 4 if kind == "sft" else 6)
    return {
        "tokens_per_s": sequences * tokens / seconds,
        "seconds_per_step": seconds,
        "memory_gib": peak_memory(device.kind),
        "mfu": flops / (arguments.steps + 1) / seconds / arguments.peak,
    }


def tuning(kind: str) -> Callable[[argparse.Namespace, Device], dict]:
    def measure(arguments: argparse.Namespace, device: Device) -> dict:
        return {
            f"tokens_{tokens}": tuning_speed(kind, tokens, arguments, device)
            for tokens in arguments.tokens
        }

    return measure


def decoding(arguments: argparse.Namespace, device: Device) -> dict:
    """Measure greedy decoding after a prompt; reading the prompt counts too."""
    config, vocabulary, prompt, new = (
        (SMALL, 512, 16, 8) if arguments.toy else (MIXTURE, 32_768, 512, 256)
    )
    model = initialise(MODELS["gpt_oss"](config, vocabulary), 1).to(device.kind).eval()
    results = {}
    for batch in (1, 4) if arguments.toy else (1, 16, 64):
        prompts = torch.randint(0, vocabulary, (batch, prompt)).tolist()
        for turn in range(2):  # the first warms up
            started = finish(device)
            with device.autocast():
                Engine(model).generate(prompts, new, temperature=0)
            if turn:
                results[f"batch_{batch}"] = {
                    "tokens_per_s": batch * new / (finish(device) - started)
                }
    return results | {"prompt_tokens": prompt, "new_tokens": new}


def errors(
    compute: Callable[..., Tensor], inputs: list[Tensor], device: Device
) -> dict[str, float]:
    """Return the largest error of the output and of the inputs' gradients.

    As a share of the largest value: float32 on the device against float64 on the CPU.
    """
    results = []
    for where, dtype in (("cpu", torch.float64), (device.kind, torch.float32)):
        leaves = [x.to(where, dtype if x.is_floating_point() else x.dtype).detach() for x in inputs]
        leaves = [x.requires_grad_() if x.is_floating_point() else x for x in leaves]
        out = compute(*leaves)
        # Not the sum of squares: of a norm's output it is constant.
        weights = torch.randn(
            out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
        )
        (out * weights.to(out)).sum().backward()
        results.append([out.detach(), *(x.grad for x in leaves if x.is_floating_point())])
    share = [
        float((a - b.cpu().double()).abs().max() / a.abs().max())
        for a, b in zip(*results, strict=True)
    ]
    return {"output": share[0], "gradients": max(share[1:])}


def parity(arguments: argparse.Namespace, device: Device) -> dict:
    rows, tokens, width, heads, of_key, size = (
        (2, 24, 32, 4, 2, 16) if arguments.toy else (2, 1024, 768, 12, 4, 64)
    )
    window = tokens // 4
    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    parts = [
        normal(rows, tokens, heads, size),
        normal(rows, tokens, of_key, size),
        normal(rows, tokens, of_key, size),
        normal(heads),
    ]
    results = {
        name: errors(
            lambda q, k, v, sink, w=reach: attention(q, k, v, sink, w),
            parts,
            device,
        )
        for name, reach in (("attention_window", window), ("attention_full", None))
    }
    many, inner = 4, width // 2
    chosen = torch.stack([torch.randperm(many, generator=draw)[:2] for _ in range(tokens)])
    scale = width**-0.5
    layer = [
        normal(tokens, width),
        normal(tokens, 2).softmax(-1),
        normal(many, width, 2 * inner) * scale,
        normal(many, 2 * inner),
        normal(many, inner, width) * scale,
        normal(many, width),
    ]
    results["experts"] = errors(
        lambda x, share, *weights: experts(x, chosen.to(x.device), share, *weights), layer, device
    )
    for name in RECURRENT:
        model = initialise(
            MODELS[name]({"hidden_size": width, "num_layers": 1, "dropout": 0.0}, 64), 1
        )
        weights = {key: value.detach() for key, value in model.named_parameters()}
        ids = torch.randint(0, 64, (rows, 64), generator=draw)

        def hidden(*values: Tensor, model=model, weights=weights, ids=ids) -> Tensor:
            named = dict(zip(weights, values, strict=True))
            return torch.func.functional_call(model, named, (ids.to(values[0].device),))[0]

        used = {key: value for key, value in weights.items() if key != "head"}
        results[name] = errors(
            lambda *values, used=used, weights=weights, hidden=hidden: hidden(
                *(
                    dict(zip(used, values, strict=True)).get(key, weights[key].to(values[0]))
                    for key in weights
                )
            ),
            list(used.values()),
            device,
        )
    return results


def determinism(arguments: argparse.Namespace, device: Device) -> dict:
    results = {}
    for name in ("gpt_oss", "lstm"):
        config = (
            (
                SMALL
                if arguments.toy
                else TRANSFORMER
                | {
                    "num_layers": 4,
                    "num_experts": 8,
                    "experts_per_token": 2,
                    "intermediate_size": 768,
                }
            )
            if name == "gpt_oss"
            else {"hidden_size": 32 if arguments.toy else 1024, "num_layers": 2, "dropout": 0.0}
        )
        ends = []
        for _ in range(2):
            torch.manual_seed(1)
            model = initialise(MODELS[name](config, 512), 1).to(device.kind)
            optimizer = adamw(model, 0.1, 0.9, 0.95)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            ids = torch.randint(0, 512, (4, 65)).to(device.kind)
            for _ in range(5):
                with device.autocast():
                    loss, _ = model.loss(ids[:, :-1], ids[:, 1:])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            ends.append([value.detach().cpu() for value in model.parameters()])
        results[name] = {
            "equal_bits": all(torch.equal(a, b) for a, b in zip(*ends, strict=True)),
            "largest_difference": max(
                float((a - b).abs().max()) for a, b in zip(*ends, strict=True)
            ),
        }
    return results


SECTIONS = {
    "pretrain": pretraining,
    "sft": tuning("sft"),
    "dpo": tuning("dpo"),
    "decode": decoding,
    "parity": parity,
    "determinism": determinism,
}


def driver() -> str:
    """Return the version of NVIDIA's driver, or none."""
    try:
        result = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return "none"
    return result.stdout.split("\n")[0].strip() or "none"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--section", choices=SECTIONS, action="append", help="only this one (may be given again)"
    )
    parser.add_argument(
        "--peak",
        type=float,
        default=989e12,
        help="the card's FLOP/s in dense bfloat16 (%(default)g)",
    )
    parser.add_argument(
        "--steps", type=int, default=5, help="measured steps of each model (%(default)s)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=[2048, 4096],
        help="lengths for sft and dpo (%(default)s)",
    )
    parser.add_argument(
        "--attention",
        choices=("eager", "flex_attention"),
        default="eager",
        help="transformers' for sft and dpo",
    )
    parser.add_argument(
        "--eager", action="store_true", help="do not compile in the section pretrain"
    )
    parser.add_argument("--toy", action="store_true", help="tiny shapes on any device")
    parser.add_argument("--name", default="h200", help="of the file (%(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where the file goes (%(default)s)"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.toy:
        sys.exit("torch finds no CUDA device: not measured.")
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = open_device(
        kind, "bfloat16" if kind == "cuda" else "float32", 8 if kind == "cuda" else 1, 1
    )
    path = arguments.folder / f"{arguments.name}.json"
    for section in arguments.section or SECTIONS:
        started = time.perf_counter()
        results = SECTIONS[section](arguments, device)
        seconds = round(time.perf_counter() - started)
        print(f"{section}, {seconds} s: {results}", flush=True)
        about = machine(("torch", "transformers", "trl", "peft")) | {
            "driver": driver(),
            "cuda": torch.version.cuda or "none",
            "seconds": seconds,
        }
        write_metrics(
            path,
            (read_json(path) if path.is_file() else {})
            | {section: results | {"measured_on": about}},
        )


if __name__ == "__main__":
    main()
