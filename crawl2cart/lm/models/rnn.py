"""Elman's cell: h_t = tanh(W x_t + b + U h_{t-1}).

Elman 1990, https://doi.org/10.1207/s15516709cog1402_1. The model around it: recurrent.py.
"""

import torch
from torch import Tensor

from crawl2cart.lm.models.init import constant


class Elman:
    name, gates, states, product_bias, init_bias = "rnn", 1, 1, False, constant(0.0)

    @staticmethod
    def forward(x: Tensor, u: Tensor, _: None, h: Tensor) -> tuple[tuple, tuple]:
        return (torch.addmm(x, h, u.T).tanh_(),), ()

    @staticmethod
    def slopes(states: tuple[Tensor]) -> tuple[Tensor]:
        h = states[0][1:]
        return (1 - h * h,)  # tanh' of every step

    @staticmethod
    def backward(d_state: tuple[Tensor], u: Tensor, slope: Tensor) -> tuple[tuple, tuple]:
        d_sum = d_state[0] * slope
        return (d_sum,), (d_sum @ u,)
