"""The five models, small, for tests."""

import torch
from tiktoken import Encoding
from torch import nn

from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats.save import MODELS
from crawl2cart.lm.models.init import initialise
from tests.conftest import ROOT

RANKS = ROOT / "data" / "ranks" / "o200k_4096.tiktoken"
VOCABULARY = 309
SIZES = {
    "mlp": {"window": 5, "embedding": 16, "hidden": 32},
    "rnn": {"width": 24, "layers": 2, "dropout": 0.0},
    "lstm": {"width": 24, "layers": 2, "dropout": 0.0},
    "gru": {"width": 24, "layers": 2, "dropout": 0.0},
    # Widths that differ from each other where a transposed or swapped tensor would otherwise fit.
    "gpt_oss": {"layers": 4, "width": 48, "heads": 6, "key_value_heads": 2, "head_size": 16, "expert_width": 40, "experts": 8,
                "experts_per_token": 3, "window": 8, "max_context": 4096, "rope_factor": 1.0, "balance": 0.0,
                "z_loss": 0.0},
}


def small_tokenizer() -> Encoding:
    return tokenizers.encoding(tokenizers.read_ranks(RANKS, 300))


def make(name: str, **changes) -> nn.Module:
    return initialise(MODELS[name]({**SIZES[name], **changes}, VOCABULARY), seed=1)


def shaken(model: nn.Module, deviation: float = 0.3) -> nn.Module:
    """The model with every parameter far from its start, biases and sinks too: what is zero hides what is wrong."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, deviation)
    return model


def some_tokens(rows: int, length: int, seed: int = 3) -> torch.Tensor:
    """Random ids without <|endoftext|>, whose embedding transformers gives no gradient since it pads with it."""
    return torch.randint(0, 300, (rows, length), generator=torch.Generator().manual_seed(seed))
