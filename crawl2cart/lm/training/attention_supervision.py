"""Supervise attention: a loss on the weight that heads give to known places.

The gradient to a position scales with its attention weight, so heads find a right place slowly.
Where the place is known, the loss can name it. Mi et al. 2016, https://arxiv.org/abs/1608.00112.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crawl2cart.lm.models.attention import rope
from crawl2cart.lm.models.gpt_oss import GptOss, rms_norm
from crawl2cart.lm.models.induction_head_init import layers


@dataclass(frozen=True)
class Places:
    """Where queries of one row should look, as position of a query -> positions to see.

    copied: of tokens that repeat what stands there. decided: of tokens that depend on all that
    stands there. idle: queries that should see nothing, so that the sink gets their weight.
    """

    copied: dict[int, list[int]]
    decided: dict[int, list[int]]
    idle: list[int]

    @property
    def seen(self) -> dict[int, list[int]]:
        return self.copied | self.decided

    def until(self, end: int) -> "Places":
        """Return the places of queries before the position `end`."""
        copied, decided = (
            {query: seen for query, seen in places.items() if query < end}
            for places in (self.copied, self.decided)
        )
        return Places(copied, decided, [query for query in self.idle if query < end])


class GuidedHeads:
    """The heads that induction_head_init leaves free in its readers, and what these blocks read."""

    def __init__(self, model: GptOss):
        self.blocks = [model.blocks[number] for number in layers(model)[1]]
        groups = len(self.blocks[0].key) // self.blocks[0].head_dim
        heads = len(self.blocks[0].query) // len(self.blocks[0].key)
        self.group = min(1, groups - 1)
        self.heads = range(self.group * heads, (self.group + 1) * heads)
        self.read: dict[nn.Module, tuple] = {}
        for block in self.blocks:
            block.register_forward_pre_hook(self.read.__setitem__)

    def loss(self, rows: list[Places], idle_weight: float) -> Tensor:
        """Return -log of the weight on the right places, mean over queries and heads.

        The same for the sink, idle_weight times, is added. rows: of the last batch. 0 where there
        is nothing to look at.
        """
        x = self.read[self.blocks[0]][0]
        places = [row.seen for row in rows]
        # Few of all queries: of a dialogue four in ten.
        asked = [[*seen, *row.idle] for seen, row in zip(places, rows, strict=True)]
        known = [(row, number) for row, seen in enumerate(places) for number in range(len(seen))]
        idle = [
            (row, number)
            for row, seen in enumerate(places)
            for number in range(len(seen), len(asked[row]))
        ]
        if not known:
            return x.new_zeros((), dtype=torch.float32)
        right = torch.zeros(len(known), x.size(1), dtype=torch.bool)
        for number, (row, query) in enumerate(known):
            right[number, places[row][asked[row][query]]] = True
        most = max(map(len, asked))
        queries = torch.tensor([row + [0] * (most - len(row)) for row in asked], device=x.device)
        wrong, known = ~right.to(x.device), torch.tensor(known, device=x.device).T
        idle = torch.tensor(idle, device=x.device).view(-1, 2).T
        total = torch.stack(
            [
                loss
                for block in self.blocks
                for loss in self.losses(block, queries, known, wrong, idle, idle_weight)
            ]
        )
        return total.mean()

    def losses(
        self,
        block: nn.Module,
        queries: Tensor,
        known: Tensor,
        wrong: Tensor,
        idle: Tensor,
        idle_weight: float,
    ) -> Iterator[Tensor]:
        """Yield the loss of each head of a block.

        queries (B, Q): positions. known (2, n), idle (2, m): a row and which of its queries.
        wrong (n, T): where not to look.
        """
        stream, turn, past, _ = self.read[block]
        x, d = rms_norm(stream, block.attention_norm), block.head_dim
        later = torch.arange(x.size(1), device=x.device) > queries[..., None]

        def turned(weight: Tensor, bias: Tensor, number: int) -> Tensor:
            own = slice(number * d, (number + 1) * d)
            return rope(F.linear(x, weight[own], bias[own])[:, :, None], *turn)[
                :, :, 0
            ]  # (B, T, d)

        k = turned(block.key, block.key_bias, self.group)
        for head in self.heads:
            q = turned(block.query, block.query_bias, head) / math.sqrt(d)
            q = q.gather(1, queries[..., None].expand(-1, -1, d))  # (B, Q, d)
            scores = (q @ k.mT).float().masked_fill(later, -math.inf)  # (B, Q, T)
            sink = block.sinks[head].float().expand(*scores.shape[:2], 1)
            parts = [scores, sink]
            if past is not None:
                parts.append(
                    (q @ past.buffer[0, 0, self.group].to(q.dtype).T).float()
                )  # the text before
            every = torch.cat(parts, -1).logsumexp(-1)  # (B, Q)
            found = scores[*known].masked_fill(wrong, -math.inf).logsumexp(-1)
            loss = (every[*known] - found).mean()
            if idle.numel():
                loss = loss + idle_weight * (every - sink[..., 0])[*idle].mean()
            yield loss
