"""GPT-OSS against transformers and openai's own checkpoints, with controls that must fail."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import GptOssConfig, GptOssForCausalLM

from crawl2cart.core.errors import UserError
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats.from_openai import load_openai, mxfp4
from crawl2cart.lm.formats.save import exported_name, load_gpt_oss, save_model
from crawl2cart.lm.inference.engine import Engine
from crawl2cart.lm.models import attention as attention_module
from crawl2cart.lm.models import moe
from crawl2cart.lm.models.gpt_oss import GptOss
from crawl2cart.lm.models.init import initialise, pad_vocab
from tests.small_models import SIZES, VOCABULARY, make, shaken, small_tokenizer, some_tokens


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


# GPT-OSS against transformers


def hugging_face(folder: Path) -> GptOssForCausalLM:
    model = GptOssForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model.set_experts_implementation("eager")
    return model


CONFIGS = {
    "plain RoPE": {},
    "YaRN 32": {"rope_factor": 32.0, "max_position_embeddings": 4096 * 32},
}
# Not gpt-oss-20b's values.
OTHER_CONSTANTS = {
    "rope_factor": 4.0,
    "max_position_embeddings": 16384,
    "rope_theta": 10_000.0,
    "rope_beta_fast": 20.0,
    "rope_beta_slow": 2.0,
    "swiglu_alpha": 1.0,
    "swiglu_limit": 2.0,
    "rms_norm_eps": 1e-2,
}


def new_pair(folder: Path, tokenizer, **config) -> tuple[GptOss, GptOssForCausalLM]:
    """Return ours and transformers' with the same weights, as it reads them from our export."""
    model = shaken(initialise(GptOss({**SIZES["gpt_oss"], **config}, VOCABULARY), 1))
    save_model(model, folder, tokenizer)
    return model, hugging_face(folder)


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tokenizer, tmp_path_factory) -> tuple[GptOss, GptOssForCausalLM]:
    return new_pair(tmp_path_factory.mktemp("gpt_oss"), tokenizer, **CONFIGS[request.param])


TOKENS = some_tokens(2, 150)  # longer than three windows of 8, and than one block of queries


def difference(pair, tokens=TOKENS) -> float:
    model, reference = pair
    with torch.no_grad():
        theirs = reference(tokens).logits[..., :VOCABULARY]
        return (model.logits(model(tokens)[0]) - theirs).abs().max().item()


def test_logits_equal_transformers(pair):
    assert difference(pair) < 5e-4  # of logits around 10, through four layers of experts in float32


def test_other_constants_than_gpt_oss_20b_s_are_passed_on_both_ways(tokenizer, tmp_path):
    model, reference = new_pair(tmp_path, tokenizer, **OTHER_CONSTANTS)
    assert difference((model, reference)) < 5e-4
    assert load_gpt_oss(tmp_path).config == model.config
    for key, value in OTHER_CONSTANTS.items():
        if key not in ("rope_factor", "max_position_embeddings"):
            changed = GptOss({**model.config, key: 1.1 * value + 0.1}, VOCABULARY)
            changed.load_state_dict(model.state_dict())
            assert difference((changed, reference)) > 5e-3, key


def test_there_are_as_many_parameters_as_in_transformers(pair):
    model, reference = pair
    assert sum(parameter.numel() for parameter in model.parameters()) == reference.num_parameters()


def test_gradients_equal_transformers(pair):
    model, reference = pair
    targets = some_tokens(2, 150, seed=4)
    loss, _ = model.loss(TOKENS, targets)
    expected = F.cross_entropy(reference(TOKENS).logits.flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    loss.backward()
    expected.backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        gradient = theirs.pop(exported_name(name)).grad
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=0, atol=1e-3 * gradient.abs().max().item(), msg=name
        )
        parameter.grad = None
    assert not theirs, "transformers has parameters that we do not export"
    reference.zero_grad()


def off_by_one_window(model, _):
    for block in model.blocks:
        block.window = block.window and block.window + 1


def swapped_parity(model, _):
    for number, block in enumerate(model.blocks):
        block.window = 8 if number % 2 else None


def dropped_sink(model, _):
    for block in model.blocks:
        block.sinks.data.fill_(-math.inf)


def untransposed_down(model, _):
    for block in model.blocks:  # (E, I, D) read as (E, D, I): it would fit unnoticed if I were D
        block.down.data = block.down.mT.reshape(block.down.shape)


def halved_gates(_, monkeypatch):
    def chunked(x, *_):
        gate, up = x.chunk(2, -1)
        gate, up = gate.clamp(max=7), up.clamp(-7, 7)
        return gate * torch.sigmoid(1.702 * gate) * (up + 1)

    monkeypatch.setattr(moe, "swiglu", chunked)


def softmax_before_topk(_, monkeypatch):
    def route(x, weight, bias, k):
        logits = F.linear(x, weight, bias)
        share, chosen = logits.softmax(-1).topk(k)
        return logits, chosen, share

    monkeypatch.setattr("crawl2cart.lm.models.gpt_oss.route", route)


def lower_clamp_on_the_gate(_, monkeypatch):
    def clamped(x, *_):
        gate, up = x[..., ::2].clamp(-1, 7), x[..., 1::2].clamp(-7, 7)
        return gate * torch.sigmoid(1.702 * gate) * (up + 1)

    monkeypatch.setattr(moe, "swiglu", clamped)


def paired_rope(_, monkeypatch):
    def neighbours(x, cosine, sine):
        first, second = x[..., ::2], x[..., 1::2]
        return torch.stack(
            [first * cosine - second * sine, second * cosine + first * sine], -1
        ).flatten(-2)

    monkeypatch.setattr("crawl2cart.lm.models.gpt_oss.rope", neighbours)


def swapped_query_groups(model, monkeypatch):
    def attention(q, k, v, *rest):
        return attention_module.attention_with_sink_row(q, k.flip(1), v.flip(1), *rest)

    monkeypatch.setattr("crawl2cart.lm.models.gpt_oss.attention_with_sink_row", attention)


@pytest.mark.parametrize(
    "damage",
    [
        off_by_one_window,
        swapped_parity,
        dropped_sink,
        untransposed_down,
        halved_gates,
        softmax_before_topk,
        lower_clamp_on_the_gate,
        paired_rope,
        swapped_query_groups,
    ],
)
def test_a_wrong_architecture_is_noticed(pair, monkeypatch, damage):
    model, reference = pair
    changed = GptOss(model.config, VOCABULARY)
    changed.load_state_dict(model.state_dict())
    damage(changed, monkeypatch)
    assert difference((changed, reference)) > 0.05


def test_a_missing_window_shows_only_beyond_it(pair):
    model, reference = pair
    changed = GptOss(model.config, VOCABULARY)
    changed.load_state_dict(model.state_dict())
    for block in changed.blocks:
        block.window = None
    assert difference((changed, reference), TOKENS[:, :8]) < 5e-4
    assert difference((changed, reference), TOKENS) > 0.05


@pytest.mark.parametrize("wrong", ["no concentration", "truncated"])
def test_wrong_yarn_is_noticed(pair, monkeypatch, wrong):
    if pair[0].config["rope_factor"] == 1:
        pytest.skip("YaRN with factor 1 has no concentration and no ramp")
    right = attention_module.frequencies
    rounded = {"ceil": math.ceil, "floor": math.floor}

    def frequencies(head_dim, factor, original_context, **others):
        if wrong == "no concentration":
            return right(head_dim, factor, original_context, **others)[0], 1.0
        low, high = (
            head_dim / 2 * math.log(original_context / (turns * 2 * math.pi)) / math.log(150_000)
            for turns in (32, 1)
        )
        low, high = rounded["floor"](low), rounded["ceil"](high)
        kept = 150_000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
        slowed = ((torch.arange(head_dim // 2) - low) / (high - low)).clamp(0, 1)
        return kept / factor * slowed + kept * (1 - slowed), 0.1 * math.log(factor) + 1

    monkeypatch.setattr(attention_module, "frequencies", frequencies)
    assert difference(pair) > 0.01


def test_ours_to_hugging_face_to_ours_is_the_identity(pair, tokenizer, tmp_path):
    model, reference = pair
    reference.save_pretrained(tmp_path)
    tokenizers.save_tokenizer(tokenizer, tmp_path)
    back = load_gpt_oss(tmp_path)
    assert back.config == model.config
    assert back.vocabulary == model.vocabulary == VOCABULARY
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name


def test_an_export_writes_out_what_readers_need(pair, tokenizer, tmp_path):
    save_model(pair[0], tmp_path, tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["GptOssForCausalLM"]
    assert config["layer_types"] == ["sliding_attention", "full_attention"] * 2
    assert config["output_router_logits"] is False
    assert config["rope_parameters"]["truncate"] is False
    assert config["vocab_size"] == 320
    stops = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert [tokenizer.decode([number]) for number in stops] == [
        "<|return|>",
        "<|call|>",
        "<|endoftext|>",
    ]


def test_an_export_s_config_has_every_field_that_transformers_knows(pair, tokenizer, tmp_path):
    save_model(pair[0], tmp_path, tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    fields = {field.name for field in dataclasses.fields(GptOssConfig)} & set(
        GptOssConfig().to_dict()
    )
    assert {
        "sliding_window",
        "rms_norm_eps",
        "attention_bias",
        "tie_word_embeddings",
        "router_aux_loss_coef",
    } < fields
    assert not fields - set(config), "left to readers' defaults"
    read = json.loads(GptOssConfig.from_pretrained(tmp_path).to_json_string(use_diff=False))
    assert {name: read[name] for name in fields} == {name: config[name] for name in fields}


ANSWER = """
import json, sys
sys.modules["crawl2cart"] = None   # to import anything of the project is an error
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer(prompt, return_tensors="pt")
options = {"max_new_tokens": 12, "do_sample": False}
# Random weights may choose an id that only pads the table.
options["suppress_tokens"] = list(range(len(tokenizer), model.config.vocab_size))
ids = model.generate(**inputs, **options)[0, inputs.input_ids.size(1):]
print(json.dumps({"ids": ids.tolist(), "text": tokenizer.decode(ids)}))
"""


def test_transformers_alone_loads_an_export_and_answers(tokenizer, tmp_path):
    model = shaken(make("gpt_oss"))
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    folder.mkdir(), elsewhere.mkdir()
    save_model(model, folder, tokenizer)
    command = [sys.executable, "-I", "-c", ANSWER, folder, "The kettle"]
    result = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    stops = [
        tokenizer.encode_single_token(token)
        for token in ("<|return|>", "<|call|>", "<|endoftext|>")
    ]
    prompt = tokenizer.encode_ordinary("The kettle")
    (ours,) = Engine(model).generate([prompt], 12, stops, temperature=0)
    assert answer == {"ids": ours, "text": tokenizer.decode(ours)}


def test_a_gpt_oss_that_differs_is_refused_by_name(pair, tokenizer, tmp_path):
    save_model(pair[0], tmp_path, tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"]["truncate"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="truncate"):
        load_gpt_oss(tmp_path)


def test_transformers_generates_what_we_do(pair):
    model, reference = pair
    prompt = TOKENS[:1, :40]
    ours = Engine(model).generate(prompt.tolist(), 20, temperature=0)
    theirs = reference.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        suppress_tokens=list(range(VOCABULARY, pad_vocab(VOCABULARY))),
    )
    assert ours[0] == theirs[0, 40:].tolist()


# openai's own checkpoints


def packed(weight: torch.Tensor, scale: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return random MXFP4 in the shape of weight (…, n · 32): blocks, scales, and the values meant.

    The values follow the format's definition.
    """
    random = torch.Generator().manual_seed(12)
    codes = torch.randint(0, 16, weight.shape, generator=random)
    scales = torch.randint(
        scale - 3, scale + 3, (*weight.shape[:-1], weight.size(-1) // 32), generator=random
    ).to(torch.uint8)
    exponent, mantissa = codes >> 1 & 3, codes & 1
    # E2M1: exponent 0 is subnormal, 0 or ½; others (1 + m / 2) · 2^(exponent - 1)
    size = torch.where(exponent == 0, mantissa / 2, (1 + mantissa / 2) * 2.0 ** (exponent - 1))
    meant = torch.where(codes & 8 > 0, -size, size) * 2.0 ** (
        scales.repeat_interleave(32, -1).float() - 127
    )
    blocks = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8).unflatten(-1, (-1, 16))
    return blocks, scales, meant


def test_four_bit_blocks_are_read_by_the_equations():
    blocks, scales, meant = packed(torch.empty(3, 2, 64), 127)
    assert torch.equal(mxfp4(blocks, scales), meant)
    high_first = mxfp4(blocks >> 4 | blocks << 4, scales)
    assert not torch.equal(high_first, meant)


@pytest.fixture
def openai_folder(tmp_path) -> tuple[Path, GptOss]:
    """A folder as openai publishes it, and the model of ours with the same values."""
    model = shaken(
        make(
            "gpt_oss",
            num_layers=2,
            hidden_size=64,
            intermediate_size=32,
            rope_factor=32.0,
            max_position_embeddings=131072,
        )
    )
    theirs = {
        "embedding.weight": model.embedding[:VOCABULARY],
        "norm.scale": model.norm,
        "unembedding.weight": model.head[:VOCABULARY],
    }
    with torch.no_grad():
        model.embedding[VOCABULARY:] = 0
        model.head[VOCABULARY:] = 0
        for number, block in enumerate(model.blocks):

            def put(name, tensor, number=number):
                theirs[f"block.{number}.{name}"] = tensor

            put("attn.norm.scale", block.attention_norm)
            put("attn.qkv.weight", torch.cat([block.query, block.key, block.value]))
            put("attn.qkv.bias", torch.cat([block.query_bias, block.key_bias, block.value_bias]))
            put("attn.sinks", block.sinks)
            put("attn.out.weight", block.output)
            put("attn.out.bias", block.output_bias)
            put("mlp.norm.scale", block.expert_norm)
            put("mlp.gate.weight", block.router)
            put("mlp.gate.bias", block.router_bias)
            put("mlp.mlp1_bias", block.gate_up_bias)
            put("mlp.mlp2_bias", block.down_bias)
            for name, weight in (("mlp1", block.gate_up), ("mlp2", block.down)):
                blocks, scales, meant = packed(weight.mT, 123)
                put(f"mlp.{name}_weight.blocks", blocks)
                put(f"mlp.{name}_weight.scales", scales)
                weight.copy_(meant.mT)
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in theirs.items()},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "num_hidden_layers": 2,
                "num_experts": 8,
                "experts_per_token": 3,
                "vocab_size": VOCABULARY,
                "hidden_size": 64,
                "intermediate_size": 32,
                "swiglu_limit": 7.0,
                "head_dim": 16,
                "num_attention_heads": 6,
                "num_key_value_heads": 2,
                "sliding_window": 8,
                "initial_context_length": 4096,
                "rope_theta": 150000,
                "rope_scaling_factor": 32.0,
                "rope_ntk_alpha": 1,
                "rope_ntk_beta": 32,
            }
        )
    )
    return tmp_path, model


def test_openai_s_own_checkpoint_is_read(openai_folder):
    folder, model = openai_folder
    back = load_openai(folder)
    assert back.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_constants_of_an_openai_checkpoint_are_read_or_those_of_gpt_oss(openai_folder):
    folder, model = openai_folder
    config = json.loads((folder / "config.json").read_text())
    names = {
        "rope_theta": "rope_theta",
        "rope_ntk_alpha": "rope_beta_slow",
        "rope_ntk_beta": "rope_beta_fast",
        "swiglu_limit": "swiglu_limit",
    }
    others = {key: 3 * config.pop(key) for key in names}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_openai(folder).config == model.config
    (folder / "config.json").write_text(json.dumps(config | others))
    read = load_openai(folder).config
    assert {key: read[names[key]] for key in names} == others


def test_a_checkpoint_that_is_not_whole_is_named(openai_folder):
    folder, _ = openai_folder
    tensors = load_file(folder / "model.safetensors")
    del tensors["block.1.attn.sinks"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"no tensor 'block\.1\.attn\.sinks'"):
        load_openai(folder)


def test_the_hub_s_folder_with_four_bit_experts_in_several_files_is_read(
    openai_folder, tokenizer, tmp_path_factory
):
    _, model = openai_folder
    folder = tmp_path_factory.mktemp("hub")
    save_model(model, folder, tokenizer)
    tensors = load_file(folder / "model.safetensors")
    for layer, name in (
        (layer, name) for layer in range(2) for name in ("gate_up_proj", "down_proj")
    ):
        key = f"model.layers.{layer}.mlp.experts.{name}"
        blocks, scales, meant = packed(tensors.pop(key).mT, 123)
        tensors |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    for number, part in enumerate((names[::2], names[1::2])):
        save_file(
            {name: tensors[name] for name in part},
            folder / f"model-0000{number}-of-00002.safetensors",
        )
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"] = config.pop("rope_parameters")
    config["rope_theta"] = config["rope_scaling"].pop("rope_theta")
    (folder / "config.json").write_text(json.dumps(config))
    back = load_gpt_oss(folder)
    assert all(
        torch.equal(back.state_dict()[name], tensor) for name, tensor in model.state_dict().items()
    )
