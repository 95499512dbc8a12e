"""A recurrent language model with long short-term memory.

    i, f, o = σ(…),  g = tanh(…)        of W x_t + U h_{t-1} + b
    c_t = f ⊙ c_{t-1} + i ⊙ g,          h_t = o ⊙ tanh(c_t)

Hochreiter & Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735, with the forget gate of Gers et al. 2000, whose
bias starts at 1 (Jozefowicz et al. 2015, https://proceedings.mlr.press/v37/jozefowicz15). How the time loop is kept short:
crawl2cart/lm/models/rnn.py.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from crawl2cart.lm.models.init import ParamSpec, fan_in, normal, orthogonal, pad_vocab
from crawl2cart.lm.models.rnn import CHUNK, compiled, rms_norm
from crawl2cart.lm.training.losses import cross_entropy


def cell_forward(x: Tensor, u: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """Some steps of one layer as the equations say them, for a GPU, where they are compiled: there it is the number of kernels that
    takes the time. x (n, B, 4H), u (4H, H), h and c (B, H) -> of each step gates (n, B, 4H), tanh c, h and c (n, B, H)."""
    found = []
    for x_t in x:
        i, f, g, o = torch.addmm(x_t, h, u.T).chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c + i * g
        tanh_c = c.tanh()
        h = o * tanh_c
        found.append((torch.cat([i, f, g, o], -1), tanh_c, h, c))
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


def cell_backward(
    gradient: Tensor,
    u: Tensor,
    gates: Tensor,
    tanh_c: Tensor,
    before: Tensor,
    dh: Tensor,
    dc: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of `steps`, last step first. gradient (n, B, H) of each h, before (n, B, H): c of the step before; dh and dc (B, H)
    come back from later steps -> dx (n, B, 4H), dh and dc for the steps before."""
    found = []
    for t in reversed(range(len(gates))):
        i, f, g, o = gates[t].chunk(4, -1)
        dh = dh + gradient[t]
        dc = dc + dh * o * (1 - tanh_c[t] * tanh_c[t])
        dx = torch.cat(
            [
                dc * g * i * (1 - i),
                dc * before[t] * f * (1 - f),
                dc * i * (1 - g * g),
                dh * tanh_c[t] * o * (1 - o),
            ],
            -1,
        )
        dh, dc = dx @ u, dc * f
        found.append(dx)
    return torch.stack(found[::-1]), dh, dc


class LstmScan(torch.autograd.Function):
    """All steps of one layer. x (T, B, 4H) = W x + b of every step, u (4H, H), h0 and c0 (B, H) -> h (T, B, H), last c.

    Gates stand in the order i, f, g, o.
    """

    @staticmethod
    def forward(ctx, x: Tensor, u: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor]:
        if x.is_cuda:
            return LstmScan.forward_in_pieces(ctx, x, u, h0, c0, compiled(cell_forward))
        T, B, H = len(x), *h0.shape
        h, c = x.new_empty(T + 1, B, H), x.new_empty(T + 1, B, H)
        gates, tanh_c = torch.empty_like(x), x.new_empty(T, B, H)
        h[0], c[0] = h0, c0
        for t in range(T):
            torch.addmm(x[t], h[t], u.T, out=gates[t])
            i, f, g, o = gates[t].chunk(4, -1)
            gates[t, :, : 2 * H].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, c[t], out=c[t + 1]).addcmul_(i, g)
            torch.mul(o, torch.tanh(c[t + 1], out=tanh_c[t]), out=h[t + 1])
        ctx.save_for_backward(u, h, c, gates, tanh_c)
        return h[1:], c[-1].clone()

    @staticmethod
    def forward_in_pieces(
        ctx, x: Tensor, u: Tensor, h: Tensor, c: Tensor, steps: Callable
    ) -> tuple[Tensor, Tensor]:
        found = [
            (None, None, h.detach().contiguous()[None], c.detach().contiguous()[None])
        ]  # like all later ones: compiled once
        for piece in x.detach().split(CHUNK):
            found.append(steps(piece, u.detach(), found[-1][2][-1], found[-1][3][-1]))
        gates, tanh_c = (torch.cat(parts) for parts in list(zip(*found[1:], strict=True))[:2])
        h, c = (torch.cat(parts) for parts in list(zip(*found, strict=True))[2:])
        ctx.save_for_backward(u, h, c, gates, tanh_c)
        return h[1:], c[-1].clone()

    @staticmethod
    def backward_in_pieces(ctx, h_gradient: Tensor, dc: Tensor, steps_back: Callable):
        u, h, c, gates, tanh_c = ctx.saved_tensors
        found, dh = [], torch.zeros_like(dc)
        pieces = list(
            zip(*(part.split(CHUNK) for part in (h_gradient, gates, tanh_c, c[:-1])), strict=True)
        )
        for gradient, *own in reversed(pieces):
            dx, dh, dc = steps_back(gradient, u, *own, dh, dc)
            found.append(dx)
        dx = torch.cat(found[::-1])
        return dx, dx.flatten(0, 1).T @ h[:-1].flatten(0, 1), dh, dc

    @staticmethod
    @once_differentiable
    def backward(ctx, h_gradient: Tensor, dc: Tensor):
        if h_gradient.is_cuda:
            return LstmScan.backward_in_pieces(ctx, h_gradient, dc, compiled(cell_backward))
        u, h, c, gates, tanh_c = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, -1)
        # dc, or for the output gate dh, times these is the gradient before each gate's bend: all steps at once, only
        # dc and dh themselves wait for time.
        to_c = o * (1 - tanh_c * tanh_c)
        to_ifg = torch.stack(
            [g * i * (1 - i), c[:-1] * f * (1 - f), i * (1 - g * g)], 2
        )  # (T, B, 3, H)
        to_o = tanh_c * o * (1 - o)
        dx = torch.empty_like(gates).unflatten(-1, (4, -1))  # (T, B, 4, H)
        dh = torch.zeros_like(dc)
        for t in reversed(range(len(gates))):
            dh += h_gradient[t]
            dc = torch.addcmul(dc, dh, to_c[t])
            torch.mul(dc[:, None], to_ifg[t], out=dx[t, :, :3])
            torch.mul(dh, to_o[t], out=dx[t, :, 3])
            dc = dc * f[t]
            dh = dx[t].flatten(1) @ u
        dx = dx.flatten(2)
        return dx, dx.flatten(0, 1).T @ h[:-1].flatten(0, 1), dh, dc


def forget_gate_open(bias: Tensor, *_: object) -> None:
    """Zeros, and ones for the forget gate: at first everything is remembered."""
    bias.zero_().view(4, -1)[1] = 1


class Layer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.input = nn.Parameter(torch.empty(4 * width, width))
        self.recurrent = nn.Parameter(torch.empty(4 * width, width))
        self.bias = nn.Parameter(torch.empty(4 * width))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (T, B, H), h and c (B, H) -> hidden of all steps (T, B, H), h and c after the last."""
        z = F.linear(x, self.input, self.bias)
        out, c = LstmScan.apply(z, self.recurrent.to(z.dtype), h.to(z.dtype), c.to(z.dtype))
        return out, out[-1], c


class Lstm(nn.Module):
    """config: width, layers, dropout, as in rnn.py."""

    PARAMS = {
        "embedding": ParamSpec(normal(1.0), decay=False),
        "input": ParamSpec(fan_in(), decay=True),
        "recurrent": ParamSpec(orthogonal, decay=True),
        "bias": ParamSpec(forget_gate_open, decay=False),
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
        """The state before the first token: h and c of every layer, (batch, layers, 2, H), zeros."""
        return self.embedding.new_zeros(batch, len(self.layers), 2, self.embedding.size(1))

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens (B, T) -> hidden (B, T, H) and the state after them."""
        state = self.init_state(len(tokens)) if state is None else state
        x = F.embedding(tokens.T, self.embedding)  # (T, B, H): a step's rows lie together
        last = []
        for layer, before in zip(self.layers, state.unbind(1), strict=True):
            out, h, c = layer(self.drop(rms_norm(x)), *before.unbind(1))
            x = x + out
            last.append(torch.stack([h, c], 1))
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
