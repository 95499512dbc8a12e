"""Constrained decoding: the grammar holds every recorded turn, and nothing that the tools' schemas do not."""

import random

import pytest

pytest.importorskip("llguidance", reason="needs llguidance of requirements.txt")

import torch
from transformers import AutoTokenizer

from crawl2cart.agent.constrained import Guide
from crawl2cart.agent.local_writer import LocalWriter
from crawl2cart.core.device import open_device
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.inference.hf_engine import HfEngine
from crawl2cart.shop.tool_schemas import TOOLS, is_valid_call
from tests.conftest import ROOT, dialogue_generator

WIDTH = 4160  # of the exported model's logits: more than there are tokens
PROMPT = 7


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.save_tokenizer(
        tokenizers.encoding(tokenizers.read_ranks(ROOT / "data/ranks/o200k_4096.tiktoken")), folder
    )
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def guide(tokenizer) -> Guide:
    return Guide(tokenizer, WIDTH)


def test_every_recorded_turn_is_allowed_token_by_token(guide, tokenizer):
    maker = dialogue_generator(ROOT / "data/store", 6)
    turns = [
        harmony.completion(message)
        for dialogue in maker.split("test", 40)
        for message in dialogue["messages"]
        if message["role"] == "assistant"
    ]
    for turn in turns:
        allowed, so_far = guide(TOOLS, 1), [0] * PROMPT
        for token in tokenizer.encode(turn, add_special_tokens=False):
            logits = allowed(torch.tensor([so_far]), torch.zeros(1, WIDTH))
            assert logits[0, token] == 0, (turn, tokenizer.decode([token]))
            so_far.append(token)


def test_whatever_a_model_prefers_its_calls_fit_the_schemas(guide, tokenizer):
    """Random preferences, with a liking for what ends a text: otherwise they would write for ever."""
    rows = 48
    ends = [
        token
        for text, token in tokenizer.get_vocab().items()
        if set(text) & set('"]}') or token in tokenizer.all_special_ids
    ]
    stops = set(tokenizer.convert_tokens_to_ids(list(harmony.STOPS)))
    torch.manual_seed(0)
    allowed, so_far, done = (
        guide(TOOLS, rows),
        torch.zeros(rows, PROMPT, dtype=torch.long),
        torch.zeros(rows, dtype=torch.bool),
    )
    for _ in range(120):
        liking = 3 * torch.randn(rows, WIDTH)
        liking[:, ends] += 6
        chosen = allowed(so_far, liking).argmax(-1).where(~done, tokenizer.pad_token_id)
        so_far = torch.cat([so_far, chosen[:, None]], 1)
        done |= torch.tensor([token in stops for token in chosen.tolist()])
    assert done.float().mean() > 0.8
    called = set()
    for row in so_far[done, PROMPT:].tolist():
        read = harmony.parse_completion(tokenizer.decode(row))
        for call in (call["function"] for call in read.get("tool_calls", [])):
            assert is_valid_call(call)
            called.add(call["name"])
    assert len(called) >= 4


def test_a_model_that_never_learnt_anything_writes_in_the_form(guide, tokenizer):
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    model = GptOssForCausalLM(
        GptOssConfig(
            vocab_size=WIDTH,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=32,
            num_local_experts=2,
            num_experts_per_tok=1,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    tokenizer.chat_template = harmony.TEMPLATE
    prompts = [
        [{"role": "user", "content": text}]
        for text in ("hello", "cancel TB-10984 please", "a kettle?", "who are you?")
    ]
    for constrained, right in ((guide, 4), (None, 0)):
        answerer = LocalWriter(
            HfEngine(model, tokenizer.pad_token_id),
            tokenizer,
            open_device("cpu", "float32", 1, 0),
            max_new_tokens=12,
            temperature=1.0,
            guide=constrained,
        )
        texts = answerer(prompts, TOOLS)
        assert (
            sum(
                text.startswith(("<|channel|>final<|message|>", " to=functions.")) for text in texts
            )
            == right
        )


def test_a_free_model_would_not_keep_to_the_form(tokenizer):
    """The control: the same preferences without the grammar."""
    draw = random.Random(0)
    texts = [
        tokenizer.decode([draw.randrange(len(tokenizer)) for _ in range(40)]) for _ in range(48)
    ]
    assert all(isinstance(harmony.parse_completion(text), harmony.Malformed) for text in texts)
