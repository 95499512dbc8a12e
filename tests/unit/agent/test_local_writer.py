"""The local writer against transformers' `generate`, and its sampling."""

import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, GptOssForCausalLM

from crawl2cart.agent.agent import open_writer
from crawl2cart.agent.local_writer import open_folder, writer_of
from crawl2cart.core.device import Device
from crawl2cart.core.errors import UserError
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.formats.save import save_model
from crawl2cart.lm.models.gpt_oss import GptOss
from crawl2cart.lm.models.init import initialise
from crawl2cart.shop.tool_schemas import TOOLS
from tests import recorded_dialogues as recorded
from tests.conftest import ROOT

SIZES = {
    "num_layers": 3,
    "hidden_size": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "intermediate_size": 24,
    "num_experts": 4,
    "experts_per_token": 2,
    "sliding_window": 16,
    "max_position_embeddings": 4096,
    "rope_factor": 1.0,
    "router_aux_loss_coef": 0.01,
    "router_z_loss_coef": 0.0,
}
FLOAT32 = Device("cpu", torch.float32)
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random GPT-OSS whose logits differ enough that no two are nearly equal."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tokenizers.encoding(tokenizers.read_ranks(ROOT / "data/ranks/o200k_4096.tiktoken"))
    model = initialise(GptOss(SIZES, tokenizer.n_vocab), 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    save_model(model, folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def prompts() -> list[list[dict]]:
    """Conversations of different lengths."""
    turns = random.Random(1).sample(recorded.turns("test"), 3)
    return [turn["prompt"] for turn in turns]


@pytest.fixture(scope="module")
def greedy(folder, prompts) -> list[str]:
    return open_folder(folder, FLOAT32, NEW_TOKENS)(prompts, TOOLS)


def test_a_batch_equals_what_transformers_generates_one_by_one(folder, prompts, greedy):
    """In float32: padding, the shared prefix and rows that leave the batch change nothing."""
    model = GptOssForCausalLM.from_pretrained(folder, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(harmony.STOPS)),
        pad_token_id=0,
    )
    for prompt, text in zip(prompts, greedy, strict=True):
        rendered = harmony.render(prompt, TOOLS, add_generation_prompt=True)
        ids = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")
        new = model.generate(**ids, generation_config=config)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(new) == text
    assert writer_of(model, tokenizer, FLOAT32, NEW_TOKENS)(prompts, TOOLS) == greedy


def test_on_text_gets_the_growing_text(folder, prompts, greedy):
    texts: list[str] = []
    open_folder(folder, FLOAT32, NEW_TOKENS)(prompts[:1], TOOLS, texts.append)
    assert len(texts) > 1 and texts[-1] == greedy[0].rstrip("\ufffd")
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))


def test_threads_may_share_a_writer(folder, prompts, greedy):
    shared = open_folder(folder, FLOAT32, NEW_TOKENS)
    with ThreadPoolExecutor(len(prompts)) as threads:
        texts = list(threads.map(lambda prompt: shared([prompt], TOOLS)[0], prompts))
    assert texts == greedy


def test_samples_follow_the_seed_and_a_tiny_top_p_is_greedy(folder, prompts, greedy):
    def sample(seed: int, top_p: float = 1.0) -> list[str]:
        writer = open_folder(folder, FLOAT32, NEW_TOKENS, 1.0, seed, top_p)
        return writer(prompts, TOOLS)

    first = sample(seed=1)
    assert first == sample(seed=1) and first != sample(seed=2)
    assert sample(seed=1, top_p=1e-6) == greedy != first


def test_a_model_that_was_never_taught_to_talk_is_refused(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="chat_template"):
        open_writer(str(folder))
