"""How parameters start, by name, and which of them weight decay holds small.

Each model lists a rule for every parameter it has; one without a rule is an error, not a default.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

# Fills a parameter. The module that holds it comes last, for what depends on more than the parameter's shape.
Init = Callable[[Tensor, Generator, nn.Module], None]
# Matrix products are fastest when no dimension leaves a remainder (NVIDIA's and oneDNN's guides both say 64).
VOCABULARY_MULTIPLE = 64


@dataclass(frozen=True)
class ParamSpec:
    """init: fills the parameter. decay: whether weight decay applies (to matrices, not to biases, norms, tables)."""

    init: Init
    decay: bool


def normal(deviation: float) -> Init:
    return lambda tensor, generator, _: tensor.normal_(0, deviation, generator=generator)


def fan_in(dim: int = -1) -> Init:
    """N(0, 1/n) with n the size of `dim`, the one that products sum over: keeps the size of activations."""
    return lambda tensor, generator, _: tensor.normal_(
        0, 1 / math.sqrt(tensor.size(dim)), generator=generator
    )


def constant(value: float) -> Init:
    return lambda tensor, *_: tensor.fill_(value)


def orthogonal(tensor: Tensor, generator: Generator, *_: object) -> None:
    """Each square block of (n·H, H) orthogonal: a gradient keeps its length through time. Saxe et al. 2013, arXiv 1312.6120."""
    size = tensor.size(1)
    for block in tensor.split(size):
        q, r = torch.linalg.qr(torch.randn(size, size, generator=generator))
        block.copy_(q * r.diagonal().sign())


def param_spec(model: nn.Module, name: str) -> ParamSpec:
    """The rule for a parameter, found by the last word of its name. Raises KeyError if the model has none for it."""
    word = name.rpartition(".")[2]
    if word not in model.PARAMS:
        raise KeyError(
            f"{type(model).__name__} has a parameter {name} but no rule for how it starts: add {word!r} to PARAMS"
        )
    return model.PARAMS[word]


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> nn.Module:
    """Fills every parameter by its rule. The same seed gives the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        start = torch.empty(parameter.shape, dtype=torch.float32)
        param_spec(model, name).init(start, generator, model.get_submodule(name.rpartition(".")[0]))
        parameter.copy_(start)
    return model


def pad_vocab(vocabulary: int) -> int:
    """Rows of an embedding and a head for so many token ids. The ids above are never targets and never sampled."""
    return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
