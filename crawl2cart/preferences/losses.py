"""Compute the losses of preference learning from log-probabilities.

The functions are written to be read. Training uses TRL's, and a test shows that both are equal.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LOSSES = ("sigmoid", "apo_zero", "ipo", "sigmoid_norm")


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
    """Return the loss of each pair (B,).

    chosen, rejected, reference_chosen, reference_rejected: log-probabilities of the completions in
    nats, summed over their tokens, (B,). chosen_tokens, rejected_tokens: their lengths in tokens,
    (B,), needed by ipo and sigmoid_norm.

    With h = log π / π_ref of a completion (per token for ipo and sigmoid_norm; numbers: arXiv):

    sigmoid       −log σ(β (h_chosen − h_rejected))     Rafailov et al. 2023, 2305.18290, eq. 7
    apo_zero      1 − σ(β h_chosen) + σ(β h_rejected)   D'Oosterlinck et al. 2024, 2408.06266, eq. 7
    ipo           (h_chosen − h_rejected − 1 / 2β)²     Azar et al. 2023, 2310.12036, eq. 17
    sigmoid_norm  as sigmoid                            Lambert et al. 2024, 2411.15124, eq. 6

    Where the policy is the reference these are ln 2, 1, 1 / 4β² and ln 2. Raises ValueError for
    another kind, and for ipo and sigmoid_norm without counts.
    """
    better, worse = chosen - reference_chosen, rejected - reference_rejected  # (B,) each
    if kind in ("ipo", "sigmoid_norm"):
        if chosen_tokens is None or rejected_tokens is None:
            raise ValueError(f"{kind} is a loss per token: give chosen_tokens and rejected_tokens.")
        better, worse = better / chosen_tokens.clamp(min=1), worse / rejected_tokens.clamp(min=1)
    match kind:
        case "sigmoid" | "sigmoid_norm":
            return -F.logsigmoid(beta * (better - worse))
        case "apo_zero":
            return 1 - torch.sigmoid(beta * better) + torch.sigmoid(beta * worse)
        case "ipo":
            return (better - worse - 1 / (2 * beta)).square()
    raise ValueError(f"no preference loss is called {kind}; there are {', '.join(LOSSES)}")


def mean_divergence(logits: Tensor, reference: Tensor, counted: Tensor) -> Tensor:
    """Return the mean KL(policy ‖ reference) over the counted tokens, in nats per token.

    logits, reference (B, T, V) of the tokens behind each place, counted (B, T) bool. Raises
    ValueError if no token counts.
    """
    if not counted[:, 1:].any():
        raise ValueError("There is no counted token to take a mean over.")
    log_p, log_q = (
        part[:, :-1][counted[:, 1:]].log_softmax(-1, dtype=torch.float32)
        for part in (logits, reference)
    )  # (N, V)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
