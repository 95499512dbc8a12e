"""Define the losses of preference learning as functions of four log-probabilities.

They are written out to be read; training uses TRL's, to which tests hold them equal.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LOSSES = ("sigmoid", "apo_zero", "ipo", "sigmoid_norm")
PER_TOKEN = ("ipo", "sigmoid_norm")


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    kind: str = "sigmoid",
    chosen_tokens: Tensor | None = None,
    rejected_tokens: Tensor | None = None,
) -> Tensor:
    """Return the loss of each pair, (B,).

    chosen, rejected: log-probabilities of the completions under the policy, in nats, summed over
    tokens, (B,); reference_*: under the reference. *_tokens: numbers of tokens, (B,), which ipo and
    sigmoid_norm need. With h = log π/π_ref of a completion, ĥ = h divided by its tokens:

    sigmoid       −log σ(β (h_chosen − h_rejected))
                  Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7
    apo_zero      1 − σ(β h_chosen) + σ(β h_rejected)
                  D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266, eq. 7
    ipo           (ĥ_chosen − ĥ_rejected − 1 / 2β)²
                  Azar et al. 2023, https://arxiv.org/abs/2310.12036, eq. 17
    sigmoid_norm  −log σ(β (ĥ_chosen − ĥ_rejected))
                  Lambert et al. 2024, https://arxiv.org/abs/2411.15124, eq. 6

    Where the policy is the reference they are ln 2, 1, 1 / 4β² and ln 2. Raises ValueError for
    another kind, and for ipo and sigmoid_norm without numbers of tokens.
    """
    if kind not in LOSSES:
        raise ValueError(f"no preference loss is called {kind}; there are {', '.join(LOSSES)}")
    better, worse = chosen - reference_chosen, rejected - reference_rejected  # (B,) each
    if kind in PER_TOKEN:
        if chosen_tokens is None or rejected_tokens is None:
            raise ValueError(f"{kind} needs chosen_tokens and rejected_tokens")
        better, worse = better / chosen_tokens.clamp(min=1), worse / rejected_tokens.clamp(min=1)
    if kind == "apo_zero":
        return 1 - torch.sigmoid(beta * better) + torch.sigmoid(beta * worse)
    if kind == "ipo":
        return (better - worse - 1 / (2 * beta)).square()
    return -F.logsigmoid(beta * (better - worse))


def mean_divergence(logits: Tensor, reference: Tensor, counted: Tensor) -> Tensor:
    """Return the mean KL(policy ‖ reference) of the counted tokens, in nats per token, ().

    logits, reference: (B, T, V), each position's for the next token. counted: (B, T) bool. The
    divergence is exact over the vocabulary. Raises ValueError if no token counts.
    """
    if not counted[:, 1:].any():
        raise ValueError("no token counts, so there is no mean divergence")
    log_p, log_q = (
        part[:, :-1][counted[:, 1:]].log_softmax(-1, dtype=torch.float32)
        for part in (logits, reference)
    )  # (N, V)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
