"""Cross-entropy without all logits at once, bits per byte, and the losses of a router."""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# A target of this value does not count. The value is the one of torch.nn.functional.cross_entropy.
IGNORE = -100
# Tokens whose logits stand at once. On 2 cores with 4,160 ids, 1,024 is the fastest of 256 … 4,096.
CHUNK = 1024
# A GPU wants fewer and larger products; 8,192 rows of 50,304 logits are 0.8 GB in bfloat16.
GPU_CHUNK = 8192


def nats_and_slope(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log p of each target (tokens, 1) in float32, and softmax minus one-hot (tokens, V).

    logits (tokens, V), target (tokens, 1).
    """
    log_p = logits.log_softmax(-1, dtype=torch.float32)
    nats = -log_p.gather(1, target)
    minus_one = log_p.new_full(target.shape, -1.0)
    return nats, log_p.exp_().scatter_add_(1, target, minus_one).to(logits.dtype)


def nats_and_slope_of_pass(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Do what `nats_and_slope` does without scattering, which a compiler fuses into one pass."""
    log_p = logits.log_softmax(-1, dtype=torch.float32)
    hit = torch.arange(logits.size(1), device=logits.device) == target
    return -log_p.gather(1, target), (log_p.exp() - hit.float()).to(logits.dtype)


@cache
def compiled_slope() -> Callable:
    return torch.compile(nats_and_slope_of_pass)


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T`, chunk by chunk, only where there is a target.

    The gradient is known as soon as the logits are (softmax minus one-hot). So each chunk leaves
    its part of both gradients behind, and its logits are freed.
    Hsu et al. 2024, https://arxiv.org/abs/2410.10989.
    """

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, targets: Tensor, importance: Tensor | None, learn: bool
    ) -> Tensor:
        counted = (targets != IGNORE).nonzero().squeeze(1)
        if importance is None:
            share = torch.ones(len(counted), device=hidden.device)
        else:
            share = importance[counted].float()
        share = (share / share.sum().clamp(min=1e-9))[:, None]
        nats = torch.zeros((), device=hidden.device)
        d_hidden = torch.zeros_like(hidden) if learn else None
        d_weight = torch.zeros_like(weight) if learn else None
        size, slope_of = (CHUNK, nats_and_slope)
        if hidden.is_cuda:
            size, slope_of = (GPU_CHUNK, compiled_slope())
        d_chunks = []
        for rows, part in zip(counted.split(size), share.split(size), strict=True):
            x = hidden[rows]
            chunk_nats, slope = slope_of(x @ weight.T, targets[rows, None])
            nats += (chunk_nats * part).sum()
            if learn:
                d_chunks.append((slope @ weight * part).to(hidden.dtype))
                d_weight += slope.T @ (x * part).to(x.dtype)
        if d_chunks:
            d_hidden[counted] = torch.cat(d_chunks)
        ctx.save_for_backward(d_hidden, d_weight)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx, scale: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * scale, d_weight * scale, None, None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, importance: Tensor | None = None
) -> Tensor:
    """Return mean nats per target under logits `hidden @ weight.T`, without keeping the logits.

    hidden (…, D), weight (V, D), targets (…) ids or IGNORE. importance (…): weight of each target
    in the mean; None: all the same. 0 if every target is IGNORE.
    """
    if importance is not None:
        importance = importance.flatten()
    learn = torch.is_grad_enabled()
    return LinearCrossEntropy.apply(
        hidden.flatten(0, -2), weight, targets.flatten(), importance, learn
    )


def cross_entropy(logits: Tensor, targets: Tensor, importance: Tensor | None = None) -> Tensor:
    """Return mean nats per target under logits (…, V); otherwise as `linear_cross_entropy`."""
    nats = F.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORE, reduction="none"
    )
    weight = (targets.flatten() != IGNORE).float()
    if importance is not None:
        weight = weight * importance.flatten()
    return (nats * weight).sum() / weight.sum().clamp(min=1e-9)


def balance(router_logits: Tensor, chosen: Tensor) -> Tensor:
    """Return how unevenly experts are used: 1 if all get the same share, E / K if only K are used.

    router_logits (B, T, E), chosen (B, T, K) experts. Raises ValueError without tokens.

    E · Σ_e (share of choices) · (mean probability): Fedus et al. 2021, arXiv 2101.03961, eq. 4,
    divided by K. A mean over rows (DeepSeek-V2, arXiv 2405.04434, section 2.2.3), so that it does
    not depend on how a step's rows are split.
    """
    check_tokens(router_logits)
    experts = router_logits.size(-1)
    share = F.one_hot(chosen.flatten(1), experts).float().mean(1)  # (B, E)
    probability = router_logits.softmax(-1, dtype=torch.float32).mean(1)  # (B, E)
    return experts * (share * probability).sum(-1).mean()


def z_loss(router_logits: Tensor) -> Tensor:
    """Return the mean square of log Σ exp of logits (B, T, E), which keeps them small.

    Raises ValueError without tokens. Zoph et al. 2022, https://arxiv.org/abs/2202.08906, eq. 5.
    """
    check_tokens(router_logits)
    return router_logits.float().logsumexp(-1).square().mean()


def check_tokens(x: Tensor) -> None:
    if not x.numel():
        raise ValueError(f"There are no tokens to take a mean over: shape {tuple(x.shape)}.")


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Return the mean bits that a model needs per byte of text.

    nats: summed negative log-likelihood of all tokens. text_bytes: bytes of the text itself, not of
    decoded tokens (half a character decodes to U+FFFD, three bytes). Raises ValueError if it is
    below 1.
    """
    if text_bytes < 1:
        raise ValueError(f"A text of {text_bytes} bytes has no bits per byte.")
    return nats / math.log(2) / text_bytes
