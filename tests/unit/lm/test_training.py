"""Optimizers against torch's, the schedules, and the order in which tokens are read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crawl2cart.lm.formats.save import MODELS
from crawl2cart.lm.training.data import STEPS_CARRIED, batch, carry_state, eval_batches
from crawl2cart.lm.training.losses import IGNORE
from crawl2cart.lm.training.optim import Muon, adamw, check_covered, learning_rate, muon_and_adamw
from tests.small_models import make


@pytest.mark.parametrize("name", MODELS)
def test_weight_decay_is_for_matrices_alone(name):
    model = make(name)
    optimizer = adamw(model, 0.1, 0.9, 0.95)
    check_covered(model, [optimizer])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    words = ("bias", "norm", "sinks", "embedding")
    for parameter in optimizer.param_groups[0]["params"]:
        assert not any(word in names[id(parameter)] for word in words)


def test_muon_takes_the_inner_matrices_and_adamw_the_rest():
    model = make("gpt_oss")
    muon, rest = muon_and_adamw(model, 0.1, 0.9, 0.95)
    check_covered(model, [muon, rest])
    inner = {id(parameter) for group in muon.param_groups for parameter in group["params"]}
    assert {id(block.gate_up) for block in model.blocks} < inner
    assert not inner & {id(model.head), id(model.embedding), id(model.blocks[0].sinks)}
    with pytest.raises(AssertionError, match="no optimizer group or in two"):
        check_covered(model, [muon])
    with pytest.raises(AssertionError, match="no optimizer group or in two"):
        check_covered(model, [muon, muon, rest])


def test_muon_is_torch_s_and_takes_each_expert_as_a_matrix():
    torch.manual_seed(13)
    start, pull = torch.randn(3, 12, 20), torch.randn(3, 12, 20)
    together = nn.Parameter(start.clone())
    single = [nn.Parameter(matrix.clone()) for matrix in start]
    ours = Muon([together], 0.1)
    theirs = torch.optim.Muon(single, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    ours.param_groups[0]["lr"] = 0.02
    for _ in range(3):
        together.grad = pull * together.detach()
        for number, matrix in enumerate(single):
            matrix.grad = pull[number] * matrix.detach()
        ours.step()
        theirs.step()
    expected = torch.stack(single).detach()
    torch.testing.assert_close(together.detach(), expected, rtol=0, atol=2e-3)  # bfloat16 steps


def test_cosine_rises_in_a_line_and_falls():
    rates = [learning_rate(step, 100, 2.0, 0.1, 0.25) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert rates[54] + rates[55] == pytest.approx(2.5, abs=0.02)  # halfway between 2 and 0.5
    assert rates[-1] == pytest.approx(0.5)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_warmup_stable_decay_stays_and_falls():
    rates = [learning_rate(step, 100, 2.0, 0.1, 0.25, "wsd") for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10:80] == [2.0] * 70
    assert rates[90] == pytest.approx(2 - 1.5 * 10 / 19)
    assert rates[-1] == pytest.approx(0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 25), st.integers(0, 99))
def test_rows_go_on_where_they_stopped(rows, context, seed):
    """And every token is a target once before one is twice."""
    tokens = np.arange(rows * context * 4, dtype=np.uint16)
    steps = [batch(tokens, step, rows, context, seed) for step in range(5)]
    for (inputs, targets), (following, _) in zip(steps, steps[1:], strict=False):
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert torch.equal(targets[:, -1], following[:, 0])
    once = torch.cat([targets.flatten() for _, targets in steps[:4]])
    assert once.sort().values.tolist() == tokens.tolist()


def test_each_row_starts_anew_in_its_turn_however_rows_are_split():
    state = torch.ones(40, 2, 3)
    for step in range(STEPS_CARRIED + 1):
        whole = carry_state(state, step, slice(0, 40))
        split = [carry_state(state[part], step, part) for part in (slice(0, 10), slice(10, 40))]
        assert torch.equal(whole, torch.cat(split))
        fresh = [row for row in range(40) if (row + step) % STEPS_CARRIED == 0]
        assert (whole[:, 0, 0] == 0).nonzero().flatten().tolist() == fresh
    assert carry_state(None, 3, slice(0, 4)) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 997), st.integers(1, 70), st.integers(1, 2000))
def test_validation_counts_every_token_once(length, rows, context):
    tokens = np.arange(length, dtype=np.uint16)
    batches = list(eval_batches(tokens, min(rows, length), context))
    targets = torch.cat([targets.flatten() for _, targets in batches])
    assert targets[targets != IGNORE].sort().values.tolist() == list(range(length))
    for inputs, targets in batches:
        assert ((targets == IGNORE) | (targets == (inputs + 1) % length)).all()
