"""Count floating-point operations of training, and measure what a machine can do."""

import time
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from crawl2cart.core.memory import peak_memory_bytes
from crawl2cart.lm.models.init import param_spec

PRODUCT_SIZE, PRODUCTS = 2048, 4  # of the matrix products that `product_rate` measures


def matrix_parameters(model: nn.Module) -> float:
    """Return how many weights multiply a token: matrices, with the head and its own experts."""
    used = {"gate_up", "down"} & set(model.PARAMS)
    share = model.config["experts_per_token"] / model.config["num_experts"] if used else 1.0
    return sum(
        parameter.numel() * (share if name.rpartition(".")[2] in used else 1.0)
        for name, parameter in model.named_parameters()
        if param_spec(model, name).decay
    )


def flops_per_token(model: nn.Module, context: int) -> float:
    """Return the floating-point operations of one token in training, forward and backward.

    6 for each weight that multiplies it, and 12 · heads · head_dim for each key it sees, which are
    min(context, window) in a layer, not halved for causality. Embedding lookup, norms and
    activations do not count. Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B.
    """
    attention = 0
    if hasattr(model, "blocks"):
        keys = sum(min(context, block.window or context) for block in model.blocks)
        attention = 12 * model.config["num_heads"] * model.config["head_dim"] * keys
    return 6 * matrix_parameters(model) + attention


def flops_of_rows(model: nn.Module, lengths: Sequence[int], prefix: int = 0) -> float:
    """Return the floating-point operations of training on rows behind a prefix that they share.

    lengths: tokens of each row. prefix: tokens of the prefix. Counted as in `flops_per_token`; a
    row's tokens see the prefix as well. The prefix is read once, without a backward pass, which is
    two thirds of the work, and without the head.
    """
    reading = prefix * (flops_per_token(model, prefix) / 3 - 2 * model.head.numel())
    return reading + sum(
        rows * length * flops_per_token(model, prefix + length)
        for length, rows in Counter(lengths).items()
    )


def product_rate(kind: str, dtype: torch.dtype) -> float:
    """Return the operations per second of large matrix products on this device: the best of 4."""
    x = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, dtype=dtype, device=kind)
    seconds = []
    for _ in range(PRODUCTS):
        started = time.perf_counter()
        x @ x
        if kind == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * PRODUCT_SIZE**3 / min(seconds)


def peak_memory(kind: str) -> float:
    """Return the most GiB held at once so far: on a GPU by tensors, on a CPU by the process."""
    if kind == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_memory_bytes() / 2**30
