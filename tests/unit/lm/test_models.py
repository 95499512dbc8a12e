"""What a token may look at, generation, losses, starts, optimizers, data."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers.models.gpt_oss.modeling_gpt_oss import load_balancing_loss_func

from crawl2cart.core.errors import UserError
from crawl2cart.lm.formats.save import MODELS, load_model, save_model
from crawl2cart.lm.inference.engine import drawn, generate, stream
from crawl2cart.lm.inference.engine import main as generate_command
from crawl2cart.lm.inference.sampling import sample_token
from crawl2cart.lm.models import attention as attention_module
from crawl2cart.lm.models import moe as experts_module
from crawl2cart.lm.models.attention import rope, rope_table
from crawl2cart.lm.models.gpt_oss import EPSILON, rms_norm
from crawl2cart.lm.models.init import initialise, pad_vocab
from crawl2cart.lm.training import losses
from crawl2cart.lm.training.data import STEPS_CARRIED, batch, carry_state, eval_batches
from crawl2cart.lm.training.flops import flops_of_rows, flops_per_token
from crawl2cart.lm.training.losses import IGNORE, balance, bits_per_byte, cross_entropy, z_loss
from crawl2cart.lm.training.optim import Muon, adamw, learning_rate, muon_and_adamw
from tests.conftest import ROOT
from tests.small_models import VOCABULARY, make, shaken, small_tokenizer, some_tokens


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


# What a token may look at


@pytest.mark.parametrize("name", MODELS)
def test_no_token_depends_on_a_later_one(name):
    model = shaken(make(name)).double()
    tokens = some_tokens(1, 20)
    seen = []
    original = F.embedding

    def embedding(ids, table):
        seen.append(original(ids, table).detach().requires_grad_())
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "embedding", embedding)
        hidden, _ = model(tokens)
    times = 1 if name in ("mlp", "gpt_oss") else 0  # recurrent models keep time first
    for place in (0, 7, 18):
        (gradient,) = torch.autograd.grad(hidden[0, place].sum(), seen[0], retain_graph=True)
        reach = gradient.movedim(times, 0).flatten(1).abs().sum(-1)
        assert (reach[place + 1 :] == 0).all()
        assert reach[place] > 0


def attention_support(tokens: int, window: int | None) -> torch.Tensor:
    """(T, T): whether query i depends on value j, by gradient."""
    q, k = torch.randn(1, tokens, 2, 4), torch.randn(1, tokens, 1, 4)
    v = torch.randn(1, tokens, 1, 4, requires_grad=True)
    with_row = attention_module.with_sink_row
    out = attention_module.attention(q, with_row(k), with_row(v), torch.zeros(2), window)
    return torch.stack(
        [
            torch.autograd.grad(out[0, i].sum(), v, retain_graph=True)[0][0].abs().sum((1, 2)) > 0
            for i in range(tokens)
        ]
    )


def test_window_keeps_exactly_w_keys():
    seen = attention_support(tokens=300, window=8)  # over the edges of blocks of 128 queries
    assert seen.sum(-1).tolist() == [min(i + 1, 8) for i in range(300)]
    assert all(seen[i, max(0, i - 7) : i + 1].all() for i in range(300))


def test_full_attention_sees_all_before():
    assert torch.equal(
        attention_support(tokens=300, window=None), torch.ones(300, 300).tril().bool()
    )


@pytest.mark.parametrize("window", [8, 100, None])
def test_attention_equals_the_plain_formula(window):
    torch.manual_seed(5)
    T = 290
    q, k, v = (
        torch.randn(2, T, heads, 16, dtype=torch.float64, requires_grad=True) for heads in (6, 2, 2)
    )
    sink = torch.randn(6, dtype=torch.float64, requires_grad=True)
    ours = attention_module.attention(
        q, attention_module.with_sink_row(k), attention_module.with_sink_row(v), sink, window
    )

    i, j = torch.arange(T)[:, None], torch.arange(T)
    hidden = (j > i) | (j <= i - (window or T))
    scores = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(3, 2)) / 4
    scores = torch.cat(
        [scores.masked_fill(hidden, -math.inf), sink.view(1, 6, 1, 1).expand(2, 6, T, 1)], -1
    )
    plain = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1)[..., :-1], v.repeat_interleave(3, 2))
    torch.testing.assert_close(ours, plain)
    weights = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), (q, k, v, sink)),
        torch.autograd.grad((plain * weights).sum(), (q, k, v, sink)),
        strict=True,
    ):
        torch.testing.assert_close(
            a, b, rtol=1e-6, atol=1e-6
        )  # gradients of k and v are summed in float32


@pytest.mark.parametrize("window", [8, None])
def test_the_gpu_s_attention_equals_the_plain_one(window):
    """Without a GPU only its values can be compared: FlexAttention has no backward pass on a CPU."""
    torch.manual_seed(5)
    q, k, v = (torch.randn(2, 150, heads, 16) for heads in (6, 2, 2))
    sink = torch.randn(6)
    plain = attention_module.attention(
        q, attention_module.with_sink_row(k), attention_module.with_sink_row(v), sink, window
    )
    torch.testing.assert_close(
        attention_module.flex(q, k.transpose(1, 2), v.transpose(1, 2), sink, window),
        plain,
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [8, None])
def test_the_gpu_s_attention_has_the_plain_one_s_gradients(window):
    torch.manual_seed(5)
    given = [torch.randn(2, 256, heads, 16, device="cuda") for heads in (6, 2, 2)] + [
        torch.randn(6, device="cuda")
    ]
    ours, plain = ([tensor.clone().requires_grad_() for tensor in given] for _ in range(2))
    row = attention_module.with_sink_row
    q, k, v, sink = ours
    attention_module.attention(q, row(k), row(v), sink, window).square().sum().backward()
    q, k, v, sink = plain
    grouped = attention_module.Attention.apply(
        q.unflatten(2, (2, 3)), row(k), row(v), sink, window, None
    )
    grouped.flatten(2, 3).square().sum().backward()
    for mine, reference in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-3, atol=1e-3)


def test_the_gpu_s_product_of_experts_is_the_cpu_s():
    generator = torch.Generator().manual_seed(8)
    counts = torch.tensor([5, 0, 3])  # one expert gets nothing
    given = [torch.randn(shape, generator=generator) for shape in [(8, 16), (3, 16, 24), (3, 24)]]
    results = []
    for product in (
        lambda x, w, b: experts_module.grouped(x, w, b, counts.cumsum(0)),
        lambda x, w, b: experts_module.product_each(
            x.split(counts.tolist()), w.unbind(), b.unbind()
        ),
    ):
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
    mixed = experts_module.experts(
        x, torch.zeros(7, 1, dtype=torch.long), torch.ones(7, 1), up, up_bias, down, down_bias
    )
    torch.testing.assert_close(
        mixed, experts_module.swiglu(x @ up[0] + up_bias[0]) @ down[0] + down_bias[0]
    )


# Generation


@pytest.mark.parametrize("name", MODELS)
def test_generation_with_a_state_equals_reading_all_again(name):
    model = shaken(make(name))
    prompt = some_tokens(1, 30)[0].tolist()
    whole = list(prompt)
    for _ in range(40):  # past the window of 8
        with torch.no_grad():
            whole.append(
                int(model.logits(model(torch.tensor([whole]))[0][0, -1])[:VOCABULARY].argmax())
            )
    assert generate(model, [prompt], 40, temperature=0) == [whole[30:]]


@pytest.mark.parametrize("name", MODELS)
def test_prompts_of_other_lengths_in_a_batch_change_nothing(name):
    model = shaken(make(name))
    prompts = [some_tokens(1, length, seed=length)[0].tolist() for length in (3, 40, 17, 40)]
    together = generate(model, prompts, 12, temperature=0)
    assert together == [generate(model, [prompt], 12, temperature=0)[0] for prompt in prompts]


def test_rows_after_a_shared_text_are_rows_that_begin_with_it():
    model = shaken(make("gpt_oss")).double()
    text, rows = some_tokens(1, 29), some_tokens(3, 31, seed=4)
    whole, _ = model(torch.cat([text.expand(3, -1), rows], 1))
    behind, _ = model(rows, model.prefill(text))
    assert torch.allclose(behind, whole[:, 29:], atol=1e-10)


def test_gradients_of_rows_after_a_shared_text():
    """What is read after it has the gradients it has anywhere: those of the whole, less what flows through the text itself."""
    model = shaken(make("gpt_oss", layers=1, balance=0.0)).double()
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
    model = make("gpt_oss", heads=8, num_kv_heads=4, head_dim=32, width=64)
    block, x = model.blocks[0], torch.randn(1, 200, 64, generator=torch.Generator().manual_seed(5))
    turn = rope_table(torch.arange(200)[None], 32, 1.0, 4096)
    q, k = (
        rope((x @ weight.T + bias).unflatten(-1, (-1, 32)), *turn)
        for weight, bias in ((block.query, block.query_bias), (block.key, block.key_bias))
    )
    scores = torch.einsum("thd,shd->hts", q[0], k[0].repeat_interleave(2, 1)) / 32**0.5
    back = torch.stack(
        [scores.diagonal(-places, 1, 2).mean(-1) for places in range(20)]
    )  # (places, heads)
    assert back.argmax(0).tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert model.blocks[1].query_bias.abs().max() == 0


def test_a_cache_outlives_its_buffer(monkeypatch):
    monkeypatch.setattr(attention_module, "SPARE", 4)  # the buffers fill and move every few tokens
    model = shaken(make("gpt_oss"))
    tokens = some_tokens(2, 90)
    padding = torch.tensor([0, 11])
    state, parts = model.init_state(2, padding), []
    with torch.no_grad():
        for begin, end in [(0, 33), (33, 34), (34, 50), *((i, i + 1) for i in range(50, 90))]:
            hidden, state = model(tokens[:, begin:end], state)
            parts.append(hidden)
        torch.testing.assert_close(
            torch.cat(parts, 1)[0], model(tokens[:1])[0][0], rtol=0, atol=2e-4
        )
        torch.testing.assert_close(
            torch.cat(parts, 1)[1, 11:], model(tokens[1:, 11:])[0][0], rtol=0, atol=2e-4
        )


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


def test_a_row_ends_at_its_stop_token_and_others_go_on():
    model = shaken(make("gru"))
    prompts = some_tokens(6, 5).tolist()
    free = generate(model, prompts, 15, temperature=1.0, seed=4)
    stop = free[0][3]
    stopped = generate(model, prompts, 15, [stop], temperature=1.0, seed=4)
    for row, ids in zip(stopped, free, strict=True):
        assert row == (ids[: ids.index(stop) + 1] if stop in ids else ids)


def test_the_same_seed_gives_the_same_text():
    model, prompts = shaken(make("lstm")), some_tokens(3, 5).tolist()
    first = generate(model, prompts, 10, seed=1)
    assert first == generate(model, prompts, 10, seed=1) != generate(model, prompts, 10, seed=2)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_draws_by_its_place_in_the_batch_whatever_the_lengths(name):
    model, draws = shaken(make(name)), drawn(12, 3, seed=4)
    prompts = [some_tokens(1, length, seed=length)[0].tolist() for length in (3, 17, 3)]
    for row, (prompt, ids) in enumerate(
        zip(prompts, generate(model, prompts, 12, seed=4), strict=True)
    ):
        alone = [
            [number for (number,) in stream(model, [prompt], 12, draws=draws[:, [place]])]
            for place in range(3)
        ]
        assert [ids == other for other in alone] == [place == row for place in range(3)]


@pytest.mark.parametrize("name", MODELS)
def test_the_command_goes_on_with_any_model(name, tokenizer, tmp_path, monkeypatch, capsys):
    model = shaken(make(name))
    save_model(model, tmp_path, tokenizer)
    end = tokenizer.encode_single_token("<|endoftext|>")
    monkeypatch.setattr(
        sys,
        "argv",
        ["generate", str(tmp_path), "The kettle", "--tokens", "6", "--seed", "3", "--top-k", "50"],
    )
    generate_command()
    (ids,) = generate(
        model, [[end, *tokenizer.encode_ordinary("The kettle")]], 6, [end], 0.8, 50, 0.95, seed=3
    )
    assert (
        capsys.readouterr().out
        == "The kettle" + tokenizer.decode([number for number in ids if number != end]) + "\n"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--top-k", "0"], "--top-k must be 1 or more"),
        (["--top-p", "0"], "--top-p must be above 0 and at most 1"),
        (["--top-p", "1.5"], "--top-p must be above 0 and at most 1"),
        (["--temperature", "-1"], "--temperature must be 0 or more"),
        (["--tokens", "0"], "--tokens must be 1 or more"),
    ],
)
def test_the_command_refuses_what_means_nothing(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate", "models/pretrain/gru", "The kettle", *words])
    with pytest.raises(SystemExit):
        generate_command()
    assert sentence in capsys.readouterr().err


def test_the_command_writes_each_token_as_soon_as_it_is_known(tokenizer, tmp_path):
    save_model(shaken(make("gru")), tmp_path, tokenizer)
    command = [
        sys.executable,
        "-u",
        "-m",
        "crawl2cart.lm.inference.engine",
        tmp_path,
        "The kettle",
        "--tokens",
        "100000",
        "--seed",
        "3",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writing:
        said = writing.stdout.read(20)  # comes long before the last token
        assert writing.poll() is None
        writing.kill()
    assert said.startswith(b"The kettle")


def test_the_command_says_which_folder_holds_no_model(tmp_path):
    said = subprocess.run(
        [sys.executable, "-m", "crawl2cart.lm.inference.engine", tmp_path / "gru", "The kettle"],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 1
    assert str(tmp_path / "gru") in said.stderr
    assert "Traceback" not in said.stderr


def test_choice_follows_the_probabilities():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(40_000, 4)
    draw = torch.rand(40_000, generator=torch.Generator().manual_seed(6))

    def shares(**how):
        return (
            torch.bincount(sample_token(logits, draw=draw, **how), minlength=4) / 40_000
        ).tolist()

    assert shares(temperature=1.0, top_k=None, top_p=1.0) == pytest.approx(
        [0.5, 0.3, 0.15, 0.05], abs=0.01
    )
    assert shares(temperature=1.0, top_k=2, top_p=1.0) == pytest.approx(
        [0.625, 0.375, 0, 0], abs=0.01
    )
    assert shares(temperature=1.0, top_k=None, top_p=0.81) == pytest.approx(
        [0.526, 0.316, 0.158, 0], abs=0.01
    )
    assert shares(temperature=1.0, top_k=None, top_p=0.79) == pytest.approx(
        [0.625, 0.375, 0, 0], abs=0.01
    )
    assert shares(temperature=0.5, top_k=None, top_p=1.0) == pytest.approx(
        [0.685, 0.247, 0.062, 0.007], abs=0.01
    )
    assert shares(temperature=0, top_k=None, top_p=1.0) == [1, 0, 0, 0]


def test_unused_rows_of_the_table_are_never_written():
    model = make("mlp")
    with torch.no_grad():
        model.head[VOCABULARY:] = 100 * model(some_tokens(1, 5))[0][0, -1]  # the likeliest by far
    assert all(
        number < VOCABULARY
        for (number,) in stream(model, some_tokens(1, 5).tolist(), 20, temperature=0)
    )


# Losses, starts, optimizer, data


@pytest.mark.parametrize("length", [1, 100, 2500])
def test_chunked_cross_entropy_equals_torch_s(length):
    torch.manual_seed(7)
    hidden, weight = (
        torch.randn(length, 12, requires_grad=True),
        torch.randn(50, 12, requires_grad=True),
    )
    targets = torch.randint(0, 50, (length,))
    targets[1::3] = IGNORE
    ours = 3 * cross_entropy(hidden, weight, targets)
    plain = 3 * F.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(
        torch.autograd.grad(ours, (hidden, weight)),
        torch.autograd.grad(plain, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_no_logits_are_made_where_nothing_is_learnt(monkeypatch):
    targets = torch.full((5000,), IGNORE)
    targets[::2] = 3
    rows, softmax = [], torch.Tensor.log_softmax

    def counting(logits, *rest, **how):
        rows.append(len(logits))
        return softmax(logits, *rest, **how)

    monkeypatch.setattr(torch.Tensor, "log_softmax", counting)
    cross_entropy(torch.randn(5000, 4), torch.randn(8, 4), targets)
    assert rows == [1024, 1024, 452]  # of 2,500, never more than a chunk at once


@pytest.mark.parametrize("shape", [(3, 7, 48), (5, 48)])
def test_the_norm_is_torch_s_with_its_gradients(shape):
    torch.manual_seed(14)
    x, weight = (torch.randn(size) + 1 for size in (shape, shape[-1:]))
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in (x, weight)] for _ in range(2))
    pull = torch.randn(shape)
    result, expected = rms_norm(*ours), F.rms_norm(theirs[0], shape[-1:], theirs[1], EPSILON)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(result, ours, pull),
        torch.autograd.grad(expected, theirs, pull),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_the_gpu_s_slope_is_the_cpu_s():
    generator = torch.Generator().manual_seed(4)
    logits, target = (
        torch.randn(9, 30, generator=generator),
        torch.randint(0, 30, (9, 1), generator=generator),
    )
    for ours, plain in zip(
        losses.nats_and_slope_of_pass(logits, target),
        losses.nats_and_slope(logits, target),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain)


def test_cross_entropy_of_nothing_is_zero():
    hidden = torch.randn(4, 3, requires_grad=True)
    loss = cross_entropy(hidden, torch.randn(8, 3, requires_grad=True), torch.full((4,), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert (hidden.grad == 0).all()


def test_balance_is_transformers_auxiliary_loss_over_k():
    logits = torch.randn(4, 500, 8, generator=torch.Generator().manual_seed(8))
    chosen = logits.topk(3).indices
    theirs = sum(load_balancing_loss_func((row,), 8, 3).item() for row in logits) / 4
    assert balance(logits, chosen).item() == pytest.approx(theirs / 3, rel=1e-5)


def test_z_loss_is_the_mean_square_of_log_sum_exp():
    logits = torch.randn(4, 50, 8, generator=torch.Generator().manual_seed(8))
    by_hand = [
        math.log(sum(math.exp(x) for x in row)) ** 2 for row in logits.flatten(0, 1).tolist()
    ]
    assert z_loss(logits).item() == pytest.approx(sum(by_hand) / 200, rel=1e-5)
    assert z_loss(torch.zeros(1, 1, 8)).item() == pytest.approx(math.log(8) ** 2)


@pytest.mark.parametrize("which", ["balance", "z_loss"])
def test_the_routers_losses_change_the_gradient_and_not_the_loss(which):
    tokens, targets = some_tokens(2, 20), some_tokens(2, 20, seed=9)
    routers, losses = [], []
    for weight in (0.0, 1.0):
        model = shaken(make("gpt_oss", **{which: weight}))
        loss, _ = model.loss(tokens, targets)
        loss.backward()
        losses.append(loss.item())
        routers.append(model.blocks[0].router.grad)
    assert losses[0] == losses[1]
    assert not torch.allclose(*routers)


def test_bits_per_byte_of_a_fair_coin():
    assert bits_per_byte(nats=800 * math.log(2), text_bytes=100) == pytest.approx(8)
    with pytest.raises(ValueError, match="0 bytes"):
        bits_per_byte(1.0, 0)


def test_there_are_as_many_parameters_as_the_equations_have():
    V, D, L = 320, 24, 2  # ids padded to a multiple of 64, width and layers of the recurrent ones
    gate = 2 * D * D + D  # one product with x, one with h, a bias
    tables = 2 * V * D  # embedding and head
    counts = {
        "mlp": V * 16 + 32 * 5 * 16 + 32 + V * 32,
        "rnn": tables + L * gate,
        "lstm": tables + L * 4 * gate,
        "gru": tables + L * (3 * gate + D),
    }  # and a second bias, of the product that the reset gate meets
    D, L, H, G, d, E, inner = 48, 4, 6, 2, 16, 8, 40
    attention = (
        D + (H + G + G) * d * (D + 1) + H + D * H * d + D
    )  # norm, queries, keys and values, sinks, output
    experts = D + E * (D + 1) + E * (2 * inner * (D + 1) + D * (inner + 1))  # norm, router, experts
    counts["gpt_oss"] = V * D + L * (attention + experts) + D + V * D
    assert {
        name: sum(parameter.numel() for parameter in make(name).parameters()) for name in MODELS
    } == counts
    idle = L * (E - 3) * (2 * inner * (D + 1) + D * (inner + 1))
    assert make("gpt_oss").active_parameters() == counts["gpt_oss"] - idle


@pytest.mark.parametrize("name", MODELS)
def test_a_new_model_knows_nothing(name):
    loss, _ = make(name).loss(some_tokens(4, 50), some_tokens(4, 50, seed=10))
    assert loss.item() == pytest.approx(math.log(pad_vocab(VOCABULARY)), rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_one_batch_can_be_learnt_by_heart(name):
    model = make(name)
    optimizer = adamw(model, 0.0, 0.9, 0.95)
    tokens, targets = some_tokens(2, 16), some_tokens(2, 16, seed=11)
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = learning_rate(
            step, 1500, 0.01, 0.02, 0.1
        )
        loss, _ = model.loss(tokens, targets)
        if loss.item() < 0.05:
            break
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_rule_and_one_group(name):
    model = make(name)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    decayed, free = (group["params"] for group in adamw(model, 0.1, 0.9, 0.95).param_groups)
    assert len(decayed) + len(free) == len(list(model.parameters()))
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    assert not any(
        word in by_id[id(parameter)]
        for parameter in decayed
        for word in ("bias", "norm", "sinks", "embedding")
    )
    model.surplus = nn.Parameter(torch.zeros(1))
    with pytest.raises(KeyError, match="surplus"):
        initialise(model, 1)


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
    torch.testing.assert_close(
        together.detach(), torch.stack(single).detach(), rtol=0, atol=2e-3
    )  # its steps are in bfloat16


MUON_STEPS = """
import sys
import torch
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from crawl2cart.lm.training.optim import Muon
from crawl2cart.lm.training.distributed import ALONE, open_world, whole

def steps(world, held):
    random = torch.Generator().manual_seed(15)
    shapes = [(12, 20), (20, 12), (3, 12, 20), (3, 20, 12), (16, 16)]   # tall ones are transposed on the way
    parameters = [torch.nn.Parameter(held(torch.randn(shape, generator=random))) for shape in shapes]
    muon = Muon(parameters, 0.1, world=world)
    muon.param_groups[0]["lr"] = 0.02
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = held(torch.randn(parameter.shape, generator=random))
        muon.step()
    return {str(number): whole(parameter.detach()).contiguous() for number, parameter in enumerate(parameters)}

with open_world("cpu", 2, sys.argv) as world:
    mesh = init_device_mesh("cpu", (2,))
    ways = {"alone": (ALONE, lambda x: x), "copies": (world, lambda x: x),
            "split": (world, lambda x: distribute_tensor(x, mesh, [Shard(0)]))}
    for name, how in ways.items():
        save_file(steps(*how), f"{sys.argv[1]}/{name}_{world.rank}.safetensors")
    world.barrier()   # behind the block the first ends the other
"""


def test_muon_takes_the_same_steps_on_two_processes_as_on_one(tmp_path):
    """To the bit, where the processes hold copies as where each holds a part."""
    program = tmp_path / "steps.py"
    program.write_text(MUON_STEPS)
    said = subprocess.run(
        [sys.executable, program, tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert said.returncode == 0, said.stderr
    alone = load_file(tmp_path / "alone_0.safetensors")
    assert alone["0"].shape == (12, 20)
    for name in ("copies_0", "copies_1", "split_0", "split_1"):
        weights = load_file(tmp_path / f"{name}.safetensors")
        assert weights.keys() == alone.keys()
        assert all(torch.equal(weights[key], alone[key]) for key in alone), name


def test_muon_takes_the_inner_matrices_and_adamw_the_rest():
    model = make("gpt_oss")
    muon, rest = muon_and_adamw(model, 0.1, 0.9, 0.95)
    inner = {id(parameter) for group in muon.param_groups for parameter in group["params"]}
    others = {id(parameter) for group in rest.param_groups for parameter in group["params"]}
    assert not inner & others
    assert len(inner) + len(others) == len(list(model.parameters()))
    assert {id(block.gate_up) for block in model.blocks} < inner
    assert {id(model.head), id(model.embedding), id(model.blocks[0].sinks)} < others


def test_warmup_stable_decay_stays_and_falls():
    rates = [learning_rate(step, 100, 2.0, 0.1, 0.25, "wsd") for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10:80] == [2.0] * 70
    assert rates[90] == pytest.approx(2 - 1.5 * 10 / 19)
    assert rates[-1] == pytest.approx(0.5)


def test_operations_of_rows_behind_a_prefix_are_those_of_their_products():
    model = make("gpt_oss", layers=2)
    D, inner = 48, 6 * 16 + 2 * 2 * 16  # width of queries, keys and values together
    block = (
        inner * D + 6 * 16 * D + 8 * D + 3 * (2 * 40 * D + 40 * D)
    )  # with its router and 3 of 8 experts
    head, key = 320 * D, 2 * 6 * 16  # a key takes part in a score and in a sum
    prefix = 10 * (2 * 2 * block + 2 * key * 8 + 2 * key * 10)  # a window of 8, and all 10
    rows = sum(
        3 * n * (2 * (2 * block + head) + 2 * key * 8 + 2 * key * (10 + n)) for n in (5, 5, 12)
    )
    assert flops_of_rows(model, [5, 5, 12], 10) == prefix + rows
    assert flops_of_rows(model, [20]) == 20 * flops_per_token(model, 20)


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(step, 100, 2.0, 0.1, 0.25) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[-1] == pytest.approx(0.5)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_rows_go_on_where_they_stopped():
    tokens = np.arange(1000, dtype=np.uint16)
    for step in range(5):
        inputs, targets = batch(tokens, step, 4, 20, seed=3)
        following, _ = batch(tokens, step + 1, 4, 20, seed=3)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert torch.equal(targets[:, -1], following[:, 0])
    seen = torch.cat([batch(tokens, step, 4, 25, seed=3)[1].flatten() for step in range(10)])
    assert seen.sort().values.tolist() == list(range(1000))


def test_each_row_starts_anew_in_its_turn_however_rows_are_split():
    state = torch.ones(40, 2, 3)
    for step in range(STEPS_CARRIED + 1):
        whole = carry_state(state, step, slice(0, 40))
        split = [carry_state(state[part], step, part) for part in (slice(0, 10), slice(10, 40))]
        assert torch.equal(whole, torch.cat(split))
        assert (whole[:, 0, 0] == 0).nonzero().flatten().tolist() == [
            row for row in range(40) if (row + step) % STEPS_CARRIED == 0
        ]
    assert carry_state(None, 3, slice(0, 4)) is None


@pytest.mark.parametrize(("rows", "context"), [(4, 20), (3, 7), (1, 2000), (64, 16)])
def test_validation_counts_every_token_once(rows, context):
    tokens = np.arange(997, dtype=np.uint16)
    batches = list(eval_batches(tokens, rows, context))
    targets = torch.cat([targets.flatten() for _, targets in batches])
    assert targets[targets != IGNORE].sort().values.tolist() == list(range(997))
    for inputs, targets in batches:
        assert ((targets == IGNORE) | (targets == (inputs + 1) % 997)).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_folder_gives_the_model_back(name, tokenizer, tmp_path):
    model = shaken(make(name))
    save_model(model, tmp_path, tokenizer)
    back = load_model(tmp_path)
    assert back.config == model.config
    assert all(
        torch.equal(tensor, back.state_dict()[key]) for key, tensor in model.state_dict().items()
    )


def test_a_folder_whose_weights_do_not_fit_is_named(tokenizer, tmp_path):
    save_model(make("gru"), tmp_path, tokenizer)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"hidden_size": 24', '"hidden_size": 25'))
    with pytest.raises(UserError, match="does not fit its config.json"):
        load_model(tmp_path)
