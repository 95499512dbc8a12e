"""A recurrent language model around any cell: Elman's (rnn.py), LSTM (lstm.py) or GRU (gru.py).

    x_0 = embedding[tokens],   x_{l+1} = x_l + layer_l(norm(x_l)),   logits = head norm(x_L)

The products of all inputs with W are one matrix product. Only the product with h_{t-1} waits for
time. The backward pass is written out for the same reason: the gradient of U is one product, where
autograd would make one a step. Appleyard et al. 2016, https://arxiv.org/abs/1604.01946.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from crawl2cart.lm.models.config import complete_config
from crawl2cart.lm.models.init import (
    Init,
    ParamSpec,
    constant,
    fan_in,
    normal,
    orthogonal,
    pad_vocab,
)
from crawl2cart.lm.training.losses import linear_cross_entropy

# Time steps that a GPU runs in one compiled piece. More have less overhead and compile longer.
CHUNK = 8


class Cell(Protocol):
    """The equations of one time step, forward and backward. All tensors of a step are (B, …).

    The first state is h, the cell's output. The product U h_{t-1} is `gates` blocks of size H.
    """

    name: str
    gates: int  # H-sized blocks of W x, and of U h
    states: int  # vectors carried from step to step
    product_bias: bool  # whether the recurrent product's last block has a bias of its own
    init_bias: Init

    @staticmethod
    def forward(x: Tensor, u: Tensor, bias: Tensor | None, *state: Tensor) -> tuple[tuple, tuple]:
        """W x + b (B, gates·H), U, the product's bias, states before -> states after, saved."""

    @staticmethod
    def slopes(states: tuple[Tensor, ...], *saved: Tensor) -> tuple[Tensor, ...]:
        """Everything of backward that does not wait for time, for n steps at once.

        states (n + 1, B, H): the one before the first step included. saved (n, …).
        """

    @staticmethod
    def backward(d_state: tuple, u: Tensor, *slopes: Tensor) -> tuple[tuple, tuple]:
        """Gradients of the states after a step -> of (W x + b, U h + c), and of the states before.

        Where these two sums have the same gradient it is given once.
        """


def forward_steps(
    cell: type[Cell], x: Tensor, u: Tensor, bias: Tensor | None, state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Run the cell over x (n, B, gates·H). Returns every state and saved tensor of all n steps."""
    steps = []
    for x_t in x:
        state, saved = cell.forward(x_t, u, bias, *state)
        steps.append((*state, *saved))
    return tuple(torch.stack(step_values) for step_values in zip(*steps, strict=True))


def backward_steps(
    cell: type[Cell],
    d_h: Tensor,
    u: Tensor,
    states: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    d_state: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Run the cell backward over n steps, the last one first.

    d_h (n, B, H) reaches each h from above, d_state (B, H) each state from later steps.
    Returns the gradients of the sums (n, B, gates·H), then those of the states before.
    """
    slopes, sums = cell.slopes(states, *saved), []
    for t in reversed(range(len(d_h))):
        d_state = (d_state[0] + d_h[t], *d_state[1:])
        d_sums, d_state = cell.backward(d_state, u, *(slope[t] for slope in slopes))
        sums.append(d_sums)
    return *(torch.stack(parts[::-1]) for parts in zip(*sums, strict=True)), *d_state


@cache
def compiled(steps: Callable) -> Callable:
    return torch.compile(steps, dynamic=False)


def run_steps(steps: Callable, length: int, on_gpu: bool) -> Callable:
    """Return `steps` compiled for whole chunks on a GPU, where launching kernels takes the time.

    Other lengths and generation run it as it is: each new shape would be compiled anew.
    """
    whole = length == CHUNK and not torch.is_inference_mode_enabled()
    return compiled(steps) if on_gpu and whole else steps


class Scan(torch.autograd.Function):
    """All time steps of one layer, in chunks of so many steps.

    x (T, B, gates·H) = W x + b of every step, u (gates·H, H), bias (H,) of the product's last block
    or None, state (B, H) each -> h of every step (T, B, H), and the other states after the last.
    """

    @staticmethod
    def forward(
        ctx, cell: type[Cell], chunk: int, x: Tensor, u: Tensor, bias: Tensor | None, *state: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.cell, ctx.chunk, ctx.has_bias = cell, chunk, bias is not None
        if bias is not None:
            bias = torch.cat([bias.new_zeros(len(u) - len(bias)), bias])
        # Detached and contiguous like all later ones, so that chunks are compiled once.
        x, u, *state = (tensor.detach() for tensor in (x, u, *state))
        last, chunks = tuple(start.contiguous() for start in state), []
        for part in x.split(chunk):
            run = run_steps(forward_steps, len(part), x.is_cuda)
            chunks.append(run(cell, part, u, bias, last))
            last = tuple(after[-1] for after in chunks[-1][: cell.states])
        steps = [join(parts) for parts in zip(*chunks, strict=True)]
        pairs = zip(state, steps[: cell.states], strict=True)
        states = [torch.cat([start[None], after]) for start, after in pairs]
        ctx.save_for_backward(u, *states, *steps[cell.states :])
        return states[0][1:], *(after[-1].clone() for after in states[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, d_h: Tensor, *d_last: Tensor) -> tuple[Tensor | None, ...]:
        cell = ctx.cell
        u, *kept = ctx.saved_tensors
        states, saved = kept[: cell.states], kept[cell.states :]
        d_state, chunks = (torch.zeros_like(states[0][0]), *d_last), []
        for start in reversed(range(0, len(d_h), ctx.chunk)):
            stop = min(start + ctx.chunk, len(d_h))
            run = run_steps(backward_steps, stop - start, d_h.is_cuda)
            results = run(
                cell,
                d_h[start:stop],
                u,
                tuple(state[start : stop + 1] for state in states),
                tuple(values[start:stop] for values in saved),
                d_state,
            )
            d_state = results[-cell.states :]
            chunks.append(results[: -cell.states])
        d_sums = [join(parts[::-1]) for parts in zip(*chunks, strict=True)]
        d_product = d_sums[-1].flatten(0, 1)  # (T·B, gates·H)
        d_u = d_product.T @ states[0][:-1].flatten(0, 1)
        d_bias = d_product[:, -u.size(1) :].sum(0) if ctx.has_bias else None
        return None, None, d_sums[0], d_u, d_bias, *d_state


def join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def rms_norm(x: Tensor) -> Tensor:
    """Return x / √(mean x²) over the last dimension. Zhang & Sennrich 2019, arXiv 1910.07467.

    With it a layer's input has size 1 at any depth, though each layer adds to its input.
    Plainly stacked cells shrink their input and learn more slowly.
    """
    return F.rms_norm(x, x.shape[-1:])


class Layer(nn.Module):
    """One recurrent layer. Its parameters are uninitialised until `initialise` fills them."""

    def __init__(self, cell: type[Cell], width: int):
        super().__init__()
        self.cell = cell
        self.input = nn.Parameter(torch.empty(cell.gates * width, width))
        self.recurrent = nn.Parameter(torch.empty(cell.gates * width, width))
        self.bias = nn.Parameter(torch.empty(cell.gates * width))
        self.recurrent_bias = nn.Parameter(torch.empty(width)) if cell.product_bias else None

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """x (T, B, H), state (B, H) each -> h of all steps (T, B, H), the states after the last."""
        z = F.linear(x, self.input, self.bias)  # under autocast in its dtype, which the scan keeps
        u, bias = self.recurrent.to(z.dtype), self.recurrent_bias
        bias = None if bias is None else bias.to(z.dtype)
        chunk = CHUNK if x.is_cuda else len(x)
        h, *others = Scan.apply(self.cell, chunk, z, u, bias, *(part.to(z.dtype) for part in state))
        return h, h[-1], *others


class RecurrentLM(nn.Module):
    """A recurrent language model.

    cell: Elman, Lstm or Gru. vocabulary: number of token ids.
    config: hidden_size, num_layers, and dropout: the share dropped of each layer's input and of the
    last output (Zaremba et al. 2014, arXiv 1409.2329). Raises ValueError if one of them is missing.
    Parameters are uninitialised memory until `initialise` or a state dict fills them.
    """

    def __init__(self, cell: type[Cell], config: Mapping, vocabulary: int):
        super().__init__()
        self.name, self.vocabulary = cell.name, vocabulary
        self.config = complete_config(cell.name, config, ("hidden_size", "num_layers", "dropout"))
        width, rows = config["hidden_size"], pad_vocab(vocabulary)
        self.embedding = nn.Parameter(torch.empty(rows, width))
        self.layers = nn.ModuleList(Layer(cell, width) for _ in range(config["num_layers"]))
        self.head = nn.Parameter(torch.empty(rows, width))
        self.states = cell.states
        self.PARAMS = {
            "embedding": ParamSpec(normal(1.0), decay=False),
            "input": ParamSpec(fan_in(), decay=True),
            "recurrent": ParamSpec(orthogonal, decay=True),
            "bias": ParamSpec(cell.init_bias, decay=False),
            "recurrent_bias": ParamSpec(constant(0.0), decay=False),
            "head": ParamSpec(normal(0.02), decay=True),
        }

    def init_state(self, batch: int) -> Tensor:
        """Return the state before the first token, zeros (batch, layers, states of a cell, H)."""
        width = self.embedding.size(1)
        return self.embedding.new_zeros(batch, len(self.layers), self.states, width)

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens (B, T) -> hidden (B, T, H) and the state after them."""
        state = self.init_state(len(tokens)) if state is None else state
        x = F.embedding(tokens.T, self.embedding)  # (T, B, H): a step's rows lie together
        after = []
        for layer, before in zip(self.layers, state.unbind(1), strict=True):
            out, *last = layer(self.drop(rms_norm(x)), *before.unbind(1))
            x = x + out
            after.append(torch.stack(last, 1))
        return self.drop(rms_norm(x)).transpose(0, 1), torch.stack(after, 1)

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config["dropout"], self.training)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, H) -> (…, vocabulary), without the ids that only pad the table."""
        return F.linear(hidden, self.head[: self.vocabulary])

    def loss(
        self, tokens: Tensor, targets: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mean nats per target, and the state cut off from the graph.

        Backpropagation through time stops there. Ids that pad the table count in the softmax.
        """
        hidden, state = self(tokens, state)
        return linear_cross_entropy(hidden, self.head, targets), state.detach()
