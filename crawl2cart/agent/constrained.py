"""Constrained decoding: a model may write a reply, or a call whose arguments fit the tool's schema, and nothing else.

An option of the local writer (`demo.constrained`): what is measured and trained is the free model. llguidance compiles the harmony form
and the JSON schemas into one grammar and says before each token which may follow. https://github.com/guidance-ai/llguidance
"""

import json
from collections.abc import Sequence

import numpy as np
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from crawl2cart.core.errors import UserError

# JSON as calls are written in training: no spaces.
COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}


def grammar(tools: Sequence[dict]) -> str:
    """What may stand behind `<|start|>assistant`, in llguidance's Lark.

    Properties come in the order of the alphabet, as in the recorded calls: a grammar fixes their order.
    """
    rules = []
    for tool in (tool["function"] for tool in tools):
        schema = tool["parameters"] | {
            "properties": dict(sorted(tool["parameters"]["properties"].items())),
            "x-guidance": COMPACT,
        }
        rules.append(
            f'{tool["name"]}: " to=functions.{tool["name"]}" <|channel|> "commentary " <|constrain|> "json" <|message|> '
            f"%json {json.dumps(schema)} <|call|>"
        )
    names = " | ".join(tool["function"]["name"] for tool in tools)
    return "\n".join(
        [f"start: reply | {names}", 'reply: <|channel|> "final" <|message|> /(.|\\n)+/', *rules]
    )


class Guide:
    """guide(tools, rows) is what keeps one `generate` of so many rows to the grammar. vocabulary: width of the model's logits."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int):
        self.tokens = from_tokenizer(tokenizer, n_vocab=vocabulary)
        self.vocabulary = vocabulary

    def __call__(self, tools: Sequence[dict], rows: int) -> LogitsProcessor:
        return Allowed(self, grammar(tools), rows)


class Allowed(LogitsProcessor):
    """Sets the logits of all tokens that may not follow to −inf."""

    def __init__(self, guide: Guide, text: str, rows: int):
        self.matchers = [LLMatcher(guide.tokens, text) for _ in range(rows)]
        if self.matchers[0].is_error():
            raise UserError(f"The tools' schemas make no grammar: {self.matchers[0].get_error()}")
        self.mask = allocate_token_bitmask(rows, guide.vocabulary)  # (B, V / 32) int32
        self.vocabulary, self.started = guide.vocabulary, False

    def __call__(self, tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """tokens (B, T) so far, prompt included; logits (B, V)."""
        for row, matcher in enumerate(self.matchers):
            if self.started and not matcher.is_stopped():
                matcher.consume_token(int(tokens[row, -1]))
            if matcher.is_stopped():
                self.mask[row] = -1  # it is done, and padded from here
            else:
                fill_next_token_bitmask(matcher, self.mask, row)
        self.started = True
        allowed = np.unpackbits(self.mask.view(np.uint8), axis=1, bitorder="little")[
            :, : self.vocabulary
        ]
        return logits.masked_fill(torch.from_numpy(allowed == 0).to(logits.device), -torch.inf)
