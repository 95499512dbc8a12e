"""Measure training steps and decoding, ours and what one would take instead, in one run.

    python -m benchmarks.pretrain                    # everything
    python -m benchmarks.pretrain gpt_oss decoding   # parts of it
    python -m benchmarks.pretrain --rows 1 --steps 1 --sizes 32 --new-tokens 4   # does it run?

out  metrics/speed/pretrain.json: {mlp: {tokens_per_s, seconds_per_step, mfu, memory_gib,
     measured_on}, gpt_oss: {…, times_reference}, <cell>_<size>: …}. Rows measured earlier stay.
     metrics/speed/generate.json: {batch_<n>_<dtype>: {tokens_per_s, times_reference}}

The reference is transformers' GptOssForCausalLM (default experts, eager attention), or torch.nn's
RNN, LSTM and GRU between the same embedding and head; the MLP has none. Decoding is greedy, with
weights of that dtype, beside transformers' generate.
Each pair takes turns, so that a busy machine slows both; the median step counts. mfu is the share
of the rate of large matrix products here. memory_gib is of a process that does two steps only.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.report import write_report, write_rows
from crawl2cart.core.device import Device, open_device
from crawl2cart.core.params import Profile, read_params
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats.save import MODELS, save_model
from crawl2cart.lm.inference.engine import Engine
from crawl2cart.lm.models.init import initialise, pad_vocab
from crawl2cart.lm.models.recurrent import rms_norm
from crawl2cart.lm.training.flops import flops_per_token, peak_memory, product_rate
from crawl2cart.lm.training.optim import adamw

ROOT = Path(__file__).parent.parent
CONTEXT = 256
CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
PARTS = ("mlp", "gpt_oss", *CELLS, "decoding")


class Reference(nn.Module):
    """Our recurrent model with torch.nn's layers in place of ours, up to the logits."""

    def __init__(self, kind: type, width: int, layers: int, vocabulary: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(kind(width, width) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens.T)
        for layer in self.layers:
            x = x + layer(rms_norm(x))[0]
        return self.head(rms_norm(x).transpose(0, 1))


def step_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], device: Device
) -> Callable[[], None]:
    def step() -> None:
        with device.autocast():
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.kind == "cuda":
            torch.cuda.synchronize()

    return step


def new_model(name: str, config: dict, vocabulary: int, device: Device) -> nn.Module:
    return initialise(MODELS[name](config, vocabulary), 1).to(device.kind)


def random_batch(vocabulary: int, rows: int, device: Device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, vocabulary, (rows, CONTEXT + 1), generator=generator)
    return tokens[:, :-1].to(device.kind), tokens[:, 1:].to(device.kind)


def own_step(model: nn.Module, rows: int, device: Device) -> Callable[[], None]:
    inputs, targets = random_batch(model.vocabulary, rows, device)
    optimizer = adamw(model, 0.1, 0.9, 0.95)
    return step_of(model, optimizer, lambda: model.loss(inputs, targets)[0], device)


def reference_step(
    model: nn.Module, logits: Callable[[Tensor], Tensor], vocabulary: int, rows: int, device: Device
) -> Callable[[], None]:
    """Return a step with the usual cross-entropy."""
    inputs, targets = random_batch(vocabulary, rows, device)

    def loss() -> Tensor:
        return F.cross_entropy(logits(inputs).flatten(0, 1).float(), targets.flatten())

    return step_of(model, torch.optim.AdamW(model.parameters(), 1e-4, fused=True), loss, device)


def memory_of_steps(
    name: str, config: dict, vocabulary: int, rows: int, dtype: str, kind: str, threads: int
) -> float:
    """Return the most GiB that this process held in two steps. Call it in a process of its own."""
    device = open_device(kind, dtype, threads, 1)
    step = own_step(new_model(name, config, vocabulary, device), rows, device)
    for _ in range(2):  # the first makes the optimizer's state
        step()
    return peak_memory(device.kind)


def median_seconds(times: int, *runs: Callable[[], object]) -> list[float]:
    """Return the median seconds of each, taking turns, after one unmeasured turn."""
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(times + 1):
        for run, measured in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            run()
            if turn:
                measured.append(time.perf_counter() - started)
    return [statistics.median(measured) for measured in seconds]


def row(tokens: int, ours: float, theirs: float | None = None) -> dict:
    """Return the result of a measurement in seconds. theirs: of the reference, if there is one."""
    result = {"tokens_per_s": tokens / ours}
    if theirs is not None:
        result |= {"reference_tokens_per_s": tokens / theirs, "times_reference": theirs / ours}
    return result


def hugging_face(model: nn.Module, tokenizer):
    """Return transformers' model with our model's weights and its own defaults."""
    from transformers import GptOssForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder, tokenizer)
        return GptOssForCausalLM.from_pretrained(folder, attn_implementation="eager")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretrain", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "parts", nargs="*", default=PARTS, metavar="part", help=f"{', '.join(PARTS)} (all)"
    )
    parser.add_argument("--rows", type=int, default=8, help="rows of a training step (%(default)s)")
    parser.add_argument("--steps", type=int, default=9, help="measured steps of each (%(default)s)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[256, 1024], help="widths of the recurrent layers"
    )
    parser.add_argument(
        "--new-tokens", type=int, default=128, help="tokens that decoding writes (%(default)s)"
    )
    parser.add_argument("--threads", type=int, help="(those of the profile)")
    return parser.parse_args()


def measured_models(profile: Profile, arguments: argparse.Namespace) -> dict[str, tuple[str, dict]]:
    """Return title -> name and config of the models to train."""
    gpt_oss = profile.models.gpt_oss.model_dump()
    gpt_oss |= {"router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0}
    models = {"mlp": ("mlp", profile.models.mlp.model_dump()), "gpt_oss": ("gpt_oss", gpt_oss)}
    for name in CELLS:
        for width in arguments.sizes:
            config = {"hidden_size": width, "num_layers": 2, "dropout": 0.0}
            models[f"{name}_{width}"] = (name, config)
    return models


def measure_decoding(
    model: nn.Module, reference: nn.Module, new_tokens: int, device: Device
) -> dict:
    """Return the speed of greedy decoding with either dtype and batch."""
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        engine = Engine(model.to(dtype))
        reference.to(dtype).eval()
        for batch in (1, 32):
            prompt = torch.randint(0, 4000, (batch, 64), device=device.kind)
            settings = {
                "attention_mask": torch.ones_like(prompt),
                "max_new_tokens": new_tokens,
                "do_sample": False,
                "eos_token_id": None,
                "pad_token_id": 0,
            }
            seconds = median_seconds(
                3,
                partial(engine.generate, prompt.tolist(), new_tokens, temperature=0),
                partial(reference.generate, prompt, **settings),
            )
            name = f"batch_{batch}_{str(dtype).removeprefix('torch.')}"
            results[name] = row(batch * new_tokens, *seconds)
            print("decoding", name, results[name], flush=True)
    return results


def main() -> None:
    arguments = parse_arguments()
    params = read_params(ROOT / "params.yaml")
    profile = getattr(params.profiles, params.profile)
    threads = arguments.threads or profile.threads
    device = open_device(profile.device, profile.dtype, threads, params.seed)
    ranks = tokenizers.read_ranks(ROOT / "data" / "ranks" / "o200k_4096.tiktoken")
    tokenizer = tokenizers.encoding(ranks)
    vocabulary, rows = tokenizer.n_vocab, arguments.rows

    models = measured_models(profile, arguments)
    wanted = {title: model for title, model in models.items() if model[0] in arguments.parts}
    # First: on Linux the peak memory of a process starts at that of the one that started it.
    common = vocabulary, rows, profile.dtype, device.kind, torch.get_num_threads()
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as alone:
        memory = {
            title: alone.submit(memory_of_steps, *model, *common).result()
            for title, model in wanted.items()
        }
    model = new_model(*models["gpt_oss"], vocabulary, device)
    reference = hugging_face(model, tokenizer).to(device.kind).train()
    peak, results = product_rate(device.kind, device.dtype), {}
    for title, (name, config) in wanted.items():
        own, steps = new_model(name, config, vocabulary, device), []
        steps.append(own_step(own, rows, device))
        if name == "gpt_oss":
            logits = lambda tokens: reference(tokens).logits  # noqa: E731
            steps.append(reference_step(reference, logits, vocabulary, rows, device))
        elif name in CELLS:
            sizes = config["hidden_size"], config["num_layers"], pad_vocab(vocabulary)
            twin = Reference(CELLS[name], *sizes).to(device.kind)
            steps.append(reference_step(twin, twin, vocabulary, rows, device))
        seconds = median_seconds(arguments.steps, *steps)
        results[title] = row(rows * CONTEXT, *seconds)
        results[title] |= {
            "seconds_per_step": seconds[0],
            "memory_gib": memory[title],
            "mfu": flops_per_token(own, CONTEXT) * results[title]["tokens_per_s"] / peak,
        }
        print(title, results[title], flush=True)
    if results:
        write_rows("pretrain", results)
    if "decoding" in arguments.parts:
        write_report("generate", measure_decoding(model, reference, arguments.new_tokens, device))


if __name__ == "__main__":
    main()
