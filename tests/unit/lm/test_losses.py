"""Losses against torch's, transformers' and hand calculations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers.models.gpt_oss.modeling_gpt_oss import load_balancing_loss_func

from crawl2cart.lm.models.gpt_oss import rms_norm
from crawl2cart.lm.training import losses
from crawl2cart.lm.training.losses import (
    IGNORE,
    balance,
    bits_per_byte,
    cross_entropy,
    linear_cross_entropy,
    z_loss,
)
from tests.small_models import make, shaken, some_tokens


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 2500), st.integers(2, 5), st.booleans(), st.integers(0, 999))
def test_chunked_cross_entropy_equals_torch_s(length, ignored, weighted, seed):
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(length, 12, generator=random, requires_grad=True)
    weight = torch.randn(50, 12, generator=random, requires_grad=True)
    targets = torch.randint(0, 50, (length,), generator=random)
    targets[1::ignored] = IGNORE
    importance = torch.rand(length, generator=random) + 0.1 if weighted else None
    nats = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    share = (targets != IGNORE) * (1.0 if importance is None else importance)
    plain = 3 * (nats * share).sum() / share.sum()
    ours = 3 * linear_cross_entropy(hidden, weight, targets, importance)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(3 * cross_entropy(hidden @ weight.T, targets, importance), plain)
    gradients = [torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, plain)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_no_logits_are_made_where_nothing_is_learnt(monkeypatch):
    targets = torch.full((5000,), IGNORE)
    targets[::2] = 3
    rows, softmax = [], torch.Tensor.log_softmax

    def counting(logits, *rest, **options):
        rows.append(len(logits))
        return softmax(logits, *rest, **options)

    monkeypatch.setattr(torch.Tensor, "log_softmax", counting)
    linear_cross_entropy(torch.randn(5000, 4), torch.randn(8, 4), targets)
    assert rows == [1024, 1024, 452]  # of 2,500, never more than a chunk at once


def test_the_gpu_s_slope_is_the_cpu_s():
    random = torch.Generator().manual_seed(4)
    logits = torch.randn(9, 30, generator=random)
    target = torch.randint(0, 30, (9, 1), generator=random)
    ours = losses.nats_and_slope_of_pass(logits, target)
    torch.testing.assert_close(ours, losses.nats_and_slope(logits, target))


def test_cross_entropy_of_nothing_is_zero():
    hidden, weight = (torch.randn(size, 3, requires_grad=True) for size in (4, 8))
    ignored = torch.full((4,), IGNORE)
    loss = linear_cross_entropy(hidden, weight, ignored)
    loss.backward()
    assert loss.item() == cross_entropy(hidden @ weight.T, ignored).item() == 0
    assert (hidden.grad == 0).all()


@pytest.mark.parametrize("shape", [(3, 7, 48), (5, 48)])
def test_the_norm_is_torch_s_with_its_gradients(shape):
    torch.manual_seed(14)
    x, weight = (torch.randn(size) + 1 for size in (shape, shape[-1:]))
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in (x, weight)] for _ in range(2))
    result, expected = rms_norm(*ours, eps=1e-3), F.rms_norm(theirs[0], shape[-1:], theirs[1], 1e-3)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    pull = torch.randn(shape)
    for a, b in zip(
        torch.autograd.grad(result, ours, pull),
        torch.autograd.grad(expected, theirs, pull),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_balance_is_transformers_auxiliary_loss_over_k():
    logits = torch.randn(4, 500, 8, generator=torch.Generator().manual_seed(8))
    theirs = sum(load_balancing_loss_func((row,), 8, 3).item() for row in logits) / 4
    chosen = logits.topk(3).indices
    assert balance(logits, chosen).item() == pytest.approx(theirs / 3, rel=1e-5)


def test_z_loss_is_the_mean_square_of_log_sum_exp():
    logits = torch.randn(4, 50, 8, generator=torch.Generator().manual_seed(8))
    rows = logits.flatten(0, 1).tolist()
    by_hand = sum(math.log(sum(math.exp(x) for x in row)) ** 2 for row in rows) / 200
    assert z_loss(logits).item() == pytest.approx(by_hand, rel=1e-5)


def test_a_mean_over_no_tokens_is_refused():
    nothing = torch.zeros(2, 0, 8)
    with pytest.raises(ValueError, match="no tokens"):
        z_loss(nothing)
    with pytest.raises(ValueError, match="no tokens"):
        balance(nothing, nothing[..., :3].long())


@pytest.mark.parametrize("which", ["router_aux_loss_coef", "router_z_loss_coef"])
def test_the_routers_losses_change_the_gradient_and_not_the_loss(which):
    tokens, targets = some_tokens(2, 20), some_tokens(2, 20, seed=9)
    gradients, values = [], []
    for weight in (0.0, 1.0):
        model = shaken(make("gpt_oss", **{which: weight}))
        loss, _ = model.loss(tokens, targets)
        loss.backward()
        values.append(loss.item())
        gradients.append(model.blocks[0].router.grad)
    assert values[0] == values[1]
    assert not torch.allclose(*gradients)


def test_bits_per_byte_of_a_fair_coin():
    assert bits_per_byte(nats=800 * math.log(2), text_bytes=100) == pytest.approx(8)
    with pytest.raises(ValueError, match="0 bytes"):
        bits_per_byte(1.0, 0)
