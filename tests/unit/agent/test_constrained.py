"""The grammar allows every recorded turn, and nothing that the tools' schemas forbid."""

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
from tests import recorded_dialogues as recorded
from tests.conftest import ROOT

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
    for turn in recorded.right_texts(recorded.turns("test")[:100]):
        processor, ids = guide(TOOLS, 1), [0] * PROMPT
        for token in tokenizer.encode(turn, add_special_tokens=False):
            logits = processor(torch.tensor([ids]), torch.zeros(1, WIDTH))
            assert logits[0, token] == 0, (turn, tokenizer.decode([token]))
            ids.append(token)


def test_calls_fit_the_schemas_whatever_the_model_prefers(guide, tokenizer):
    """Preferences are random, with a bias to tokens that end a text, so that texts do end."""
    rows = 48
    ends = [
        token
        for text, token in tokenizer.get_vocab().items()
        if set(text) & set('"]}') or token in tokenizer.all_special_ids
    ]
    stops = set(tokenizer.convert_tokens_to_ids(list(harmony.STOPS)))
    torch.manual_seed(0)
    processor = guide(TOOLS, rows)
    ids, done = torch.zeros(rows, PROMPT, dtype=torch.long), torch.zeros(rows, dtype=torch.bool)
    for _ in range(120):
        logits = 3 * torch.randn(rows, WIDTH)
        logits[:, ends] += 6
        chosen = processor(ids, logits).argmax(-1).where(~done, tokenizer.pad_token_id)
        ids = torch.cat([ids, chosen[:, None]], 1)
        done |= torch.tensor([token in stops for token in chosen.tolist()])
    assert done.float().mean() > 0.8
    tools = set()
    for row in ids[done, PROMPT:].tolist():
        parsed = harmony.parse_completion(tokenizer.decode(row))
        for call in (call["function"] for call in parsed.get("tool_calls", [])):
            assert is_valid_call(call)
            tools.add(call["name"])
    assert len(tools) >= 4


def test_an_untrained_model_keeps_to_the_form_with_the_grammar_alone(guide, tokenizer):
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
        writer = LocalWriter(
            HfEngine(model, tokenizer.pad_token_id),
            tokenizer,
            open_device("cpu", "float32", 1, 0),
            max_new_tokens=12,
            temperature=1.0,
            guide=constrained,
        )
        texts = writer(prompts, TOOLS)
        assert (
            sum(
                text.startswith(("<|channel|>final<|message|>", " to=functions.")) for text in texts
            )
            == right
        )
