"""All five models: parameters, starts, folders, and what a wrong call gets."""

import math

import pytest
import torch
from torch import nn

from crawl2cart.core.errors import UserError
from crawl2cart.lm.formats.save import MODELS, load_model, save_model
from crawl2cart.lm.models import moe
from crawl2cart.lm.models.init import initialise, pad_vocab
from crawl2cart.lm.training.flops import flops_of_rows, flops_per_token
from crawl2cart.lm.training.optim import adamw, learning_rate
from tests.small_models import SIZES, VOCABULARY, make, shaken, small_tokenizer, some_tokens


def test_there_are_as_many_parameters_as_the_equations_have():
    V, D, L = 320, 24, 2  # ids padded to a multiple of 64; width and layers of the recurrent models
    gate = 2 * D * D + D  # one product with x, one with h, a bias
    tables = 2 * V * D  # embedding and head
    counts = {
        "mlp": V * 16 + 32 * 5 * 16 + 32 + V * 32,
        "rnn": tables + L * gate,
        "lstm": tables + L * 4 * gate,
        "gru": tables + L * (3 * gate + D),  # and a bias of the product that the reset gate meets
    }
    D, L, H, G, d, E, inner = 48, 4, 6, 2, 16, 8, 40
    attention = D + (H + G + G) * d * (D + 1) + H + D * H * d + D  # norm, q, k, v, sinks, output
    one_expert = 2 * inner * (D + 1) + D * (inner + 1)
    experts = D + E * (D + 1) + E * one_expert  # norm, router, experts
    counts["gpt_oss"] = V * D + L * (attention + experts) + D + V * D
    assert {
        name: sum(parameter.numel() for parameter in make(name).parameters()) for name in MODELS
    } == counts
    idle = L * (E - 3) * one_expert
    assert make("gpt_oss").active_parameters() == counts["gpt_oss"] - idle


@pytest.mark.parametrize("name", MODELS)
def test_a_new_model_knows_nothing(name):
    loss, _ = make(name).loss(some_tokens(4, 50), some_tokens(4, 50, seed=10))
    assert loss.item() == pytest.approx(math.log(pad_vocab(VOCABULARY)), rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_one_batch_can_be_learnt_by_heart(name):
    model = make(name)
    optimizer = adamw(model, 0.0, 0.9, 0.95)
    tokens, targets = some_tokens(2, 12), some_tokens(2, 12, seed=11)
    for step in range(400):
        for options in optimizer.param_groups:
            options["lr"] = learning_rate(step, 400, 0.01, 0.02, 0.1)
        loss, _ = model.loss(tokens, targets)
        if loss.item() < 0.05:
            return
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    raise AssertionError(f"the loss is still {loss.item()}")


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_rule(name):
    model = make(name)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    model.surplus = nn.Parameter(torch.zeros(1))
    with pytest.raises(KeyError, match="surplus"):
        initialise(model, 1)


@pytest.mark.parametrize("name", MODELS)
def test_a_missing_key_of_the_config_is_named(name):
    for key in SIZES[name]:
        config = {other: value for other, value in SIZES[name].items() if other != key}
        with pytest.raises(ValueError, match=f"{name} lacks {key}"):
            MODELS[name](config, VOCABULARY)


@pytest.mark.parametrize("name", MODELS)
def test_logits_have_a_column_for_each_id(name):
    model = make(name)
    hidden, _ = model(some_tokens(2, 7))
    assert model.logits(hidden).shape == (2, 7, VOCABULARY)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_folder_gives_the_model_back(name, tmp_path):
    model = shaken(make(name))
    save_model(model, tmp_path, small_tokenizer())
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    tensors = loaded.state_dict()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in model.state_dict().items())


def test_a_folder_whose_weights_do_not_fit_is_named(tmp_path):
    save_model(make("gru"), tmp_path, small_tokenizer())
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"hidden_size": 24', '"hidden_size": 25'))
    with pytest.raises(UserError, match="does not fit its config.json"):
        load_model(tmp_path)
    config.write_text(text.replace('"hidden_size": 24', '"width": 24'))
    with pytest.raises(UserError, match="lacks hidden_size"):
        load_model(tmp_path)


def test_operations_of_rows_behind_a_prefix_are_those_of_their_products():
    model = make("gpt_oss", num_layers=2)
    D, qkv = 48, 6 * 16 + 2 * 2 * 16  # widths of the model, and of queries, keys, values together
    block = qkv * D + 6 * 16 * D + 8 * D + 3 * (2 * 40 * D + 40 * D)  # with 3 of 8 experts
    head, key = 320 * D, 2 * 6 * 16  # a key takes part in a score and in a sum
    prefix = 10 * (2 * 2 * block + 2 * key * 8 + 2 * key * 10)  # a window of 8, and all 10
    rows = sum(
        3 * n * (2 * (2 * block + head) + 2 * key * 8 + 2 * key * (10 + n)) for n in (5, 5, 12)
    )
    assert flops_of_rows(model, [5, 5, 12], 10) == prefix + rows
    assert flops_of_rows(model, [20]) == 20 * flops_per_token(model, 20)


# Experts


def test_the_gpu_s_product_of_experts_is_the_cpu_s():
    generator = torch.Generator().manual_seed(8)
    counts = torch.tensor([5, 0, 3])  # one expert gets nothing
    given = [torch.randn(shape, generator=generator) for shape in [(8, 16), (3, 16, 24), (3, 24)]]

    def each(x, weight, bias):
        return moe.product_each(x.split(counts.tolist()), weight.unbind(), bias.unbind())

    def grouped(x, weight, bias):
        return moe.grouped(x, weight, bias, counts.cumsum(0))

    results = []
    for product in (grouped, each):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        out = product(*leaves)
        out.sin().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_one_expert_is_a_dense_layer():
    generator = torch.Generator().manual_seed(9)
    shapes = [(7, 8), (1, 8, 12), (1, 12), (1, 6, 8), (1, 8)]
    x, up, up_bias, down, down_bias = (torch.randn(shape, generator=generator) for shape in shapes)
    chosen, share = torch.zeros(7, 1, dtype=torch.long), torch.ones(7, 1)
    mixed = moe.experts(x, chosen, share, up, up_bias, down, down_bias, alpha=1.0, limit=2.0)
    hidden = moe.swiglu(x @ up[0] + up_bias[0], alpha=1.0, limit=2.0)
    torch.testing.assert_close(mixed, hidden @ down[0] + down_bias[0])


def test_one_row_gets_what_it_gets_among_many():
    block = shaken(make("gpt_oss")).blocks[0]
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(9))
    _, chosen, share = moe.route(x, block.router, block.router_bias, 3)
    weights = block.gate_up, block.gate_up_bias, block.down, block.down_bias
    together = moe.experts(x, chosen, share, *weights)
    alone = [
        moe.experts(x[i : i + 1], chosen[i : i + 1], share[i : i + 1], *weights) for i in range(5)
    ]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-5, atol=1e-4)
