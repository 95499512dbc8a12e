"""Train our five models and a plain GPT-2 on tinyshakespeare with nanoGPT's budget for a CPU.

    python -m benchmarks.shakespeare tinyshakespeare.txt                    # all five
    python -m benchmarks.shakespeare tinyshakespeare.txt --models gpt_oss   # and the reference

out  metrics/speed/shakespeare.json: {model: {val_nats, learning_rate, seconds,
     milliseconds_per_step, times_reference, parameters, measured_on}}. times_reference: seconds of
     the reference in the same call over the model's. Rows measured earlier stay.

Letter by letter, context 64, batch 12, 2,000 steps, float32, AdamW with warmup and a cosine. The
last tenth of the text is held out. Recurrent models carry their state as in stages/pretrain.py.
The reference is GPT-2 from torch.nn (4 layers, 4 heads, width 128, GELU, LayerNorm, learned
positions, tied head) at nanoGPT's learning rate. Each of ours tries the same rates for 300 steps;
the last fiftieth of the training text, which those steps do not read, decides.
https://github.com/karpathy/nanoGPT, README, "I only have a macbook".
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.report import write_rows
from crawl2cart.lm.formats.save import MODELS
from crawl2cart.lm.models.init import initialise, pad_vocab
from crawl2cart.lm.training.data import batch, carry_state, eval_batches
from crawl2cart.lm.training.losses import IGNORE
from crawl2cart.lm.training.optim import adamw, learning_rate

CONTEXT, ROWS, SEED = 64, 12, 1337
RATES, TRIAL_SHARE = (0.001, 0.003, 0.01), 0.15
RECURRENT = {"hidden_size": 256, "num_layers": 2, "dropout": 0.0}
SIZES = {
    "mlp": {"context_size": 16, "embedding_size": 32, "hidden_size": 512},
    "rnn": RECURRENT,
    "lstm": RECURRENT,
    "gru": RECURRENT,
    # As deep and wide as the reference. Two of four experts do as much arithmetic as its layer.
    "gpt_oss": {
        "num_layers": 4,
        "hidden_size": 128,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 32,
        "intermediate_size": 128,
        "num_experts": 4,
        "experts_per_token": 2,
        "sliding_window": 32,
        "max_position_embeddings": 4096,
        "rope_factor": 1.0,
        "router_aux_loss_coef": 0.01,
        "router_z_loss_coef": 0.0,
    },
}


class Gpt2(nn.Module):
    def __init__(self, vocabulary: int, width: int = 128, layers: int = 4, heads: int = 4):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.empty(CONTEXT, width).normal_(0, 0.02))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith(("out_proj.weight", "linear2.weight"))
                nn.init.normal_(parameter, 0, 0.02 / (2 * layers) ** 0.5 if deep else 0.02)

    def loss(self, tokens: Tensor, targets: Tensor, state: None = None) -> tuple[Tensor, None]:
        x = self.embedding(tokens) + self.position[: tokens.size(1)]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.size(1))
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return F.cross_entropy(
            F.linear(self.norm(x), self.embedding.weight).flatten(0, 1),
            targets.flatten(),
            ignore_index=IGNORE,
        ), None


@torch.no_grad()
def validation(model: nn.Module, text: np.ndarray) -> float:
    """Return mean nats per letter over the whole text, each predicted once."""
    nats, state = 0.0, None
    for inputs, targets in eval_batches(text, 64, CONTEXT):
        loss, state = model.loss(inputs, targets, state)
        nats += loss.item() * int((targets != IGNORE).sum())
    return nats / len(text)


class Run:
    """One model in training, step by step: models take turns, so a busy machine slows all alike."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, peak: float):
        self.model, self.optimizer, self.peak = model, optimizer, peak
        self.state, self.seconds = None, 0.0

    def step(self, text: np.ndarray, step: int, steps: int) -> None:
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, self.peak, 0.05, 0.1)
        loss, self.state = self.model.loss(
            *batch(text, step, ROWS, CONTEXT, SEED), carry_state(self.state, step, slice(0, ROWS))
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds += time.perf_counter() - started


def train(runs: Sequence[Run], text: np.ndarray, steps: int) -> None:
    for step in range(steps):
        for run in runs:
            run.step(text, step, steps)


def reference(vocabulary: int) -> Run:
    torch.manual_seed(SEED)
    model = Gpt2(pad_vocab(vocabulary))
    return Run(
        model,
        torch.optim.AdamW(model.parameters(), 0.0, (0.9, 0.99), weight_decay=0.1, fused=True),
        1e-3,
    )


def ours(name: str, vocabulary: int, peak: float) -> Run:
    model = initialise(MODELS[name](SIZES[name], vocabulary), SEED)
    return Run(model, adamw(model, 0.1, 0.9, 0.99), peak)


def best_rate(name: str, vocabulary: int, text: np.ndarray, steps: int) -> float:
    """Return the rate that does best on the end of the text after so many steps before it."""
    judged = len(text) // 50
    runs = [ours(name, vocabulary, rate) for rate in RATES]
    train(runs, text[:-judged], steps)
    return min(runs, key=lambda run: validation(run.model, text[-judged:])).peak


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shakespeare", description=__doc__.splitlines()[0]
    )
    parser.add_argument("text", help="a text file, such as ../shared/data/text/tinyshakespeare.txt")
    parser.add_argument("--steps", type=int, default=2000, help="steps of each model (%(default)s)")
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(SIZES),
        choices=SIZES,
        metavar="model",
        help="of ours (all)",
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    letters, numbers = np.unique(list(Path(arguments.text).read_text()), return_inverse=True)
    vocabulary, held_out = len(letters), len(numbers) // 10
    text = numbers.astype(np.uint16)
    train_text, val_text = text[:-held_out], text[-held_out:]

    runs = {"gpt2_torch": reference(vocabulary)}
    for name in arguments.models:
        peak = best_rate(name, vocabulary, train_text, max(1, round(TRIAL_SHARE * arguments.steps)))
        runs[name] = ours(name, vocabulary, peak)
        print(f"{name}: learning rate {peak}", flush=True)
    train(list(runs.values()), train_text, arguments.steps)
    results = {
        name: {
            "val_nats": validation(run.model, val_text),
            "learning_rate": run.peak,
            "seconds": run.seconds,
            "milliseconds_per_step": 1000 * run.seconds / arguments.steps,
            "times_reference": runs["gpt2_torch"].seconds / run.seconds,
            "parameters": sum(p.numel() for p in run.model.parameters()),
        }
        for name, run in runs.items()
    }
    for name, row in results.items():
        print(name, row)
    write_rows("shakespeare", results)


if __name__ == "__main__":
    main()
