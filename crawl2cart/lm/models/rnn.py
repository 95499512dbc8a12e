"""A recurrent language model with Elman's cell, h_t = tanh(W x_t + U h_{t-1} + b).

Elman 1990, https://doi.org/10.1207/s15516709cog1402_1. The products with x of all steps are one product; only the one with
h waits for time. The backward pass is written out for the same reason: it leaves one product for the gradient of U
where autograd would make one a step. Appleyard et al. 2016, https://arxiv.org/abs/1604.01946.
"""

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from crawl2cart.lm.models.init import ParamSpec, constant, fan_in, normal, orthogonal, pad_vocab
from crawl2cart.lm.training.losses import cross_entropy

# Steps that a GPU runs in one compiled piece: more take less time between them and longer to compile.
CHUNK = 8


@cache
def compiled(function: Callable) -> Callable:
    """The function of a piece and more, compiled for fixed shapes, once for all layers that have them.

    Shorter pieces and generation run it as it stands: every length and number of prompts would be compiled anew, which takes
    longer than they do, and after eight times (torch._dynamo.config.recompile_limit) nothing more is compiled, training neither.
    """
    of_piece = torch.compile(function, dynamic=False)

    def run(piece: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        whole = len(piece) == CHUNK and not torch.is_inference_mode_enabled()
        return (of_piece if whole else function)(piece, *others)

    return run


def cell_forward(z: Tensor, u: Tensor, h: Tensor) -> Tensor:
    """Some steps of one layer as the equation says them, for a GPU, where they are compiled: there it is the number of kernels that takes
    the time. z (n, B, H), u (H, H), h (B, H) -> h of each step (n, B, H)."""
    found = []
    for z_t in z:
        h = torch.addmm(z_t, h, u.T).tanh()
        found.append(h)
    return torch.stack(found)


def cell_backward(gradient: Tensor, u: Tensor, h: Tensor, dh: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `steps`, last step first. gradient (n, B, H) of each h (n, B, H), dh (B, H) comes back from later steps -> dz (n, B,
    H), dh for the steps before."""
    found = []
    for t in reversed(range(len(h))):
        dz = (dh + gradient[t]) * (1 - h[t] * h[t])
        dh = dz @ u
        found.append(dz)
    return torch.stack(found[::-1]), dh


class RnnScan(torch.autograd.Function):
    """All steps of one layer. z (T, B, H) = W x + b of every step, u (H, H), h0 (B, H) -> h (T, B, H)."""

    @staticmethod
    def forward(ctx, z: Tensor, u: Tensor, h0: Tensor) -> Tensor:
        if z.is_cuda:
            return RnnScan.forward_in_pieces(ctx, z, u, h0, compiled(cell_forward))
        h = z.new_empty(len(z) + 1, *h0.shape)
        h[0] = h0
        for z_t, before, after in zip(z, h, h[1:], strict=False):
            torch.addmm(z_t, before, u.T, out=after).tanh_()
        ctx.save_for_backward(u, h)
        return h[1:]

    @staticmethod
    def forward_in_pieces(ctx, z: Tensor, u: Tensor, h: Tensor, steps: Callable) -> Tensor:
        found = [h.detach().contiguous()[None]]  # like all later ones: compiled once
        for piece in z.detach().split(CHUNK):
            found.append(steps(piece, u.detach(), found[-1][-1]))
        h = torch.cat(found)
        ctx.save_for_backward(u, h)
        return h[1:]

    @staticmethod
    def backward_in_pieces(ctx, h_gradient: Tensor, steps_back: Callable):
        u, h = ctx.saved_tensors
        found, dh = [], torch.zeros_like(h[0])
        for gradient, own in reversed(
            list(zip(h_gradient.split(CHUNK), h[1:].split(CHUNK), strict=True))
        ):
            dz, dh = steps_back(gradient, u, own, dh)
            found.append(dz)
        dz = torch.cat(found[::-1])
        return dz, dz.flatten(0, 1).T @ h[:-1].flatten(0, 1), dh

    @staticmethod
    @once_differentiable
    def backward(ctx, h_gradient: Tensor):
        if h_gradient.is_cuda:
            return RnnScan.backward_in_pieces(ctx, h_gradient, compiled(cell_backward))
        u, h = ctx.saved_tensors
        slope = 1 - h[1:] * h[1:]
        dz = torch.empty_like(slope)
        dh = torch.zeros_like(h[0])  # what comes back from later steps
        for t in reversed(range(len(slope))):
            torch.mul(dh.add_(h_gradient[t]), slope[t], out=dz[t])
            dh = dz[t] @ u
        return dz, dz.flatten(0, 1).T @ h[:-1].flatten(0, 1), dh


def rms_norm(x: Tensor) -> Tensor:
    """x / √(mean x²) over the last dimension, Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467.

    What enters a layer or the head has size 1 however many layers lie below, and each layer adds to what it got (He et al.
    2015, https://arxiv.org/abs/1512.03385). A cell's output is small and mixes many tokens: behind two plainly stacked LSTM
    layers of width 256 it starts at 0.17, and 5 % of its mean square hang on the last token. 60 steps of 1,024 tokens so ended
    at 3.42 to 3.46 bits per byte at learning rates from 0.001 to 0.01; with norms and skips at 2.90 (0.003) and 2.61 (0.012).
    """
    return F.rms_norm(x, x.shape[-1:])


class Layer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.input = nn.Parameter(torch.empty(width, width))
        self.recurrent = nn.Parameter(torch.empty(width, width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """x (T, B, H), h (B, H) -> hidden of all steps (T, B, H), h after the last."""
        z = F.linear(x, self.input, self.bias)
        out = RnnScan.apply(z, self.recurrent.to(z.dtype), h.to(z.dtype))
        return out, out[-1]


class Rnn(nn.Module):
    """config: hidden_size, num_layers, dropout (share of what enters a layer or leaves the last one; Zaremba et al. 2014, arXiv 1409.2329)."""

    PARAMS = {
        "embedding": ParamSpec(normal(1.0), decay=False),
        "input": ParamSpec(fan_in(), decay=True),
        "recurrent": ParamSpec(orthogonal, decay=True),
        "bias": ParamSpec(constant(0.0), decay=False),
        "head": ParamSpec(normal(0.02), decay=True),
    }

    def __init__(self, config: Mapping, vocabulary: int):
        super().__init__()
        self.config, self.vocabulary = dict(config), vocabulary
        self.embedding = nn.Parameter(torch.empty(pad_vocab(vocabulary), config["hidden_size"]))
        self.layers = nn.ModuleList(
            Layer(config["hidden_size"]) for _ in range(config["num_layers"])
        )
        self.head = nn.Parameter(torch.empty(pad_vocab(vocabulary), config["hidden_size"]))

    def init_state(self, batch: int) -> Tensor:
        """The state before the first token: h of every layer, (batch, layers, H), zeros."""
        return self.embedding.new_zeros(batch, len(self.layers), self.embedding.size(1))

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens (B, T) -> hidden (B, T, H) and the state after them."""
        state = self.init_state(len(tokens)) if state is None else state
        x = F.embedding(tokens.T, self.embedding)  # (T, B, H): a step's rows lie together
        last = []
        for layer, h in zip(self.layers, state.unbind(1), strict=True):
            out, h = layer(self.drop(rms_norm(x)), h)
            x = x + out
            last.append(h)
        return self.drop(rms_norm(x)).transpose(0, 1), torch.stack(last, 1)

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config["dropout"], self.training)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head)

    def loss(
        self, tokens: Tensor, targets: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean nats per target, and the state cut off from the graph: backpropagation through time stops here."""
        hidden, state = self(tokens, state)
        return cross_entropy(hidden, self.head, targets), state.detach()
