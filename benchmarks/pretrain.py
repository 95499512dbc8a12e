"""Training steps and decoding, ours beside what one would take instead, in one run.

    python -m benchmarks.pretrain                    # all; `--rows 1 --steps 1 --sizes 32 --new-tokens 4` tries whether it runs
    python -m benchmarks.pretrain gpt_oss decoding   # parts of it

out  metrics/speed/pretrain.json: {mlp: {tokens_per_s, seconds_per_step, mfu, memory_gib, measured_on}, gpt_oss: {…, times_reference},
     <cell>_<size>: …}: the reference is transformers' GptOssForCausalLM (default experts, eager attention), or torch.nn's RNN, LSTM and
     GRU between the same embedding and head; the MLP has none. Rows measured earlier stay.
     metrics/speed/generate.json: {batch_<n>_<dtype>: {tokens_per_s, times_reference}}: greedy decoding beside transformers' generate,
     both with weights of that dtype
Each pair takes turns, so that a busy moment of the machine hits both; the median step counts. mfu is the share of the rate of large
matrix products here, as stages/pretrain.py prints it (crawl2cart/lm/training/flops.py); memory_gib is of a process that does nothing but two steps.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.report import write_report, write_rows
from crawl2cart.core.device import Device, open_device
from crawl2cart.core.params import read_params
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats.save import MODELS, save_model
from crawl2cart.lm.inference.engine import generate
from crawl2cart.lm.models.init import initialise, pad_vocab
from crawl2cart.lm.models.rnn import rms_norm
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


def some_batch(vocabulary: int, rows: int, device: Device) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(
        0, vocabulary, (rows, CONTEXT + 1), generator=torch.Generator().manual_seed(1)
    ).to(device.kind)
    return tokens[:, :-1], tokens[:, 1:]


def own_step(model: nn.Module, rows: int, device: Device) -> Callable[[], None]:
    inputs, targets = some_batch(model.vocabulary, rows, device)
    return step_of(
        model, adamw(model, 0.1, 0.9, 0.95), lambda: model.loss(inputs, targets)[0], device
    )


def reference_step(
    model: nn.Module, logits: Callable[[Tensor], Tensor], vocabulary: int, rows: int, device: Device
) -> Callable[[], None]:
    """A step with the usual cross-entropy."""
    inputs, targets = some_batch(vocabulary, rows, device)
    return step_of(
        model,
        torch.optim.AdamW(model.parameters(), 1e-4, fused=True),
        lambda: F.cross_entropy(logits(inputs).flatten(0, 1).float(), targets.flatten()),
        device,
    )


def memory_of_steps(
    name: str, config: dict, vocabulary: int, rows: int, dtype: str, kind: str, threads: int
) -> float:
    """Most GiB that this process has held when it has done two steps: to be called in a process of its own."""
    device = open_device(kind, dtype, threads, 1)
    step = own_step(new_model(name, config, vocabulary, device), rows, device)
    for _ in range(2):  # the first makes the optimizer's state, the second has it from its start
        step()
    return peak_memory(device.kind)


def median_seconds(times: int, *runs: Callable[[], object]) -> list[float]:
    """Median seconds of each, taking turns, after one unmeasured turn."""
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(times + 1):
        for run, kept in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            run()
            if turn:
                kept.append(time.perf_counter() - started)
    return [statistics.median(kept) for kept in seconds]


def row(tokens: int, ours: float, theirs: float | None = None) -> dict:
    """theirs: seconds of the reference, if there is one."""
    beside = (
        {}
        if theirs is None
        else {"reference_tokens_per_s": tokens / theirs, "times_reference": theirs / ours}
    )
    return {"tokens_per_s": tokens / ours} | beside


def hugging_face(model: nn.Module, tokenizer):
    """transformers' model with our model's weights and its own defaults."""
    from transformers import GptOssForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder, tokenizer)
        return GptOssForCausalLM.from_pretrained(folder, attn_implementation="eager")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretrain", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "parts",
        nargs="*",
        default=PARTS,
        metavar="part",
        help="mlp, gpt_oss, rnn, lstm, gru, decoding (all)",
    )
    parser.add_argument("--rows", type=int, default=8, help="rows of a training step (%(default)s)")
    parser.add_argument("--steps", type=int, default=9, help="measured steps of each (%(default)s)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[256, 1024], help="widths of the recurrent layers"
    )
    parser.add_argument(
        "--new-tokens", type=int, default=128, help="tokens that decoding writes (%(default)s)"
    )
    parser.add_argument("--threads", type=int, help="those of the profile, if not given")
    words = parser.parse_args()
    params = read_params(ROOT / "params.yaml")
    profile = getattr(params.profiles, params.profile)
    device = open_device(
        profile.device, profile.dtype, words.threads or profile.threads, params.seed
    )
    tokenizer = tokenizers.encoding(
        tokenizers.read_ranks(ROOT / "data" / "ranks" / "o200k_4096.tiktoken")
    )
    vocabulary = tokenizer.n_vocab

    sizes = {
        "mlp": ("mlp", profile.models.mlp.model_dump()),
        "gpt_oss": (
            "gpt_oss",
            profile.models.gpt_oss.model_dump()
            | {"router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0},
        ),
        **{
            f"{name}_{width}": (name, {"hidden_size": width, "num_layers": 2, "dropout": 0.0})
            for name in CELLS
            for width in words.sizes
        },
    }
    wanted = {
        title: (name, config) for title, (name, config) in sizes.items() if name in words.parts
    }
    # Before anything is made here: on Linux the peak of a new process starts at the size of the one that started it.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as alone:
        memory = {
            title: alone.submit(
                memory_of_steps,
                name,
                config,
                vocabulary,
                words.rows,
                profile.dtype,
                device.kind,
                torch.get_num_threads(),
            ).result()
            for title, (name, config) in wanted.items()
        }
    model = new_model(*sizes["gpt_oss"], vocabulary, device)
    reference = hugging_face(model, tokenizer).to(device.kind).train()
    peak, results, decoded = product_rate(device.kind, device.dtype), {}, {}
    for title, (name, config) in wanted.items():
        own, beside = new_model(name, config, vocabulary, device), []
        if name == "gpt_oss":
            beside = [
                reference_step(
                    reference,
                    lambda tokens: reference(tokens).logits,
                    vocabulary,
                    words.rows,
                    device,
                )
            ]
        elif name in CELLS:
            twin = Reference(
                CELLS[name], config["hidden_size"], config["num_layers"], pad_vocab(vocabulary)
            ).to(device.kind)
            beside = [reference_step(twin, twin, vocabulary, words.rows, device)]
        seconds = median_seconds(words.steps, own_step(own, words.rows, device), *beside)
        results[title] = row(words.rows * CONTEXT, *seconds)
        results[title] |= {
            "seconds_per_step": seconds[0],
            "memory_gib": memory[title],
            "mfu": flops_per_token(own, CONTEXT) * results[title]["tokens_per_s"] / peak,
        }
        print(title, results[title], flush=True)
    if results:
        write_rows("pretrain", results)

    if "decoding" in words.parts:
        model.eval(), reference.eval()
        for dtype in (torch.float32, torch.bfloat16):
            model.to(dtype), reference.to(dtype)
            for batch in (1, 32):
                prompt = torch.randint(0, 4000, (batch, 64), device=device.kind)
                common = {
                    "max_new_tokens": words.new_tokens,
                    "do_sample": False,
                    "eos_token_id": None,
                    "pad_token_id": 0,
                }
                seconds = median_seconds(
                    3,
                    lambda p=prompt: generate(model, p.tolist(), words.new_tokens, temperature=0),
                    lambda p=prompt, c=common: reference.generate(
                        p, attention_mask=torch.ones_like(p), **c
                    ),
                )
                name = f"batch_{batch}_{str(dtype).removeprefix('torch.')}"
                decoded[name] = row(batch * words.new_tokens, *seconds)
                print("decoding", name, decoded[name], flush=True)
        write_report("generate", decoded)


if __name__ == "__main__":
    main()
