"""Long short-term memory.

    i, f, o = σ(W x_t + b + U h_{t-1}),   g = tanh(W x_t + b + U h_{t-1})
    c_t = f ⊙ c_{t-1} + i ⊙ g,            h_t = o ⊙ tanh(c_t)

Hochreiter & Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735, with the forget gate of
Gers et al. 2000, https://doi.org/10.1162/089976600300015015. Rows of W and U stand in the order
i, f, g, o. The model around it: recurrent.py.
"""

import torch
from torch import Tensor


def forget_gate_open(bias: Tensor, *_: object) -> None:
    """Fill the bias with zeros, and with ones for the forget gate: the cell starts by remembering.

    Jozefowicz et al. 2015, https://proceedings.mlr.press/v37/jozefowicz15
    """
    bias.zero_().view(4, -1)[1] = 1


class Lstm:
    name, gates, states, product_bias, init_bias = "lstm", 4, 2, False, forget_gate_open

    @staticmethod
    def forward(x: Tensor, u: Tensor, _: None, h: Tensor, c: Tensor) -> tuple[tuple, tuple]:
        i, f, g, o = torch.addmm(x, h, u.T).chunk(4, -1)  # (B, H) each
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = torch.addcmul(f * c, i, g)
        tanh_c = c.tanh()
        return (o * tanh_c, c), (i, f, g, o, tanh_c)

    @staticmethod
    def slopes(
        states: tuple[Tensor, Tensor], i: Tensor, f: Tensor, g: Tensor, o: Tensor, tanh_c: Tensor
    ) -> tuple[Tensor, ...]:
        c_before = states[1][:-1]
        to_c = o * (1 - tanh_c * tanh_c)  # ∂h/∂c
        to_o = tanh_c * o * (1 - o)  # ∂h/∂(sum of o)
        # ∂c/∂(sums of i, f, g), (n, B, 3, H)
        to_ifg = torch.stack([g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g)], 2)
        return to_c, to_ifg, to_o, f

    @staticmethod
    def backward(
        d_state: tuple[Tensor, Tensor],
        u: Tensor,
        to_c: Tensor,
        to_ifg: Tensor,
        to_o: Tensor,
        f: Tensor,
    ) -> tuple[tuple, tuple]:
        dh, dc = d_state
        dc = torch.addcmul(dc, dh, to_c)
        d_sums = torch.cat([(dc[:, None] * to_ifg).flatten(1), dh * to_o], 1)  # (B, 4H)
        return (d_sums,), (d_sums @ u, dc * f)
