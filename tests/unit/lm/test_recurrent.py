"""The recurrent cells against torch.nn."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crawl2cart.lm.models import gru, lstm, rnn
from tests.small_models import make, shaken, some_tokens

TORCH = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def torch_twin(name: str, layer: nn.Module) -> nn.Module:
    """torch.nn's module with the same weights; its second bias, which only the GRU's candidate needs, is zero elsewhere."""
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
def test_a_recurrent_layer_equals_torch_s_in_outputs_states_and_gradients(name, dtype, tolerance):
    layer = shaken(make(name)).layers[0].to(dtype)
    twin = torch_twin(name, layer)
    steps, batch_size, width = 21, 5, layer.input.size(1)
    given = [
        torch.randn(shape, dtype=dtype)
        for shape in [(steps, batch_size, width)] + [(batch_size, width)] * (1 + (name == "lstm"))
    ]
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in given] for _ in range(2))
    results = layer(*ours)
    states = [state[None] for state in theirs[1:]]
    hidden, after = twin(theirs[0], tuple(states) if name == "lstm" else states[0])
    expected = [hidden, *(state[0] for state in (after if name == "lstm" else [after]))]

    weights = [
        torch.randn_like(result) for result in results
    ]  # every output pulls in its own direction
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=0, atol=tolerance)
    sum((result * weight).sum() for result, weight in zip(results, weights, strict=True)).backward()
    sum(
        (reference * weight).sum() for reference, weight in zip(expected, weights, strict=True)
    ).backward()
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
        torch.testing.assert_close(
            mine.grad, gradient, rtol=tolerance, atol=tolerance * gradient.abs().max().item()
        )


@pytest.mark.parametrize("steps", [16, 21])
@pytest.mark.parametrize(
    ("module", "scan", "gates", "biases"),
    [(rnn, rnn.RnnScan, 1, None), (lstm, lstm.LstmScan, 4, 0), (gru, gru.GruScan, 3, 1)],
    ids=["rnn", "lstm", "gru"],
)
def test_the_gpu_s_recurrent_steps_are_the_cpu_s(module, scan, gates, biases, steps):
    """In pieces of eight steps, which a GPU compiles; here they run as they stand."""
    generator = torch.Generator().manual_seed(6)
    others = {None: [(4, 12)], 0: [(4, 12), (4, 12)], 1: [(12,), (4, 12)]}[biases]
    shapes = [(steps, 4, gates * 12), (gates * 12, 12), *others]
    given = [torch.randn(shape, generator=generator, dtype=torch.float64) / 3 for shape in shapes]

    class InPieces(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            return scan.forward_in_pieces(ctx, *inputs, module.steps)

        @staticmethod
        def backward(ctx, *gradients):
            return scan.backward_in_pieces(ctx, *gradients, module.steps_back)

    results = []
    for function in (scan, InPieces):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        out = function.apply(*leaves)
        out = out if isinstance(out, tuple) else (out,)
        sum(part.sin().sum() for part in out).backward()
        results.append([*out, *(leaf.grad for leaf in leaves)])
    for loop, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, loop, rtol=0, atol=1e-10)


def test_only_whole_pieces_outside_generation_are_compiled(monkeypatch):
    lengths = []
    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic: lambda piece: lengths.append(len(piece))
    )
    run = rnn.compiled(lambda piece: None)
    for piece in torch.zeros(2 * rnn.CHUNK + 3, 1).split(rnn.CHUNK):
        run(piece)
    with torch.inference_mode():
        run(torch.zeros(rnn.CHUNK, 1))
    assert lengths == 2 * [rnn.CHUNK]


@pytest.mark.parametrize("name", TORCH)
def test_layers_are_stacked_with_norms_and_skips(name):
    model = shaken(make(name, layers=3)).double()
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
    plain = make(name)
    assert torch.equal(model(tokens)[0], plain(tokens)[0])


def test_gru_with_the_reset_before_the_product_would_not_pass():
    model = shaken(make("gru", layers=1)).double()
    layer, width = model.layers[0], model.config["hidden_size"]
    x, h = torch.randn(2, width, dtype=torch.float64), torch.randn(2, width, dtype=torch.float64)
    ours = layer(x[None], h)[1]
    z = F.linear(x, layer.input, layer.bias)
    r, keep = (z[:, : 2 * width] + h @ layer.recurrent[: 2 * width].T).sigmoid().chunk(2, -1)
    candidate = (
        z[:, 2 * width :] + (r * h) @ layer.recurrent[2 * width :].T + layer.recurrent_bias
    ).tanh()  # Cho et al.'s form
    assert (ours - (candidate + keep * (h - candidate))).abs().max() > 0.01
