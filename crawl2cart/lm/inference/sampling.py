"""From a hidden state to the next token: the head as decoding reads it, temperature, top-k, top-p."""

import torch
from torch import Tensor, nn


def sample_token(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float, draw: Tensor
) -> Tensor:
    """One id for each row of logits (B, V); draw (B,) in [0, 1) decides. temperature 0: the likeliest.

    top_k keeps the k likeliest; top_p the likeliest that together have at least that probability (Holtzman et al. 2019,
    https://arxiv.org/abs/1904.09751).
    """
    logits = logits.float()  # argmax too: four times as fast as in bfloat16
    if temperature == 0:
        return logits.argmax(-1)
    p, ids = (logits / temperature).softmax(-1).sort(stable=True, descending=True)
    if top_k is not None:
        p[:, top_k:] = 0
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0)
    reached = p.cumsum(-1)
    place = (reached <= draw[:, None] * reached[:, -1:]).sum(-1)
    last = (p > 0).sum(-1) - 1  # rounding may leave the draw a hair above the sum
    return ids.gather(1, torch.minimum(place, last)[:, None]).squeeze(1)


def head_of(model: nn.Module) -> Tensor:
    """What makes logits of a hidden state, (D, vocabulary), without the rows that pad the table; for a CPU laid out so that the product
    with one row in float32 takes about three quarters of the time."""
    head = model.head[: model.vocabulary].T
    return head.contiguous() if head.device.type == "cpu" else head
