"""A recurrent language model with gated recurrent units.

    r, z = σ(W_rz x_t + b_rz + U_rz h_{t-1})
    n    = tanh(W_n x_t + b_n + r ⊙ (U_n h_{t-1} + c))
    h_t  = n + z ⊙ (h_{t-1} - n)

Cho et al. 2014, https://arxiv.org/abs/1406.1078, with the reset gate after the product (as cuDNN and torch.nn.GRU have it),
so that the three products with h are one. How the time loop is kept short: crawl2cart/lm/models/rnn.py.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from crawl2cart.lm.models.init import ParamSpec, constant, fan_in, normal, orthogonal, pad_vocab
from crawl2cart.lm.models.rnn import CHUNK, compiled, rms_norm
from crawl2cart.lm.training.losses import cross_entropy


def cell_forward(x: Tensor, u: Tensor, bias: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    """Some steps of one layer, for a GPU (lstm.py). x (n, B, 3H), u (3H, H), bias (3H,) of the product with h, h (B, H) -> of each step h
    (n, B, H), gates (n, B, 3H), and the product that the reset gate meets (n, B, H)."""
    found = []
    for x_t in x:
        r, z, n = torch.addmm(bias, h, u.T).chunk(3, -1)
        x_r, x_z, x_n = x_t.chunk(3, -1)
        r, z, product_n = (x_r + r).sigmoid(), (x_z + z).sigmoid(), n
        n = (x_n + r * product_n).tanh()
        h = n + z * (h - n)
        found.append((h, torch.cat([r, z, n], -1), product_n))
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


def cell_backward(
    gradient: Tensor, u: Tensor, gates: Tensor, product_n: Tensor, before: Tensor, dh: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of `steps`, last step first. gradient, before (n, B, H): of each h, and h of the step before; dh (B, H) comes back from
    later steps -> gradients of the product (n, B, 3H) and of x's share of n (n, B, H), dh for the steps before."""
    found = []
    for t in reversed(range(len(gates))):
        r, z, n = gates[t].chunk(3, -1)
        dh = dh + gradient[t]
        dn = dh * (1 - z) * (1 - n * n)
        d_product = torch.cat(
            [dn * product_n[t] * r * (1 - r), dh * (before[t] - n) * z * (1 - z), dn * r], -1
        )
        dh = torch.addmm(dh * z, d_product, u)
        found.append((d_product, dn))
    return *(torch.stack(parts[::-1]) for parts in zip(*found, strict=True)), dh


class GruScan(torch.autograd.Function):
    """All steps of one layer. x (T, B, 3H) = W x + b of every step, u (3H, H), c (H,), h0 (B, H) -> h (T, B, H).

    Gates stand in the order r, z, n.
    """

    @staticmethod
    def forward(ctx, x: Tensor, u: Tensor, c: Tensor, h0: Tensor) -> Tensor:
        if x.is_cuda:
            return GruScan.forward_in_pieces(ctx, x, u, c, h0, compiled(cell_forward))
        T, B, H = len(x), *h0.shape
        h, gates, product = x.new_empty(T + 1, B, H), torch.empty_like(x), torch.empty_like(x)
        h[0] = h0
        bias = torch.cat([c.new_zeros(2 * H), c])
        for t in range(T):
            torch.addmm(bias, h[t], u.T, out=product[t])
            rz, n = gates[t, :, : 2 * H], gates[t, :, 2 * H :]
            torch.add(x[t, :, : 2 * H], product[t, :, : 2 * H], out=rz).sigmoid_()
            torch.addcmul(x[t, :, 2 * H :], rz[:, :H], product[t, :, 2 * H :], out=n).tanh_()
            torch.lerp(n, h[t], rz[:, H:], out=h[t + 1])
        ctx.save_for_backward(u, h, gates, product[..., 2 * H :])
        return h[1:]

    @staticmethod
    def forward_in_pieces(
        ctx, x: Tensor, u: Tensor, c: Tensor, h: Tensor, steps: Callable
    ) -> Tensor:
        bias, found = (
            torch.cat([c.new_zeros(2 * len(c)), c]).detach(),
            [(h.detach().contiguous()[None], None, None)],
        )
        for piece in x.detach().split(CHUNK):
            found.append(steps(piece, u.detach(), bias, found[-1][0][-1]))
        h = torch.cat([h for h, *_ in found])
        ctx.save_for_backward(
            u, h, *(torch.cat(parts) for parts in list(zip(*found[1:], strict=True))[1:])
        )
        return h[1:]

    @staticmethod
    def backward_in_pieces(ctx, h_gradient: Tensor, steps_back: Callable):
        u, h, gates, product_n = ctx.saved_tensors
        found, dh = [], torch.zeros_like(h[0])
        pieces = list(
            zip(
                *(part.split(CHUNK) for part in (h_gradient, gates, product_n, h[:-1])), strict=True
            )
        )
        for gradient, *own in reversed(pieces):
            *both, dh = steps_back(gradient, u, *own, dh)
            found.append(both)
        d_product, dn = (torch.cat(parts) for parts in zip(*found[::-1], strict=True))
        flat, H = d_product.flatten(0, 1), h.size(-1)
        dx = torch.cat([d_product[..., : 2 * H], dn], -1)
        return dx, flat.T @ h[:-1].flatten(0, 1), flat[:, -H:].sum(0), dh

    @staticmethod
    @once_differentiable
    def backward(ctx, h_gradient: Tensor):
        if h_gradient.is_cuda:
            return GruScan.backward_in_pieces(ctx, h_gradient, compiled(cell_backward))
        u, h, gates, product_n = ctx.saved_tensors
        r, z, n = gates.chunk(3, -1)
        # dh times these is the gradient before each gate's bend: all steps at once, only dh itself waits for time.
        to_n = (1 - z) * (1 - n * n)
        to_product = torch.stack(
            [to_n * product_n * r * (1 - r), (h[:-1] - n) * z * (1 - z), to_n * r], 2
        )
        dh_all, d_product = (
            torch.empty_like(h_gradient),
            torch.empty_like(to_product),
        )  # (T, B, H), (T, B, 3, H)
        dh = torch.zeros_like(h[0])
        for t in reversed(range(len(gates))):
            torch.add(dh, h_gradient[t], out=dh_all[t])
            torch.mul(dh_all[t][:, None], to_product[t], out=d_product[t])
            dh = torch.addmm(dh_all[t] * z[t], d_product[t].flatten(1), u)
        dx = d_product.clone()
        torch.mul(dh_all, to_n, out=dx[:, :, 2])  # the reset gate lies behind x's share of n
        flat = d_product.flatten(2).flatten(0, 1)  # (T·B, 3H)
        return dx.flatten(2), flat.T @ h[:-1].flatten(0, 1), flat[:, -h.size(-1) :].sum(0), dh


class Layer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.input = nn.Parameter(torch.empty(3 * width, width))
        self.recurrent = nn.Parameter(torch.empty(3 * width, width))
        self.bias = nn.Parameter(torch.empty(3 * width))
        self.recurrent_bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """x (T, B, H), h (B, H) -> hidden of all steps (T, B, H), h after the last."""
        z = F.linear(x, self.input, self.bias)
        out = GruScan.apply(
            z, self.recurrent.to(z.dtype), self.recurrent_bias.to(z.dtype), h.to(z.dtype)
        )
        return out, out[-1]


class Gru(nn.Module):
    """config: width, layers, dropout, as in rnn.py."""

    PARAMS = {
        "embedding": ParamSpec(normal(1.0), decay=False),
        "input": ParamSpec(fan_in(), decay=True),
        "recurrent": ParamSpec(orthogonal, decay=True),
        "bias": ParamSpec(constant(0.0), decay=False),
        "recurrent_bias": ParamSpec(constant(0.0), decay=False),
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
