"""From hidden states to the next token: head, temperature, top-k, top-p."""

import torch
from torch import Tensor, nn


def sample_token(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float, draw: Tensor | None
) -> Tensor:
    """Return one id (B,) for each row of logits (B, V).

    draw (B,) in [0, 1) decides. temperature 0: the likeliest id, without a draw. top_k: only the k
    likeliest. top_p: only the likeliest that together have at least this probability (Holtzman et
    al. 2019, https://arxiv.org/abs/1904.09751).
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
    """Return the matrix (D, vocabulary) that makes logits of hidden states, without padding ids.

    On a CPU it is contiguous: the product with one row takes three quarters of the time.
    """
    head = model.head[: model.vocabulary].T
    return head.contiguous() if head.device.type == "cpu" else head
