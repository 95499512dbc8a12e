"""Who sees whom in attention and in every model, and attention against its plain formula."""

import math

import pytest
import torch
from torch.nn import functional as F

from crawl2cart.lm.formats.save import MODELS
from crawl2cart.lm.models import attention as attention_module
from crawl2cart.lm.models.attention import (
    Attention,
    attention,
    attention_with_sink_row,
    flex,
    rope,
    with_sink_row,
)
from crawl2cart.lm.training.losses import IGNORE
from tests.small_models import make, shaken, some_tokens


@pytest.mark.parametrize("name", MODELS)
def test_no_token_depends_on_a_later_one(name, monkeypatch):
    model = shaken(make(name)).double()
    tables, lookup = [], F.embedding

    def embedding(ids, table):
        tables.append(lookup(ids, table).detach().requires_grad_())
        return tables[-1]

    monkeypatch.setattr(F, "embedding", embedding)
    hidden, _ = model(some_tokens(1, 20))
    time = 1 if name in ("mlp", "gpt_oss") else 0  # recurrent models have time first
    for place in (0, 7, 18):
        (gradient,) = torch.autograd.grad(hidden[0, place].sum(), tables[0], retain_graph=True)
        reach = gradient.movedim(time, 0).flatten(1).abs().sum(-1)
        assert (reach[place + 1 :] == 0).all()
        assert reach[place] > 0


def attention_support(tokens: int, window: int | None) -> torch.Tensor:
    """Return whether query i depends on value j, by gradient (T, T)."""
    q, k = torch.randn(1, tokens, 2, 4), torch.randn(1, tokens, 1, 4)
    v = torch.randn(1, tokens, 1, 4, requires_grad=True)
    out = attention(q, k, v, torch.zeros(2), window)
    gradients = [
        torch.autograd.grad(out[0, i].sum(), v, retain_graph=True)[0][0] for i in range(tokens)
    ]
    return torch.stack([gradient.abs().sum((1, 2)) > 0 for gradient in gradients])


def test_window_keeps_exactly_w_keys():
    support = attention_support(tokens=300, window=8)  # over the edges of blocks of 128 queries
    i, j = torch.arange(300)[:, None], torch.arange(300)
    assert torch.equal(support, (j <= i) & (j > i - 8))


def test_full_attention_sees_all_before():
    everything = torch.ones(300, 300).tril().bool()
    assert torch.equal(attention_support(tokens=300, window=None), everything)


def plain_attention(q, k, v, sinks, window):
    """Return the formula, with q (B, T, H, d), k and v (B, T, G, d) and sinks (H,) or None."""
    T, repeat = q.size(1), q.size(2) // k.size(2)
    i, j = torch.arange(T)[:, None], torch.arange(T)
    hidden = (j > i) | (j <= i - (window or T))
    scores = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(repeat, 2))
    scores = (scores / q.size(-1) ** 0.5).masked_fill(hidden, -math.inf)
    if sinks is not None:
        column = sinks.view(1, -1, 1, 1).expand(len(q), -1, T, 1)
        scores = torch.cat([scores, column], -1)
    p = scores.softmax(-1)[..., :T]
    return torch.einsum("bhij,bjhd->bihd", p, v.repeat_interleave(repeat, 2))


def inputs(tokens: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(5)
    shapes = [(2, tokens, heads, 16) for heads in (6, 2, 2)] + [(6,)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("with_sinks", [True, False])
@pytest.mark.parametrize("window", [8, 100, None])
def test_attention_equals_the_plain_formula(window, with_sinks):
    q, k, v, sinks = given = inputs(290)
    given = given if with_sinks else given[:3]
    ours = attention(q, k, v, sinks if with_sinks else None, window)
    plain = plain_attention(q, k, v, sinks if with_sinks else None, window)
    torch.testing.assert_close(ours, plain)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((out * weights).sum(), given) for out in (ours, plain)]
    for a, b in zip(*gradients, strict=True):  # those of k and v are summed in float32
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("window", [8, None])
def test_the_last_query_alone_gets_what_it_gets_among_all(window):
    q, k, v, sinks = inputs(40)
    padding = torch.tensor([0, 11])
    whole = attention(q, k, v, sinks, window, padding)
    torch.testing.assert_close(
        attention(q[:, -1:], k, v, sinks, window, padding), whole[:, -1:], rtol=0, atol=1e-12
    )
    alone = attention(q[1:, 11:], k[1:, 11:], v[1:, 11:], sinks, window)
    torch.testing.assert_close(whole[1:, 11:], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [8, None])
def test_the_gpu_s_attention_equals_the_plain_one(window):
    """Only its values: FlexAttention has no backward pass on a CPU."""
    q, k, v, sinks = (x.detach() for x in inputs(150, torch.float32))
    ours = flex(q, k.transpose(1, 2), v.transpose(1, 2), sinks, window)
    torch.testing.assert_close(ours, attention(q, k, v, sinks, window), rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [8, None])
def test_the_gpu_s_attention_has_the_plain_one_s_gradients(window):
    given = [x.detach().cuda() for x in inputs(256, torch.float32)]
    ours, plain = ([x.clone().requires_grad_() for x in given] for _ in range(2))
    attention(*ours, window).square().sum().backward()
    q, k, v, sinks = plain
    rows = with_sink_row(k), with_sink_row(v)
    grouped = Attention.apply(q.unflatten(2, (2, 3)), *rows, sinks, window, None)
    grouped.flatten(2, 3).square().sum().backward()
    for mine, reference in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-3, atol=1e-3)


def test_keys_with_the_sink_row_give_the_same():
    q, k, v, sinks = inputs(20)
    with_row = attention_with_sink_row(q, with_sink_row(k), with_sink_row(v), sinks, None)
    assert torch.equal(with_row, attention(q, k, v, sinks))


# The cache


def test_rows_after_a_shared_text_are_rows_that_begin_with_it():
    model = shaken(make("gpt_oss")).double()
    text, rows = some_tokens(1, 29), some_tokens(3, 31, seed=4)
    whole, _ = model(torch.cat([text.expand(3, -1), rows], 1))
    behind, _ = model(rows, model.prefill(text))
    assert torch.allclose(behind, whole[:, 29:], atol=1e-10)


def test_gradients_of_rows_after_a_shared_text():
    """They are those of the whole, without what flows through the text itself."""
    model = shaken(make("gpt_oss", num_layers=1)).double()
    text, rows = some_tokens(1, 29), some_tokens(2, 20, seed=4)
    model.loss(rows[:, :-1], rows[:, 1:], model.prefill(text))[0].backward()
    behind = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    whole = torch.cat([text.expand(2, -1), rows], 1)
    targets = whole[:, 1:].clone()
    targets[:, :29] = IGNORE
    model.loss(whole[:, :-1], targets)[0].backward()
    for name in (
        "head",
        "norm",
        "blocks.0.query",
        "blocks.0.output",
        "blocks.0.gate_up",
        "blocks.0.sinks",
    ):
        assert torch.allclose(behind[name], model.get_parameter(name).grad, atol=1e-10), name


def test_heads_of_window_layers_start_by_looking_back():
    """Before it has learnt anything, head h of a window layer mostly looks h mod 4 places back."""
    model = make("gpt_oss", num_heads=8, num_kv_heads=4, head_dim=32, hidden_size=64)
    block, x = model.blocks[0], torch.randn(1, 200, 64, generator=torch.Generator().manual_seed(5))
    turn = model.rope_turn(torch.arange(200)[None])
    q, k = (
        rope((x @ weight.T + bias).unflatten(-1, (-1, 32)), *turn)
        for weight, bias in ((block.query, block.query_bias), (block.key, block.key_bias))
    )
    scores = torch.einsum("thd,shd->hts", q[0], k[0].repeat_interleave(2, 1)) / 32**0.5
    by_distance = [scores.diagonal(-places, 1, 2).mean(-1) for places in range(20)]
    assert torch.stack(by_distance).argmax(0).tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert model.blocks[1].query_bias.abs().max() == 0


def test_a_cache_outlives_its_buffer(monkeypatch):
    monkeypatch.setattr(attention_module, "SPARE", 4)  # buffers fill and move every few tokens
    model = shaken(make("gpt_oss")).eval()
    tokens = some_tokens(2, 90)
    state, parts = model.init_state(2, torch.tensor([0, 11])), []
    with torch.no_grad():
        for begin, end in [(0, 33), (33, 34), (34, 50), *((i, i + 1) for i in range(50, 90))]:
            hidden, state = model(tokens[:, begin:end], state)
            parts.append(hidden)
        hidden = torch.cat(parts, 1)
        alone = model(tokens[:1])[0], model(tokens[1:, 11:])[0]
    torch.testing.assert_close(hidden[:1], alone[0], rtol=0, atol=2e-4)
    torch.testing.assert_close(hidden[1:, 11:], alone[1], rtol=0, atol=2e-4)


def test_a_window_layer_s_cache_does_not_grow(monkeypatch):
    monkeypatch.setattr(attention_module, "SPARE", 4)
    model = shaken(make("gpt_oss"))
    tokens, state, sizes = some_tokens(2, 80), model.init_state(2), []
    with torch.no_grad():
        for begin, end in [(0, 8), *((i, i + 1) for i in range(8, 80))]:
            _, state = model(tokens[:, begin:end], state)
            sizes.append([layer.buffer.size(3) for layer in state.layers])
    for block, columns in zip(model.blocks, zip(*sizes, strict=True), strict=True):
        assert max(columns) <= block.window + 4 if block.window else columns[-1] > 80


def test_a_row_longer_than_the_model_s_positions_is_refused():
    model = make("gpt_oss", max_position_embeddings=16)
    model(some_tokens(1, 16))
    with pytest.raises(ValueError, match="17 tokens.*max_position_embeddings, 16"):
        model(some_tokens(1, 17))
    state = model.init_state(2, torch.tensor([4, 2]))  # padding takes no positions
    with torch.no_grad():
        model(some_tokens(2, 18), state)
        with pytest.raises(ValueError, match="max_position_embeddings"):
            model(some_tokens(2, 1), state)
