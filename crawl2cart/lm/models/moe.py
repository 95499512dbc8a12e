"""A layer of experts: a router sends each token to K of E small networks.

Source of the equations: https://github.com/openai/gpt-oss, gpt_oss/torch/model.py. Weights are
(E, in, out), as Hugging Face stores them and as grouped matrix products take them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def route(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the router's logits (N, E), chosen experts (N, k) and shares (N, k) for x (N, D).

    Shares are a softmax over the chosen experts only.
    """
    logits = F.linear(x, weight, bias)
    best, chosen = logits.topk(k)
    return logits, chosen, best.softmax(-1)


def swiglu(x: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """Return gate · σ(alpha · gate) · (up + 1) of x (…, 2I), (…, I).

    Gates stand at even places, `up` at odd ones. Both are clamped to at most limit, `up` also to at
    least -limit.
    """
    # Each contiguous: products of strided tensors take twice the time.
    gate, up = x.unflatten(-1, (-1, 2)).movedim(-1, 0).contiguous().unbind()
    # hardtanh is clamp with a gradient that is five times as fast.
    gate, up = F.hardtanh(gate, -math.inf, limit), F.hardtanh(up, -limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


class Reorder(torch.autograd.Function):
    """Copy each row of x (N, D) k times and put the copies in an order, whose inverse undoes it.

    The backward pass undoes the order and adds the copies; indexing's own would add row by row.
    """

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        copies = gradient.index_select(0, inverse).unflatten(0, (-1, ctx.k))
        return sum_of(copies), None, None, None


def sum_of(parts: Tensor) -> Tensor:
    """Sum over the second dimension of (N, k, D). `Tensor.sum` takes ten times as long."""
    return sum(parts.unbind(1))


def products(x: Tensor, weight: Tensor, bias: Tensor, counts: Tensor) -> Tensor:
    """Multiply the rows of each expert by its weight.

    x (N·k, in) sorted by expert, weight (E, in, out), bias (E, out), counts (E,) rows of each
    -> (N·k, out).
    """
    if x.is_cuda:
        return grouped(x, weight.to(x.dtype), bias.to(x.dtype), counts.cumsum(0))
    # On a CPU one product an expert is faster than grouped_mm (27 ms to 33 ms for 4,096 tokens).
    return product_each(x.split(counts.tolist()), weight.unbind(), bias.unbind())


def grouped(x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor) -> Tensor:
    """Do what `products` does in one kernel. ends (E,): where the rows of each expert end.

    Biases come by a product with 0 and 1: its gradient is a product again, not a sum row by row.
    """
    row = torch.arange(len(x), device=x.device)[:, None]
    starts = F.pad(ends[:-1], (1, 0))
    own = ((row >= starts) & (row < ends)).to(x.dtype)  # (N·k, E)
    return torch.addmm(F.grouped_mm(x, weight, offs=ends.int()), own, bias)


def product_each(
    rows: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """Multiply each expert's rows by its weight, and stack the results."""
    return torch.cat([torch.addmm(b, x, w) for x, w, b in zip(rows, weights, biases, strict=True)])


def experts(
    x: Tensor,
    chosen: Tensor,
    share: Tensor,
    gate_up: Tensor,
    gate_up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    alpha: float = 1.702,
    limit: float = 7.0,
) -> Tensor:
    """Return Σ_k share_k · expert_k(x) (N, D), where an expert is down(swiglu(gate_up(x))).

    x (N, D), chosen and share (N, k), gate_up (E, D, 2I), down (E, I, D). alpha, limit: swiglu's.
    """
    N, k = chosen.shape
    if x.is_cuda and torch.is_autocast_enabled("cuda"):  # autocast does not know grouped products
        x = x.to(torch.get_autocast_dtype("cuda"))
    if len(gate_up) == 1:  # a dense layer: one expert takes all, with share 1
        hidden = swiglu(product_each([x], gate_up, gate_up_bias), alpha, limit)
        return product_each([hidden], down, down_bias)
    if N == 1 and not x.is_cuda:  # decoding one row: nothing to sort
        weights = (gate_up, gate_up_bias, down, down_bias)
        own = [[weight[expert] for expert in chosen[0].tolist()] for weight in weights]
        hidden = swiglu(product_each([x] * k, *own[:2]), alpha, limit)
        return share.to(hidden.dtype) @ product_each(hidden.split(1), *own[2:])
    order = chosen.flatten().argsort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(N * k, device=order.device))
    # bincount could not be compiled.
    counts = (chosen.flatten()[:, None] == torch.arange(len(gate_up), device=x.device)).sum(0)
    sorted_rows = Reorder.apply(x, order, inverse, k)
    hidden = swiglu(products(sorted_rows, gate_up, gate_up_bias, counts), alpha, limit)
    out = Reorder.apply(products(hidden, down, down_bias, counts), inverse, order, 1)
    return sum_of(out.view(N, k, -1) * share[..., None].to(out.dtype))
