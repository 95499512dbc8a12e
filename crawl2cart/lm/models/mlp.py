"""A language model that sees a fixed window of tokens.

    h = tanh(b + W [e_{t-n+1}, …, e_t]),   logits = U h

Bengio et al. 2003, https://www.jmlr.org/papers/v3/bengio03a.html, without the direct connections.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crawl2cart.lm.models.config import complete_config
from crawl2cart.lm.models.init import ParamSpec, constant, fan_in, normal, pad_vocab
from crawl2cart.lm.training.losses import linear_cross_entropy


class Mlp(nn.Module):
    """A window of embeddings, one hidden layer, a softmax.

    config: context_size (tokens), embedding_size, hidden_size. vocabulary: number of token ids.
    Raises ValueError if a key is missing.
    Parameters are uninitialised memory until `initialise` or a state dict fills them.
    """

    name = "mlp"
    PARAMS = {
        "embedding": ParamSpec(normal(1.0), decay=False),
        "input": ParamSpec(fan_in(), decay=True),
        "bias": ParamSpec(constant(0.0), decay=False),
        "head": ParamSpec(normal(0.02), decay=True),
    }

    def __init__(self, config: Mapping, vocabulary: int):
        super().__init__()
        required = ("context_size", "embedding_size", "hidden_size")
        self.config = complete_config(self.name, config, required)
        self.vocabulary = vocabulary
        self.context_size, width, hidden = (self.config[key] for key in required)
        self.embedding = nn.Parameter(torch.empty(pad_vocab(vocabulary), width))
        self.input = nn.Parameter(torch.empty(hidden, self.context_size * width))
        self.bias = nn.Parameter(torch.empty(hidden))
        self.head = nn.Parameter(torch.empty(pad_vocab(vocabulary), hidden))

    def init_state(self, batch: int) -> Tensor:
        """Return the embeddings before the first token, zeros (batch, context_size - 1, width)."""
        return self.embedding.new_zeros(batch, self.context_size - 1, self.embedding.size(1))

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens (B, T) -> hidden (B, T, hidden_size) and the state after them."""
        B, T = tokens.shape
        before = self.init_state(B) if state is None else state
        # (B, context_size - 1 + T, width)
        embedded = torch.cat([before, F.embedding(tokens, self.embedding)], 1)
        # (B, T, context_size · width), the oldest token first
        windows = torch.cat([embedded[:, i : i + T] for i in range(self.context_size)], -1)
        return F.linear(windows, self.input, self.bias).tanh(), embedded[:, T:]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, hidden_size) -> (…, vocabulary), without the ids that only pad the table."""
        return F.linear(hidden, self.head[: self.vocabulary])

    def loss(
        self, tokens: Tensor, targets: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mean nats per target, and the state cut off from the graph.

        Ids that pad the table count in the softmax.
        """
        hidden, state = self(tokens, state)
        return linear_cross_entropy(hidden, self.head, targets), state.detach()
