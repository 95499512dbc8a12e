"""Attention as GPT-OSS has it: grouped queries, sinks, windows, rotary positions, and its cache.

Source of the equations: https://github.com/openai/gpt-oss, gpt_oss/torch/model.py.
"""

import copy
import math
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

# Queries handled at once on a CPU. 64 to 256 take the same time; whole rows take longer.
BLOCK = 128
# Columns by which a full cache grows.
SPARE = 256


def frequencies(
    head_dim: int,
    factor: float,
    original_context: float,
    theta: float = 150_000.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> tuple[Tensor, float]:
    """Return radians per position (head_dim / 2,) in float32, and the factor on cosine and sine.

    theta: base of the frequencies. factor: how far YaRN stretches original_context (tokens); 1 is
    plain RoPE. A pair with over beta_fast turns in the original context keeps its frequency, one
    with under beta_slow turns is slowed by factor, a ramp without rounded ends lies between.
    Peng et al. 2023, https://arxiv.org/abs/2309.00071.
    """
    kept = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if factor <= 1:
        return kept, 1.0

    def pair(turns: float) -> float:
        """Return which pair makes so many turns in the original context."""
        return head_dim / 2 * math.log(original_context / (turns * 2 * math.pi)) / math.log(theta)

    low, high = max(pair(beta_fast), 0), min(pair(beta_slow), head_dim - 1)
    slowed = ((torch.arange(head_dim // 2) - low) / (high - low)).clamp(0, 1)
    return kept / factor * slowed + kept * (1 - slowed), 0.1 * math.log(factor) + 1


def rope_table(
    positions: Tensor, head_dim: int, factor: float, original_context: float, **yarn: float
) -> tuple[Tensor, Tensor]:
    """Return cosine and sine (…, T, 1, head_dim / 2) in float32 for positions (…, T).

    yarn: theta, beta_fast, beta_slow of `frequencies`.
    """
    angles, concentration = frequencies(head_dim, factor, original_context, **yarn)
    angles = positions[..., None, None] * angles.to(positions.device)
    return angles.cos() * concentration, angles.sin() * concentration


def rope(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + d/2}) of x (B, T, heads, d) by its position's angle.

    Su et al. 2021, https://arxiv.org/abs/2104.09864.
    """
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None = None,
    window: int | None = None,
    padding: Tensor | None = None,
) -> Tensor:
    """Return causal attention of q (B, T, H, d) to k and v (B, S, G, d), (B, T, H, d).

    The queries are the last T of S columns. Query head h reads key head h // (H / G).
    sinks (H,): score of a virtual key without a value, per head; None: no such key.
    window: columns that a query sees, its own included; None: all up to its own.
    padding (B,): columns at the left of each row that hold nothing.
    """
    if sinks is None:
        sinks = q.new_full((q.size(2),), -math.inf)
    return attention_with_sink_row(q, with_sink_row(k), with_sink_row(v), sinks, window, padding)


def with_sink_row(x: Tensor) -> Tensor:
    """(B, T, G, d) -> (B, G, T + 1, d), the last row zeros."""
    return F.pad(x.transpose(1, 2), (0, 0, 0, 1))


def attention_with_sink_row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    window: int | None,
    padding: Tensor | None = None,
) -> Tensor:
    """Do what `attention` does with k and v (B, G, S + 1, d) whose last row, the sink's, is zeros.

    A cache keeps that row behind its last column, so that no step copies keys to add it.
    """
    # Training, and prompts of one length.
    if q.is_cuda and q.size(1) == k.size(2) - 1 and padding is None:
        return flex(q, k[:, :, :-1], v[:, :, :-1], sinks, window)
    q = q.unflatten(2, (k.size(1), -1))  # (B, T, G, R, d)
    if q.size(1) == 1:
        return last_query(q[:, 0], k, v, sinks, window, padding).flatten(1, 2)[:, None]
    return Attention.apply(q, k, v, sinks.to(q.dtype), window, padding).flatten(2, 3)


def visibility_mask(
    begin: int, queries: range, window: int | None, padding: Tensor | None, like: Tensor
) -> Tensor:
    """Return what is added to scores: 0 where a query sees a key, -inf where not.

    (n, keys), or (B, n, keys) with padding (B,). Keys are the columns begin … queries.stop - 1.
    A query sees itself and what came before, `window` columns in all. Padding columns see only
    themselves, which keeps their scores finite, and nobody sees them.
    """
    query = torch.arange(queries.start, queries.stop, device=like.device)[:, None]
    key = torch.arange(begin, queries.stop, device=like.device)
    visible = key <= query
    if window is not None:
        visible &= key > query - window
    if padding is not None:
        visible = visible & ((key >= padding[:, None, None]) | (key == query))
    mask = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(~visible, -math.inf)


class Attention(torch.autograd.Function):
    """softmax([q·k / √d, sink]) v without the sink's column, a block of queries at a time.

    q (B, T, G, R, d): R query heads read each of G key heads. k, v (B, G, S + 1, d), last row
    zeros: the sink's score replaces that row's, and its value adds nothing. sinks (G·R,).
    A block meets only the keys that its mask lets through. Returns (B, T, G, R, d).
    """

    @staticmethod
    def forward(
        ctx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor,
        window: int | None,
        padding: Tensor | None,
    ) -> Tensor:
        B, T, G, R, d = q.shape
        S = k.size(2) - 1
        out = torch.empty_like(q)
        saved = []
        for start in range(0, T, BLOCK):
            n = min(BLOCK, T - start)
            queries = range(S - T + start, S - T + start + n)
            begin = 0 if window is None else max(0, queries.start - window + 1)
            mask = F.pad(visibility_mask(begin, queries, window, padding, q), (0, 1))
            if padding is None:
                mask = mask.repeat(R, 1)  # (n, keys) -> (R·n, keys)
            else:  # (B, n, keys) -> (B·G, R·n, keys)
                mask = mask[:, None].repeat(1, G, R, 1).flatten(0, 1)
            q_block = q[:, start : start + n].permute(0, 2, 3, 1, 4).reshape(B * G, R * n, d)
            k_block = columns(k, begin, queries.stop)
            v_block = columns(v, begin, queries.stop)
            scores = torch.baddbmm(mask, q_block, k_block.mT, alpha=d**-0.5)
            scores.view(B, G, R, n, -1)[..., -1] = sinks.view(G, R, 1)
            p = scores.softmax(-1).to(q.dtype)  # float32 under CUDA's autocast
            out[:, start : start + n] = (p @ v_block).view(B, G, R, n, d).permute(0, 3, 1, 2, 4)
            saved += [p, q_block, k_block, v_block]
        ctx.save_for_backward(*saved)
        ctx.shapes = q.shape, k.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (B, T, G, R, d), k_shape = ctx.shapes
        S = k_shape[2] - 1
        saved = iter(ctx.saved_tensors)
        dq = torch.empty_like(gradient)
        dk = torch.zeros(k_shape, dtype=torch.float32, device=gradient.device)
        dv, d_sinks = torch.zeros_like(dk), dk.new_zeros(G, R)
        blocks = zip(saved, saved, saved, saved, strict=True)
        for start, (p, q, k, v) in zip(range(0, T, BLOCK), blocks, strict=True):
            n = q.size(1) // R
            stop = S - T + start + n
            keys = slice(stop - (p.size(-1) - 1), stop)
            do = gradient[:, start : start + n].permute(0, 2, 3, 1, 4).reshape(B * G, R * n, d)
            ds = torch._softmax_backward_data(do @ v.mT, p, -1, p.dtype)  # p ⊙ (dp - Σ p ⊙ dp)
            d_sinks += ds.view(B, G, R, n, -1)[..., -1].sum((0, 3), dtype=torch.float32)
            ds *= d**-0.5
            dq[:, start : start + n] = (ds @ k).view(B, G, R, n, d).permute(0, 3, 1, 2, 4)
            dk[:, :, keys] += (ds.mT @ q)[:, :-1].view(B, G, -1, d)
            dv[:, :, keys] += (p.mT @ do)[:, :-1].view(B, G, -1, d)
        return dq, dk.to(gradient.dtype), dv.to(gradient.dtype), d_sinks.flatten(), None, None


def columns(x: Tensor, begin: int, stop: int) -> Tensor:
    """Return columns begin … stop - 1 of x (B, G, S + 1, d) and the sink's row, (B·G, n + 1, d)."""
    if stop == x.size(2) - 1:
        return x[:, :, begin:].flatten(0, 1)
    return torch.cat([x[:, :, begin:stop], x[:, :, -1:]], 2).flatten(0, 1)


def last_query(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None, padding: Tensor | None
) -> Tensor:
    """Do what `Attention` does for the last token alone, q and the result (B, G, R, d).

    It sees all columns, so decoding needs a mask only for padding.
    """
    stop = k.size(2) - 1
    begin = 0 if window is None else max(0, stop - window)
    k, v = k[:, :, begin:], v[:, :, begin:]
    # k qᵀ: q kᵀ takes three times as long in bfloat16 where a cache's rows lie apart.
    scores = (k @ (q * q.size(-1) ** -0.5).mT).mT.contiguous()  # (B, G, R, columns + 1)
    scores[..., -1] = sinks.view(q.shape[1:3])
    if padding is not None:
        empty = torch.arange(begin, stop + 1, device=q.device) < padding[:, None]
        scores.masked_fill_(empty[:, None, None], -math.inf)
    return scores.softmax(-1) @ v


@cache
def block_mask(tokens: int, window: int | None, device: str):
    """Return which blocks of keys each block of queries meets, for FlexAttention."""

    def visible(_batch, _head, query, key):
        return (key <= query) & (key > query - (window or tokens))

    return create_block_mask(visible, None, None, tokens, tokens, device=device)


@cache
def compiled_flex():
    """Return FlexAttention, compiled: otherwise it would hold all scores."""
    return torch.compile(flex_attention)


def flex(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
    """Do attention in one kernel of a GPU that never holds the scores.

    q and the result (B, T, H, d), k, v (B, G, T, d). The kernel also returns log Σ exp of each
    query's scores, with a gradient. So the sink comes in afterwards: a softmax with one more column
    of score s is the plain one times σ(lse - s). Dong et al. 2024, https://arxiv.org/abs/2412.05496.
    """
    kernel = compiled_flex() if q.is_cuda else flex_attention
    mask = block_mask(q.size(1), window, q.device.type)
    out, aux = kernel(
        q.transpose(1, 2), k, v, block_mask=mask, enable_gqa=True, return_aux=AuxRequest(lse=True)
    )
    share = torch.sigmoid(aux.lse.float() - sinks.float()[:, None])  # (B, H, T)
    return (out * share[..., None].to(out.dtype)).transpose(1, 2)


class KeyValues:
    """The keys and values of one layer so far, for generation.

    Columns are appended to a buffer of zeros. When it is full, those still visible move to a larger
    one, or in a window layer to one of the same size. So a window layer's memory does not grow, its
    columns stay in order, and the row behind the last column is always zeros, the sink's row.
    """

    def __init__(self, window: int | None, projection: tuple[Tensor, Tensor]):
        # projection: Block.projection, made once for all tokens.
        self.window, self.projection = window, projection
        self.end, self.dropped, self.buffer = 0, 0, None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Append k, v (B, T, G, d) and return all that the new queries may see.

        Keys and values (B, G, columns + 1, d), and how many columns came before those.
        """
        B, T, G, d = k.shape
        reach = visible_columns(self.end, self.window)
        if self.buffer is None or self.end + T + 1 > self.buffer.size(3):
            larger = k.new_zeros(2, B, G, reach + T + SPARE, d)
            if reach:
                larger[:, :, :, :reach] = self.buffer[:, :, :, self.end - reach : self.end]
            self.dropped += self.end - reach
            self.buffer, self.end = larger, reach
        self.buffer[0, :, :, self.end : self.end + T] = k.transpose(1, 2)
        self.buffer[1, :, :, self.end : self.end + T] = v.transpose(1, 2)
        self.end += T
        first = self.end - T - reach
        keys, values = self.buffer[:, :, :, first : self.end + 1]
        return keys, values, self.dropped + first

    def __getitem__(self, rows: Tensor) -> "KeyValues":
        """Return the keys and values of these rows of the batch."""
        chosen = copy.copy(self)
        chosen.buffer = self.buffer[:, rows]
        return chosen


class SharedKeyValues:
    """The keys and values of one layer for a common start of all rows, in training."""

    projection = None  # the weights are being trained: projected anew, with their gradients

    def __init__(self, text: KeyValues):
        reach = visible_columns(text.end, text.window)
        self.dropped = text.dropped + text.end - reach
        self.buffer = text.buffer[:, :, :, text.end - reach : text.end]  # (2, 1, G, reach, d)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Put the text before k, v (B, T, G, d), which get gradients; see KeyValues.extend."""
        k, v = (
            torch.cat([text.to(x.dtype).expand(len(x), -1, -1, -1), x.transpose(1, 2)], 2)
            for text, x in zip(self.buffer, (k, v), strict=True)
        )
        return F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), self.dropped


def visible_columns(end: int, window: int | None) -> int:
    """Return how many of `end` columns the next query still sees beside its own."""
    return end if window is None else min(end, window - 1)
