"""A tiny GPT-OSS that knows a few turns by heart, for tests of what follows training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.training.trl_utils import save_merged
from crawl2cart.shop.tool_schemas import TOOLS
from tests.conftest import ROOT

if TYPE_CHECKING:
    from tiktoken import Encoding
    from transformers import PreTrainedModel

IGNORE = -100


def small_model(table: Encoding) -> PreTrainedModel:
    """Make a random gpt_oss of two small layers in transformers' form."""
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    pad = table.encode_single_token("<|endoftext|>")
    config = GptOssConfig(
        vocab_size=table.n_vocab,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_local_experts=2,
        num_experts_per_tok=1,
        sliding_window=64,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=pad,
        bos_token_id=pad,
        eos_token_id=table.encode_single_token("<|return|>"),
        output_router_logits=False,
    )
    return GptOssForCausalLM(config)


def teach(folder: Path, examples: list[dict], max_steps: int = 300) -> None:
    """Train two small layers until these turns are nearly certain; save them as the stages do."""
    from transformers import AutoTokenizer

    table = tokenizers.encoding(tokenizers.read_ranks(ROOT / "data/ranks/o200k_4096.tiktoken"))
    model = small_model(table)
    ids, labels = batch(table, examples, model.config.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(max_steps):
        loss = model(input_ids=ids, labels=labels).loss
        if loss < 0.05:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05, "the model did not learn its turns"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizers.save_tokenizer(table, folder)
    (folder / "chat_template.jinja").write_text(harmony.TEMPLATE)
    save_merged(model, AutoTokenizer.from_pretrained(folder), folder)


def batch(table, examples: list[dict], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, (B, T) each; only the completions have labels."""
    rows = []
    for example in examples:
        prompt = harmony.render(example["prompt"], TOOLS, add_generation_prompt=True)
        ids = table.encode(prompt, allowed_special="all")
        completion = harmony.completion(example["completion"][0])
        written = table.encode(completion, allowed_special="all")
        rows.append((ids + written, [IGNORE] * len(ids) + written))
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORE] * (longest - len(labels)) for _, labels in rows])
    return ids, labels
