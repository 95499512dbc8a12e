"""Constrain decoding to replies, and to calls whose arguments fit the tool's JSON schema.

`demo.constrained` turns it on; training and evaluation use the unconstrained model. llguidance
compiles the harmony form and the schemas into one grammar and masks the tokens that may not come
next. https://github.com/guidance-ai/llguidance
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

# JSON without spaces, as in the training data.
COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}


def grammar(tools: Sequence[dict]) -> str:
    """Return the grammar of what may follow `<|start|>assistant`, in llguidance's Lark dialect.

    A grammar fixes the order of properties: alphabetical, as in the training data.
    """
    functions = [tool["function"] for tool in tools]
    rules = []
    for function in functions:
        name, parameters = function["name"], function["parameters"]
        properties = dict(sorted(parameters["properties"].items()))
        schema = parameters | {"properties": properties, "x-guidance": COMPACT}
        rules.append(
            f'{name}: " to=functions.{name}" <|channel|> "commentary " <|constrain|> "json" '
            f"<|message|> %json {json.dumps(schema)} <|call|>"
        )
    names = " | ".join(function["name"] for function in functions)
    reply = 'reply: <|channel|> "final" <|message|> /(.|\\n)+/'
    return "\n".join([f"start: reply | {names}", reply, *rules])


class Guide:
    """Make the logits processor for one `generate`: guide(tools, rows).

    vocab_size: the width of the model's logits, which may exceed the tokenizer's vocabulary.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int):
        self.tokens = from_tokenizer(tokenizer, n_vocab=vocab_size)
        self.vocab_size = vocab_size

    def __call__(self, tools: Sequence[dict], rows: int) -> LogitsProcessor:
        """Return a processor for a batch of `rows`. Raises UserError if a schema is unsupported."""
        return GrammarProcessor(self, grammar(tools), rows)


class GrammarProcessor(LogitsProcessor):
    """Set the logits of all tokens that the grammar forbids to −inf."""

    def __init__(self, guide: Guide, grammar_text: str, rows: int):
        self.matchers = [LLMatcher(guide.tokens, grammar_text) for _ in range(rows)]
        if self.matchers[0].is_error():
            raise UserError(
                f"llguidance cannot compile the tools' schemas: {self.matchers[0].get_error()} "
                "Mend the schema, or set demo.constrained to false."
            )
        self.mask = allocate_token_bitmask(rows, guide.vocab_size)  # (B, V / 32) int32
        self.vocab_size, self.started = guide.vocab_size, False

    def __call__(self, tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Mask the logits (B, V) of the token after `tokens` (B, T), prompt included."""
        for row, matcher in enumerate(self.matchers):
            if self.started and not matcher.is_stopped():
                matcher.consume_token(int(tokens[row, -1]))
            if matcher.is_stopped():
                self.mask[row] = -1  # all bits set: a finished row is padded with anything
            else:
                fill_next_token_bitmask(matcher, self.mask, row)
        self.started = True
        bits = np.unpackbits(self.mask.view(np.uint8), axis=1, bitorder="little")
        forbidden = torch.from_numpy(bits[:, : self.vocab_size] == 0).to(logits.device)
        return logits.masked_fill(forbidden, -torch.inf)
