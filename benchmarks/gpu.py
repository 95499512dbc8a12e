"""Training speed on one GPU: tokens a second and the share of the card's products, for three models.

    python -m benchmarks.gpu --peak 989e12 --name h200

out  metrics/speed/<name>.json: {model: {tokens_per_s, mfu, parameters, active_parameters, memory_gib}}. Without a CUDA device it
     says so and writes nothing.
bfloat16 products by autocast, steps of 524,288 tokens (LSTM: 131,072) on random ids. mfu counts active parameters, as
stages/nn/speed.py does; --peak is the card's published rate in FLOP/s (989e12 for H100 and H200, dense bfloat16).
"""

import argparse
import sys
import time

import torch
from torch import nn

from benchmarks.report import write_report
from stages.common.device import open_device
from stages.nn.export import MODELS
from stages.nn.initial import initialise
from stages.nn.optim import adamw
from stages.nn.speed import flops_per_token, peak_memory

CONTEXT = 1024
TRANSFORMER = {"layers": 12, "width": 768, "heads": 12, "key_value_heads": 12, "head_size": 64, "window": 128, "max_context": 4096,
               "rope_factor": 1.0, "balance": 0.0, "z_loss": 0.0}
# name: model, sizes, vocabulary, tokens of a step, tokens at once
RUNS = {
    # One expert of 8/3 times the width has the weights of GPT-2's feed-forward layer.
    "dense_124m": ("gpt_oss", TRANSFORMER | {"experts": 1, "experts_per_token": 1, "expert_width": 2048}, 50_304, 524_288, 65_536),
    "gpt_oss_410m": ("gpt_oss", TRANSFORMER | {"key_value_heads": 4, "experts": 16, "experts_per_token": 4, "expert_width": 768},
                     32_768, 524_288, 65_536),
    "lstm_2x1024": ("lstm", {"width": 1024, "layers": 2, "dropout": 0.0}, 32_768, 131_072, 131_072),
}


def measure(kind: str, config: dict, vocabulary: int, tokens_per_step: int, tokens_at_once: int, steps: int, peak: float,
            device) -> dict:
    context = CONTEXT if kind == "gpt_oss" else 256
    torch.cuda.reset_peak_memory_stats()
    model = initialise(MODELS[kind](config, vocabulary), 1).to(device.kind)
    optimizer = adamw(model, 0.1, 0.9, 0.95)
    ids = torch.randint(0, vocabulary, (tokens_at_once // context, context + 1), device=device.kind)
    parts = tokens_per_step // tokens_at_once
    for step in range(-2, steps):   # two to warm up and compile
        if step == 0:
            torch.cuda.synchronize()
            started = time.perf_counter()
        for _ in range(parts):
            with device.autocast():
                loss, _ = model.loss(ids[:, :-1], ids[:, 1:])
            (loss / parts).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    rate = steps * tokens_per_step / (time.perf_counter() - started)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"tokens_per_s": rate, "mfu": flops_per_token(model, context) * rate / peak, "parameters": parameters,
            "active_parameters": model.active_parameters() if kind == "gpt_oss" else parameters,
            "memory_gib": peak_memory(device.kind)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--peak", type=float, default=989e12, help="the card's FLOP/s in dense bfloat16 (%(default)g)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each model (%(default)s)")
    parser.add_argument("--name", default="h200", help="of the file in metrics/speed (%(default)s)")
    words = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device: not measured.")
    device = open_device("cuda", "bfloat16", 8, 1)
    results = {}
    for name, run in RUNS.items():
        results[name] = measure(*run, words.steps, words.peak, device)
        print(name, results[name], flush=True)
    write_report(words.name, results)


if __name__ == "__main__":
    main()
