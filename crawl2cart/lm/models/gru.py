"""Gated recurrent unit.

    r, z = σ(W x_t + b + U h_{t-1})
    n    = tanh(W x_t + b + r ⊙ (U h_{t-1} + c))
    h_t  = n + z ⊙ (h_{t-1} - n)

Cho et al. 2014, https://arxiv.org/abs/1406.1078, with the reset gate after the product, as cuDNN
and torch.nn.GRU have it: so all of U h_{t-1} is one product. Rows of W and U stand in the order
r, z, n; c is the bias of U's last block. The model around it: recurrent.py.
"""

import torch
from torch import Tensor

from crawl2cart.lm.models.init import constant


class Gru:
    name, gates, states, product_bias, init_bias = "gru", 3, 1, True, constant(0.0)

    @staticmethod
    def forward(x: Tensor, u: Tensor, bias: Tensor, h: Tensor) -> tuple[tuple, tuple]:
        H = h.size(1)
        product = torch.addmm(bias, h, u.T)  # (B, 3H)
        r, z = (x[:, : 2 * H] + product[:, : 2 * H]).sigmoid_().chunk(2, -1)
        product_n = product[:, 2 * H :]
        n = torch.addcmul(x[:, 2 * H :], r, product_n).tanh_()
        return (torch.lerp(n, h, z),), (r, z, n, product_n)

    @staticmethod
    def slopes(
        states: tuple[Tensor], r: Tensor, z: Tensor, n: Tensor, product_n: Tensor
    ) -> tuple[Tensor, Tensor]:
        h_before = states[0][:-1]
        to_n = (1 - z) * (1 - n * n)  # ∂h/∂(W's share of n)
        to_r, to_z = to_n * product_n * r * (1 - r), (h_before - n) * z * (1 - z)
        # ∂h/∂(sums of r and z, U's share of n, W's share of n), (n, B, 4, H)
        return torch.stack([to_r, to_z, to_n * r, to_n], 2), z

    @staticmethod
    def backward(
        d_state: tuple[Tensor], u: Tensor, to_sums: Tensor, z: Tensor
    ) -> tuple[tuple, tuple]:
        (dh,) = d_state
        r, z_sum, n_product, n_input = (dh[:, None] * to_sums).unbind(1)
        d_product = torch.cat([r, z_sum, n_product], 1)
        d_x = torch.cat([r, z_sum, n_input], 1)
        return (d_x, d_product), (torch.addmm(dh * z, d_product, u),)
