"""Cross-entropy without all logits at once, bits per byte, and the balance of experts."""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# A target of this value is not counted; the value is the one torch.nn.functional.cross_entropy uses.
IGNORE = -100
# Tokens whose logits stand at once. On 2 cores with 4,160 ids 1,024 took least time of 256 … 4,096.
CHUNK = 1024
# On a GPU fewer and larger products; 8,192 rows of 50,304 logits are 0.8 GB in bfloat16.
GPU_CHUNK = 8192


def nats_and_slope(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """logits (tokens, V), target (tokens, 1) -> -log p of each target (tokens, 1) in float32, and softmax minus one-hot (tokens, V)."""
    log_p = logits.log_softmax(-1, dtype=torch.float32)
    nats = -log_p.gather(1, target)
    return nats, log_p.exp_().scatter_add_(1, target, log_p.new_full(target.shape, -1.0)).to(
        logits.dtype
    )


def nats_and_slope_of_pass(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`nats_and_slope`, so that a compiler makes one pass of it: nothing is scattered."""
    log_p = logits.log_softmax(-1, dtype=torch.float32)
    hit = torch.arange(logits.size(1), device=logits.device) == target
    return -log_p.gather(1, target), (log_p.exp() - hit.float()).to(logits.dtype)


@cache
def compiled_slope() -> Callable:
    return torch.compile(nats_and_slope_of_pass)


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T` against targets, chunk by chunk, without logits where nothing is learnt.

    The gradient is known as soon as the logits are (softmax minus one-hot), so each chunk leaves its share of both
    gradients behind and its logits are gone. Hsu et al. 2024, https://arxiv.org/abs/2410.10989.
    """

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, targets: Tensor, importance: Tensor | None, learn: bool
    ) -> Tensor:
        learnt = (
            (targets != IGNORE).nonzero().squeeze(1)
        )  # of a dialogue three tokens in four are only read
        share = (
            torch.ones(len(learnt), device=hidden.device)
            if importance is None
            else importance[learnt].float()
        )
        share = (share / share.sum().clamp(min=1e-9))[:, None]
        nats = torch.zeros((), device=hidden.device)
        hidden_gradient = torch.zeros_like(hidden) if learn else None
        weight_gradient = torch.zeros_like(weight) if learn else None
        size, of_chunk = (
            (GPU_CHUNK, compiled_slope()) if hidden.is_cuda else (CHUNK, nats_and_slope)
        )
        found = []
        for rows, part in zip(learnt.split(size), share.split(size), strict=True):
            x = hidden[rows]
            chunk_nats, slope = of_chunk(x @ weight.T, targets[rows, None])
            nats += (chunk_nats * part).sum()
            if learn:
                found.append((slope @ weight * part).to(hidden.dtype))
                weight_gradient += slope.T @ (x * part).to(x.dtype)
        if learn and found:
            hidden_gradient[learnt] = torch.cat(found)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx, scale: Tensor):
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * scale, weight_gradient * scale, None, None, None


def cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, importance: Tensor | None = None
) -> Tensor:
    """Mean nats per target under logits `hidden @ weight.T`.

    hidden (..., D), weight (V, D), targets (...) ids or IGNORE. importance (...): how much each target counts in the mean; None: all
    the same. 0 if every target is ignored.
    """
    return LinearCrossEntropy.apply(
        hidden.flatten(0, -2),
        weight,
        targets.flatten(),
        None if importance is None else importance.flatten(),
        torch.is_grad_enabled(),
    )


def balance(router_logits: Tensor, chosen: Tensor) -> Tensor:
    """How unevenly experts are used: 1 when each gets the same share, up to E / K when the same K get all.

    router_logits (B, T, E), chosen (B, T, K) experts. E · Σ_e (share of choices) · (mean probability over all E);
    Fedus et al. 2021, https://arxiv.org/abs/2101.03961, equation 4, divided by K. Taken of each row and averaged (DeepSeek-V2,
    https://arxiv.org/abs/2405.04434, section 2.2.3), so that it does not depend on how a step's rows are split.
    """
    experts = router_logits.size(-1)
    share = F.one_hot(chosen.flatten(1), experts).float().mean(1)  # (B, E)
    probability = router_logits.softmax(-1, dtype=torch.float32).mean(1)  # (B, E)
    return experts * (share * probability).sum(-1).mean()


def z_loss(router_logits: Tensor) -> Tensor:
    """Mean square of log Σ exp: keeps the router's logits small. Zoph et al. 2022, https://arxiv.org/abs/2202.08906, eq. 5."""
    return router_logits.float().logsumexp(-1).square().mean()


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Mean bits the model needs per byte of text.

    nats: summed negative log-likelihood of all tokens. text_bytes: bytes of the text itself, not of decoded tokens
    (a token that is half a character decodes to U+FFFD and would count three). Raises ValueError if text_bytes < 1.
    """
    if text_bytes < 1:
        raise ValueError(f"bits per byte of a text of {text_bytes} bytes")
    return nats / math.log(2) / text_bytes
