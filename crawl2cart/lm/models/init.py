"""How each parameter starts, and whether weight decay applies to it.

Each model lists a rule for every parameter, by the last word of its name. A parameter without a
rule is an error: no default hides it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

# Fills a parameter. The module that holds it comes last, for rules that need more than its shape.
Init = Callable[[Tensor, Generator, nn.Module], None]
# Matrix products are fastest in multiples of 64 (guides of NVIDIA and oneDNN).
VOCABULARY_MULTIPLE = 64


@dataclass(frozen=True)
class ParamSpec:
    """init: fills the parameter. decay: whether weight decay applies (matrices only)."""

    init: Init
    decay: bool


def normal(deviation: float) -> Init:
    """Return a rule that draws from N(0, deviation²)."""
    return lambda tensor, generator, _: tensor.normal_(0, deviation, generator=generator)


def fan_in(dim: int = -1) -> Init:
    """Return a rule that draws from N(0, 1/n), which keeps the size of activations.

    dim: the dimension that products sum over, of size n.
    """

    def init(tensor: Tensor, generator: Generator, _: nn.Module) -> None:
        tensor.normal_(0, 1 / math.sqrt(tensor.size(dim)), generator=generator)

    return init


def constant(value: float) -> Init:
    """Return a rule that fills with one value."""
    return lambda tensor, *_: tensor.fill_(value)


def orthogonal(tensor: Tensor, generator: Generator, *_: object) -> None:
    """Make each square block of (n·H, H) orthogonal, so that gradients keep their length.

    Saxe et al. 2013, https://arxiv.org/abs/1312.6120.
    """
    size = tensor.size(1)
    for block in tensor.split(size):
        q, r = torch.linalg.qr(torch.randn(size, size, generator=generator))
        block.copy_(q * r.diagonal().sign())


def param_spec(model: nn.Module, name: str) -> ParamSpec:
    """Return the rule for a parameter. Raises KeyError if the model has none for it."""
    word = name.rpartition(".")[2]
    if word not in model.PARAMS:
        raise KeyError(
            f"{type(model).__name__} has no rule for how its parameter {name} starts. "
            f"Add {word!r} to PARAMS."
        )
    return model.PARAMS[word]


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> nn.Module:
    """Fill every parameter by its rule and return the model.

    The same seed gives the same numbers on every device. Raises KeyError for a parameter without
    a rule.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        start = torch.empty(parameter.shape, dtype=torch.float32)
        holder = model.get_submodule(name.rpartition(".")[0])
        param_spec(model, name).init(start, generator, holder)
        parameter.copy_(start)
    return model


def pad_vocab(vocabulary: int) -> int:
    """Return the rows of embedding and head for so many ids: the next multiple of 64.

    The ids above the vocabulary are never targets and never sampled.
    """
    return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
