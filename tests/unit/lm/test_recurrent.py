"""The recurrent cells against torch.nn, and their written-out gradients against autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from crawl2cart.lm.models import recurrent
from crawl2cart.lm.models.gru import Gru
from crawl2cart.lm.models.lstm import Lstm
from crawl2cart.lm.models.recurrent import CHUNK, Scan
from crawl2cart.lm.models.rnn import Elman
from tests.small_models import make, shaken, some_tokens

TORCH = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def torch_twin(name: str, layer: nn.Module) -> nn.Module:
    """Return torch.nn's module with the same weights.

    Its second bias is zero but for the GRU's candidate.
    """
    width = layer.input.size(1)
    twin = TORCH[name](width, width).to(layer.input.dtype)
    with torch.no_grad():
        twin.weight_ih_l0.copy_(layer.input)
        twin.weight_hh_l0.copy_(layer.recurrent)
        twin.bias_ih_l0.copy_(layer.bias)
        twin.bias_hh_l0.zero_()
        if name == "gru":
            twin.bias_hh_l0[2 * width :] = layer.recurrent_bias
    return twin


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", TORCH)
def test_a_layer_equals_torch_s_in_outputs_states_and_gradients(name, dtype, tolerance):
    layer = shaken(make(name)).layers[0].to(dtype)
    twin = torch_twin(name, layer)
    steps, batch, width = 21, 5, layer.input.size(1)
    shapes = [(steps, batch, width), *[(batch, width)] * (2 if name == "lstm" else 1)]
    inputs = [torch.randn(shape, dtype=dtype) for shape in shapes]
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in inputs] for _ in range(2))
    results = layer(*ours)
    states = [state[None] for state in theirs[1:]]
    hidden, after = twin(theirs[0], tuple(states) if name == "lstm" else states[0])
    expected = [hidden, *(state[0] for state in (after if name == "lstm" else [after]))]

    # Every output pulls in its own direction.
    pulls = [torch.randn_like(result) for result in results]
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=0, atol=tolerance)
    for outputs in (results, expected):
        torch.autograd.backward(outputs, pulls)
    pairs = [
        *zip(ours, theirs, strict=True),
        (layer.input, twin.weight_ih_l0),
        (layer.recurrent, twin.weight_hh_l0),
        (layer.bias, twin.bias_ih_l0),
    ]
    if name == "gru":
        pairs.append((layer.recurrent_bias, twin.bias_hh_l0))
    for mine, reference in pairs:
        gradient = reference.grad[-len(mine) :] if mine.dim() == 1 else reference.grad
        close = tolerance * gradient.abs().max().item()
        torch.testing.assert_close(mine.grad, gradient, rtol=tolerance, atol=close)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([Elman, Lstm, Gru]),
    st.integers(1, 21),
    st.integers(1, 4),
    st.sampled_from([1, 3, CHUNK, 100]),
    st.integers(0, 99),
)
def test_the_scan_s_gradients_are_autograd_s_in_chunks_of_any_length(
    cell, steps, batch, chunk, seed
):
    random, H = torch.Generator().manual_seed(seed), 5
    shapes = [(steps, batch, cell.gates * H), (cell.gates * H, H), (H,)] + cell.states * [
        (batch, H)
    ]
    inputs = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]

    def autograd(x, u, bias, *state):
        """Run the same forward equations, out of place, one step after the other."""
        product_bias = torch.cat([bias.new_zeros(len(u) - H), bias]) * cell.product_bias
        outputs = []
        for x_t in x:
            state, _ = cell.forward(x_t.clone(), u, product_bias, *state)
            outputs.append(state[0])
        return torch.stack(outputs), *state[1:]

    def scan(x, u, bias, *state):
        return Scan.apply(cell, chunk, x, u, bias if cell.product_bias else None, *state)

    results = []
    for function in (scan, autograd):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        outputs = function(*leaves)
        sum((output.sin() * (2 + i)).sum() for i, output in enumerate(outputs)).backward()
        results.append([*outputs, *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    for ours, reference in zip(*results, strict=False):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-9)


def test_only_whole_chunks_outside_generation_are_compiled(monkeypatch):
    monkeypatch.setattr(recurrent, "compiled", lambda steps: "compiled")
    run = recurrent.run_steps
    assert run(len, CHUNK, True) == "compiled"
    assert run(len, CHUNK - 1, True) is run(len, CHUNK, False) is len
    with torch.inference_mode():
        assert run(len, CHUNK, True) is len


@pytest.mark.parametrize("cell", [Elman, Lstm, Gru])
def test_a_compiler_can_trace_the_steps(cell):
    H = 4
    x, u, bias = torch.randn(2, 2, cell.gates * H), torch.randn(cell.gates * H, H), None
    if cell.product_bias:
        bias = torch.randn(cell.gates * H)
    inputs = (cell, x, u, bias, tuple(torch.zeros(2, H) for _ in range(cell.states)))
    traced = torch.compile(recurrent.forward_steps, backend="aot_eager", fullgraph=True)
    plain = recurrent.forward_steps(*inputs)
    torch.testing.assert_close(traced(*inputs), plain)
    states = tuple(torch.cat([s[None], after]) for s, after in zip(inputs[4], plain, strict=False))
    inputs = (cell, torch.randn(2, 2, H), u, states, plain[cell.states :], inputs[4])
    traced = torch.compile(recurrent.backward_steps, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(*inputs), recurrent.backward_steps(*inputs))


@pytest.mark.parametrize("name", TORCH)
def test_layers_are_stacked_with_norms_and_skips(name):
    model = shaken(make(name, num_layers=3)).double()
    tokens = some_tokens(2, 9)
    x = model.embedding[tokens].transpose(0, 1)
    for layer in model.layers:
        x = x + torch_twin(name, layer)(x / x.square().mean(-1, keepdim=True).sqrt())[0]
    expected = (x / x.square().mean(-1, keepdim=True).sqrt()).transpose(0, 1)
    torch.testing.assert_close(model(tokens)[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", TORCH)
def test_dropout_is_for_training_only(name):
    model, tokens = make(name, dropout=0.5), some_tokens(2, 9)
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], make(name)(tokens)[0])


def test_gru_with_the_reset_before_the_product_would_not_pass():
    model = shaken(make("gru", num_layers=1)).double()
    layer, H = model.layers[0], model.config["hidden_size"]
    x, h = torch.randn(2, H, dtype=torch.float64), torch.randn(2, H, dtype=torch.float64)
    ours = layer(x[None], h)[1]
    sums = F.linear(x, layer.input, layer.bias)
    r, z = (sums[:, : 2 * H] + h @ layer.recurrent[: 2 * H].T).sigmoid().chunk(2, -1)
    product = (r * h) @ layer.recurrent[2 * H :].T  # Cho et al.'s form
    n = (sums[:, 2 * H :] + product + layer.recurrent_bias).tanh()
    assert (ours - (n + z * (h - n))).abs().max() > 0.01
