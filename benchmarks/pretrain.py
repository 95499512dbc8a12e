"""Training steps and decoding, ours beside what one would take instead, in one run.

    python -m benchmarks.pretrain                    # all; `--rows 1 --steps 1 --sizes 32 --new-tokens 4` tries whether it runs
    python -m benchmarks.pretrain gpt_oss decoding   # parts of it

out  metrics/speed/pretrain.json: {gpt_oss: {tokens_per_s, times_reference, threads}, <cell>_<size>: …}: the reference is transformers'
     GptOssForCausalLM (default experts, eager attention), or torch.nn's RNN, LSTM and GRU between the same embedding and head
     metrics/speed/generate.json: {batch_<n>_<dtype>: {tokens_per_s, times_reference}}: greedy decoding beside transformers' generate,
     both with weights of that dtype
Each pair takes turns, so that a busy moment of the machine hits both; the median step counts.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.report import measured_before, write_report
from stages.common.device import Device, open_device
from stages.common.params import read_params
from stages.nn import tokenizer as tokenizers
from stages.nn.export import MODELS, save_model
from stages.nn.generate import generate
from stages.nn.gru import Gru
from stages.nn.initial import initialise, padded
from stages.nn.lstm import Lstm
from stages.nn.optim import adamw
from stages.nn.rnn import Rnn, normed

ROOT = Path(__file__).parent.parent
CELLS = {"rnn": (Rnn, nn.RNN), "lstm": (Lstm, nn.LSTM), "gru": (Gru, nn.GRU)}
PARTS = ("gpt_oss", *CELLS, "decoding")


class Reference(nn.Module):
    """Our recurrent model with torch.nn's layers in place of ours and the usual cross-entropy."""

    def __init__(self, kind: type, width: int, layers: int, vocabulary: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(kind(width, width) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens.T)
        for layer in self.layers:
            x = x + layer(normed(x))[0]
        return F.cross_entropy(self.head(normed(x).transpose(0, 1)).flatten(0, 1).float(), targets.flatten())


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], device: Device) -> Callable[[], None]:
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


def median_seconds(ours: Callable[[], object], theirs: Callable[[], object], times: int) -> tuple[float, float]:
    """Median seconds of each, taking turns, after one unmeasured turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(times + 1):
        for run, kept in zip((ours, theirs), seconds, strict=True):
            started = time.perf_counter()
            run()
            if turn:
                kept.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def row(ours: float, theirs: float, tokens: int) -> dict:
    return {"tokens_per_s": tokens / ours, "reference_tokens_per_s": tokens / theirs, "times_reference": theirs / ours}


def hugging_face(model: nn.Module, tokenizer):
    """transformers' model with our model's weights and its own defaults."""
    from transformers import GptOssForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder, tokenizer)
        return GptOssForCausalLM.from_pretrained(folder, attn_implementation="eager")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="part", help="gpt_oss, rnn, lstm, gru, decoding (all)")
    parser.add_argument("--rows", type=int, default=8, help="rows of a training step (%(default)s)")
    parser.add_argument("--steps", type=int, default=9, help="measured steps of each (%(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024], help="widths of the recurrent layers")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens that decoding writes (%(default)s)")
    parser.add_argument("--threads", type=int, help="those of the profile, if not given")
    words = parser.parse_args()
    params = read_params(ROOT / "params.yaml")
    profile = getattr(params.profiles, params.profile)
    device = open_device(profile.device, profile.dtype, words.threads or profile.threads, params.seed)
    tokenizer = tokenizers.encoding(tokenizers.read_ranks(ROOT / "data" / "ranks" / "o200k_4096.tiktoken"))
    vocabulary, context = tokenizer.n_vocab, 256
    tokens = torch.randint(0, vocabulary, (words.rows, context + 1), device=device.kind)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    config = profile.models.gpt_oss.model_dump() | {"balance": 0.0, "z_loss": 0.0}
    model = initialise(MODELS["gpt_oss"](config, vocabulary), 1).to(device.kind)
    reference = hugging_face(model, tokenizer).to(device.kind).train()
    results, decoded = {}, {}
    if "gpt_oss" in words.parts:
        fused = torch.optim.AdamW(reference.parameters(), 1e-4, fused=True)
        results["gpt_oss"] = row(*median_seconds(
            step_of(model, adamw(model, 0.1, 0.9, 0.95), lambda: model.loss(inputs, targets)[0], device),
            step_of(reference, fused, lambda: F.cross_entropy(reference(inputs).logits.flatten(0, 1).float(), targets.flatten()), device),
            words.steps), words.rows * context)
        print("gpt_oss", results["gpt_oss"], flush=True)
    for name in [name for name in CELLS if name in words.parts]:
        ours, theirs = CELLS[name]
        for width in words.sizes:
            model_of = initialise(ours({"width": width, "layers": 2, "dropout": 0.0}, vocabulary), 1).to(device.kind)
            twin = Reference(theirs, width, 2, padded(vocabulary)).to(device.kind)
            results[f"{name}_{width}"] = row(*median_seconds(
                step_of(model_of, adamw(model_of, 0.1, 0.9, 0.95), lambda m=model_of: m.loss(inputs, targets)[0], device),
                step_of(twin, torch.optim.AdamW(twin.parameters(), 1e-4, fused=True), lambda m=twin: m(inputs, targets), device),
                words.steps), words.rows * context)
            print(name, width, results[f"{name}_{width}"], flush=True)
    if results:   # parts measured earlier stay
        threads = {"threads": torch.get_num_threads()}
        write_report("pretrain", measured_before("pretrain") | {name: found | threads for name, found in results.items()})

    if "decoding" in words.parts:
        model.eval(), reference.eval()
        for dtype in (torch.float32, torch.bfloat16):
            model.to(dtype), reference.to(dtype)
            for batch in (1, 32):
                prompt = torch.randint(0, 4000, (batch, 64), device=device.kind)
                common = {"max_new_tokens": words.new_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
                ours, theirs = median_seconds(lambda p=prompt: generate(model, p.tolist(), words.new_tokens, temperature=0),
                                              lambda p=prompt, c=common: reference.generate(p, attention_mask=torch.ones_like(p), **c), 3)
                name = f"batch_{batch}_{str(dtype).removeprefix('torch.')}"
                decoded[name] = row(ours, theirs, batch * words.new_tokens)
                print("decoding", name, decoded[name], flush=True)
        write_report("generate", decoded)


if __name__ == "__main__":
    main()
