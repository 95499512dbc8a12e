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
    "mlp": {"context_size": 5, "embedding_size": 16, "hidden_size": 32},
    "rnn": {"hidden_size": 24, "num_layers": 2, "dropout": 0.0},
    "lstm": {"hidden_size": 24, "num_layers": 2, "dropout": 0.0},
    "gru": {"hidden_size": 24, "num_layers": 2, "dropout": 0.0},
    # Widths that differ from each other where a transposed or swapped tensor would otherwise fit.
    "gpt_oss": {
        "num_layers": 4,
        "hidden_size": 48,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 40,
        "num_experts": 8,
        "experts_per_token": 3,
        "sliding_window": 8,
        "max_position_embeddings": 4096,
        "rope_factor": 1.0,
        "router_aux_loss_coef": 0.0,
        "router_z_loss_coef": 0.0,
    },
}


def small_tokenizer() -> Encoding:
    return tokenizers.encoding(tokenizers.read_ranks(RANKS, 300))


def make(name: str, **changes) -> nn.Module:
    assert not changes.keys() - SIZES[name].keys(), "a config key that the model does not have"
    return initialise(MODELS[name]({**SIZES[name], **changes}, VOCABULARY), seed=1)


def shaken(model: nn.Module, deviation: float = 0.3) -> nn.Module:
    """Move every parameter far from its start, zeros too, which would hide errors."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, deviation)
    return model


def some_tokens(rows: int, length: int, seed: int = 3) -> torch.Tensor:
    """Return random ids, none of them <|endoftext|>, which transformers gives no gradient."""
    return torch.randint(0, 300, (rows, length), generator=torch.Generator().manual_seed(seed))
