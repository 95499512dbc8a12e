"""A language model that sees a fixed window of tokens.

    h = tanh(b + W [e_{t-n+1}, …, e_t]),   logits = U h

Bengio et al. 2003, https://www.jmlr.org/papers/v3/bengio03a.html, without the direct connections.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crawl2cart.lm.models.init import ParamSpec, constant, fan_in, normal, pad_vocab
from crawl2cart.lm.training.losses import cross_entropy


class Mlp(nn.Module):
    """config: context_size (tokens), embedding_size, hidden_size."""

    PARAMS = {
        "embedding": ParamSpec(normal(1.0), decay=False),
        "input": ParamSpec(fan_in(), decay=True),
        "bias": ParamSpec(constant(0.0), decay=False),
        "head": ParamSpec(normal(0.02), decay=True),
    }

    def __init__(self, config: Mapping, vocabulary: int):
        super().__init__()
        self.config, self.vocabulary = dict(config), vocabulary
        self.window, width, hidden = (
            config["context_size"],
            config["embedding_size"],
            config["hidden_size"],
        )
        self.embedding = nn.Parameter(torch.empty(pad_vocab(vocabulary), width))
        self.input = nn.Parameter(torch.empty(hidden, self.window * width))
        self.bias = nn.Parameter(torch.empty(hidden))
        self.head = nn.Parameter(torch.empty(pad_vocab(vocabulary), hidden))

    def init_state(self, batch: int) -> Tensor:
        """The embeddings of the tokens before the window's end, (batch, window - 1, width): zeros, nothing was said yet."""
        return self.embedding.new_zeros(batch, self.window - 1, self.embedding.size(1))

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens (B, T) -> hidden (B, T, hidden) and the state after them."""
        B, T = tokens.shape
        before = self.init_state(B) if state is None else state
        seen = torch.cat(
            [before, F.embedding(tokens, self.embedding)], 1
        )  # (B, window - 1 + T, width)
        windows = torch.cat(
            [seen[:, i : i + T] for i in range(self.window)], -1
        )  # (B, T, window · width), oldest first
        return F.linear(windows, self.input, self.bias).tanh(), seen[:, T:]

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head)

    def loss(
        self, tokens: Tensor, targets: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean nats per target, and the state cut off from the graph."""
        hidden, state = self(tokens, state)
        return cross_entropy(hidden, self.head, targets), state.detach()
