"""The preference losses and their gradients against TRL's, the KL divergence against torch's."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from crawl2cart.preferences.losses import LOSSES, PER_TOKEN, mean_divergence, preference_loss


def trl_loss(
    kind: str, beta: float, policy: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """TRL's DPO loss of token log-probabilities (2 B, T), chosen rows first; mask (2 B, T + 1)."""
    from trl import DPOTrainer

    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    chosen, rejected = reference.sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    outputs = SimpleNamespace(
        log_probs=policy,
        entropy=torch.zeros_like(policy),
        mean_logits=torch.zeros_like(policy),
        is_top1=torch.zeros_like(policy, dtype=torch.bool),
    )
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)


@pytest.mark.parametrize("beta", [0.05, 0.5])
@pytest.mark.parametrize("kind", LOSSES)
def test_each_loss_and_its_gradient_equal_trls(kind, beta):
    generator = torch.Generator().manual_seed(3)
    pairs, length = 6, 9
    tokens = torch.randint(1, length + 1, (2 * pairs, 1), generator=generator)
    completion = (torch.arange(length) < tokens).long()
    mask = torch.cat([torch.zeros(2 * pairs, 1, dtype=torch.long), completion], 1)  # prompt first
    policy, reference = (
        -3 * torch.rand(2 * pairs, length, generator=generator, dtype=torch.float64) * completion
        for _ in range(2)
    )
    policy.requires_grad_()
    theirs = trl_loss(kind, beta, policy, reference, mask)
    sums = (*policy.sum(1).chunk(2), *reference.sum(1).chunk(2))
    ours = preference_loss(*sums, beta, kind, *tokens.squeeze(1).chunk(2))
    assert ours.shape == (pairs,)
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-12, atol=0)
    gradients = [
        torch.autograd.grad(loss, policy, retain_graph=True)[0] for loss in (ours.mean(), theirs)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("sigmoid", math.log(2)), ("sigmoid_norm", math.log(2)), ("apo_zero", 1.0), ("ipo", 25.0)],
)
def test_the_loss_of_the_reference_is_the_papers(kind, value):
    logp, tokens = torch.full((2,), -5.0), torch.full((2,), 5)
    loss = preference_loss(logp, logp, logp, logp, 0.1, kind, tokens, tokens)
    assert loss.tolist() == pytest.approx([value] * 2)


@pytest.mark.parametrize("kind", LOSSES)
def test_ipo_alone_has_a_best_margin(kind):
    margins = torch.linspace(-4, 40, 200, dtype=torch.float64)
    zero, one = torch.zeros_like(margins), torch.ones_like(margins)
    losses = preference_loss(margins, zero, zero, zero, 0.5, kind, one, one)
    assert bool((losses.diff() < 0).all()) == (kind != "ipo")


def test_what_is_missing_or_unknown_is_named():
    zero = torch.zeros(2)
    with pytest.raises(ValueError, match="hinge"):
        preference_loss(zero, zero, zero, zero, 0.1, "hinge")
    for kind in PER_TOKEN:
        with pytest.raises(ValueError, match="tokens"):
            preference_loss(zero, zero, zero, zero, 0.1, kind)


def test_the_divergence_equals_torchs_over_counted_tokens():
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 2, 5, 11, generator=generator)
    counted = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 0, 0, 0]]).bool()
    each = kl_divergence(Categorical(logits=logits), Categorical(logits=reference))
    expected = (each[0, 1] + each[0, 2] + each[1, 0]) / 3  # position t predicts token t + 1
    divergence = mean_divergence(logits, reference, counted).item()
    assert divergence == pytest.approx(expected.item(), rel=1e-5)
    assert mean_divergence(logits, logits, counted) == 0
    with pytest.raises(ValueError, match="token"):
        mean_divergence(logits, reference, torch.zeros_like(counted))
