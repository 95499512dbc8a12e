"""A layer of experts: a router sends each token to K of E small networks.

Source of the equations: https://github.com/openai/gpt-oss, gpt_oss/torch/model.py. Weights stand as (E, in, out), which is how
Hugging Face stores them and what grouped products take.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

GAIN, LIMIT = 1.702, 7.0  # of the clamped SwiGLU


def route(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, D) -> router logits (N, E), chosen experts (N, k), their shares (N, k): softmax over the chosen only."""
    logits = F.linear(x, weight, bias)
    best, chosen = logits.topk(k)
    return logits, chosen, best.softmax(-1)


def swiglu(x: Tensor) -> Tensor:
    """(…, 2I) -> (…, I). Gates stand at even places, what they gate at odd ones. The gate has no lower clamp."""
    gate, up = (
        x.unflatten(-1, (-1, 2)).movedim(-1, 0).contiguous().unbind()
    )  # each whole: strided ones take twice the time
    gate, up = (
        F.hardtanh(gate, -math.inf, LIMIT),
        F.hardtanh(up, -LIMIT, LIMIT),
    )  # clamp, whose gradient is five times as fast
    return gate * torch.sigmoid(GAIN * gate) * (up + 1)


class Reorder(torch.autograd.Function):
    """Copies each row of x (N, D) k times and puts the copies in an order, whose inverse undoes it. The backward pass undoes it
    and adds the copies, where indexing's own would add row by row."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (inverse,) = ctx.saved_tensors
        return sum_of(gradient.index_select(0, inverse).unflatten(0, (-1, ctx.k))), None, None, None


def sum_of(parts: Tensor) -> Tensor:
    """(N, k, D) -> (N, D). `sum` over a few takes ten times as long."""
    return sum(parts.unbind(1))


def products(x: Tensor, weight: Tensor, bias: Tensor, counts: Tensor) -> Tensor:
    """x (N·k, in) sorted by expert, weight (E, in, out), bias (E, out), counts (E,) rows of each -> (N·k, out)."""
    if x.is_cuda:
        return grouped(x, weight.to(x.dtype), bias.to(x.dtype), counts.cumsum(0))
    # On a CPU, one product an expert takes 27 ms (forward and backward, 4,096 tokens, width 256, 2 of 4 experts of 128),
    # grouped_mm 33 ms, all experts for all tokens 51 ms.
    return product_each(x.split(counts.tolist()), weight.unbind(), bias.unbind())


def grouped(x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor) -> Tensor:
    """`products` in one kernel, and biases by a product with 0 and 1, whose gradient is one again and no sum row by row.

    ends: (E,) where the rows of each expert end.
    """
    row = torch.arange(len(x), device=x.device)[:, None]
    starts = F.pad(ends[:-1], (1, 0))
    own = ((row >= starts) & (row < ends)).to(x.dtype)  # (N·k, E)
    return torch.addmm(F.grouped_mm(x, weight, offs=ends.int()), own, bias)


def product_each(
    rows: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """Rows of each expert by its weight, one below the other."""
    return torch.cat([torch.addmm(b, x, w) for x, w, b in zip(rows, weights, biases, strict=True)])


def experts(
    x: Tensor,
    chosen: Tensor,
    share: Tensor,
    gate_up: Tensor,
    gate_up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
) -> Tensor:
    """Σ_k share_k · expert_k(x). x (N, D), chosen and share (N, k), gate_up (E, D, 2I), down (E, I, D) -> (N, D)."""
    N, k = chosen.shape
    if x.is_cuda and torch.is_autocast_enabled("cuda"):  # which does not know grouped products
        x = x.to(torch.get_autocast_dtype("cuda"))
    if len(gate_up) == 1:  # a dense layer: one expert takes all, and its share is 1
        return product_each([swiglu(product_each([x], gate_up, gate_up_bias))], down, down_bias)
    if (
        N == 1 and not x.is_cuda
    ):  # decoding of one row: nothing to sort, and no other expert to pass by
        own = [
            [tensor[number] for number in chosen[0].tolist()]
            for tensor in (gate_up, gate_up_bias, down, down_bias)
        ]
        hidden = swiglu(product_each([x] * k, *own[:2]))
        return share.to(hidden.dtype) @ product_each(hidden.split(1), *own[2:])
    order = chosen.flatten().argsort(stable=True)
    counts = (chosen.flatten()[:, None] == torch.arange(len(gate_up), device=x.device)).sum(
        0
    )  # bincount could not be compiled
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(N * k, device=order.device))
    hidden = swiglu(products(Reorder.apply(x, order, inverse, k), gate_up, gate_up_bias, counts))
    out = Reorder.apply(products(hidden, down, down_bias, counts), inverse, order, 1).view(N, k, -1)
    return sum_of(out * share[..., None].to(out.dtype))
