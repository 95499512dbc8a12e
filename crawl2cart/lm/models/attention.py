"""Attention as GPT-OSS has it: grouped queries, a sink per head, windows, rotary positions with YaRN, and its cache.

Source of the equations: https://github.com/openai/gpt-oss, gpt_oss/torch/model.py.
"""

import math
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

# YaRN with the values of gpt-oss (its config.json): base of the angles, and the numbers of turns over the original
# context above which a frequency is kept and below which it is stretched.
THETA, FAST_TURNS, SLOW_TURNS = 150_000.0, 32.0, 1.0
# Queries handled at once. 64 to 256 take the same time on a CPU (16 rows of 256, or 4 of 1,024 tokens); whole rows
# take longer and hold all scores.
BLOCK = 128
# Columns by which a full cache grows.
SPARE = 256


def frequencies(head_dim: int, factor: float, original_context: float) -> tuple[Tensor, float]:
    """Angles per position (head_dim / 2,) in float32, and the factor on cosine and sine.

    Fast turning pairs keep their frequency, slow ones are slowed by `factor`, a ramp lies between: YaRN, Peng et al. 2023,
    https://arxiv.org/abs/2309.00071, without rounding of the ramp's ends. factor 1 is plain RoPE.
    """
    kept = THETA ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if factor <= 1:
        return kept, 1.0

    def pair(turns: float) -> float:
        """Which pair makes so many turns in the original context."""
        return head_dim / 2 * math.log(original_context / (turns * 2 * math.pi)) / math.log(THETA)

    low, high = max(pair(FAST_TURNS), 0), min(pair(SLOW_TURNS), head_dim - 1)
    slowed = ((torch.arange(head_dim // 2) - low) / (high - low)).clamp(0, 1)
    return kept / factor * slowed + kept * (1 - slowed), 0.1 * math.log(factor) + 1


def rope_table(
    positions: Tensor, head_dim: int, factor: float, original_context: float
) -> tuple[Tensor, Tensor]:
    """Cosine and sine (…, T, 1, head_dim / 2) in float32 for positions (…, T)."""
    angles, concentration = frequencies(head_dim, factor, original_context)
    angles = positions[..., None, None] * angles.to(positions.device)
    return angles.cos() * concentration, angles.sin() * concentration


def rope(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns each pair (x_i, x_{i + d/2}) of x (B, T, heads, d) by its position's angle. Su et al. 2021, arXiv 2104.09864."""
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def seen_mask(
    begin: int, queries: range, window: int | None, padding: Tensor | None, like: Tensor
) -> Tensor:
    """What is added to scores: 0 where a query may look, -inf where not; (n, keys) or, with padding, (B, n, keys).

    Keys are the columns begin … queries.stop - 1. A query sees itself and what came before, `window` columns in all. Columns
    below padding (B,) only see themselves, which keeps them finite, and nobody looks at them.
    """
    query = torch.arange(queries.start, queries.stop, device=like.device)[:, None]
    key = torch.arange(begin, queries.stop, device=like.device)
    seen = key <= query
    if window is not None:
        seen &= key > query - window
    if padding is not None:
        seen = seen & ((key >= padding[:, None, None]) | (key == query))
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen, -math.inf
    )


class Attention(torch.autograd.Function):
    """softmax([q·k / √d, sink]) v without the sink's column, a block of queries at a time.

    q (B, T, G, R, d): R query heads read each of G key heads. k, v (B, G, S + 1, d), the last row zeros: the sink's score takes
    the place of that row's, and its value adds nothing. sink (G · R,). The queries are the last T of S columns.
    A block meets only the keys that its mask lets through. Returns (B, T, G, R, d).
    """

    @staticmethod
    def forward(
        ctx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sink: Tensor,
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
            mask = F.pad(seen_mask(begin, queries, window, padding, q), (0, 1))
            if padding is None:
                mask = mask.repeat(R, 1)  # (n, keys) -> (R · n, keys)
            else:
                mask = (
                    mask[:, None].repeat(1, G, R, 1).flatten(0, 1)
                )  # (B, n, keys) -> (B · G, R · n, keys)
            q_block = q[:, start : start + n].permute(0, 2, 3, 1, 4).reshape(B * G, R * n, d)
            k_block, v_block = block_of(k, begin, queries.stop), block_of(v, begin, queries.stop)
            scores = torch.baddbmm(mask, q_block, k_block.mT, alpha=d**-0.5)
            scores.view(B, G, R, n, -1)[..., -1] = sink.view(G, R, 1)
            p = scores.softmax(-1).to(q.dtype)  # float32 under CUDA's autocast
            out[:, start : start + n] = (p @ v_block).view(B, G, R, n, d).permute(0, 3, 1, 2, 4)
            saved += [p, q_block, k_block, v_block]
        ctx.save_for_backward(*saved)
        ctx.shapes, ctx.window = (q.shape, k.shape), window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        (B, T, G, R, d), k_shape = ctx.shapes
        S = k_shape[2] - 1
        saved = iter(ctx.saved_tensors)
        dq = torch.empty_like(gradient)
        dk = torch.zeros(k_shape, dtype=torch.float32, device=gradient.device)
        dv, dsink = torch.zeros_like(dk), dk.new_zeros(G, R)
        for start, (p, q, k, v) in zip(
            range(0, T, BLOCK), zip(saved, saved, saved, saved, strict=True), strict=True
        ):
            n = q.size(1) // R
            stop = S - T + start + n
            keys = slice(stop - (p.size(-1) - 1), stop)
            do = gradient[:, start : start + n].permute(0, 2, 3, 1, 4).reshape(B * G, R * n, d)
            ds = torch._softmax_backward_data(do @ v.mT, p, -1, p.dtype)  # p ⊙ (dp - Σ p ⊙ dp)
            dsink += ds.view(B, G, R, n, -1)[..., -1].sum((0, 3), dtype=torch.float32)
            ds *= d**-0.5
            dq[:, start : start + n] = (ds @ k).view(B, G, R, n, d).permute(0, 3, 1, 2, 4)
            dk[:, :, keys] += (ds.mT @ q)[:, :-1].view(B, G, -1, d)
            dv[:, :, keys] += (p.mT @ do)[:, :-1].view(B, G, -1, d)
        return dq, dk.to(gradient.dtype), dv.to(gradient.dtype), dsink.flatten(), None, None


def block_of(x: Tensor, begin: int, stop: int) -> Tensor:
    """Columns begin … stop - 1 of x (B, G, S + 1, d) and its last row, the sink's: (B · G, columns + 1, d)."""
    columns = (
        x[:, :, begin:]
        if stop == x.size(2) - 1
        else torch.cat([x[:, :, begin:stop], x[:, :, -1:]], 2)
    )
    return columns.flatten(0, 1)


def attention(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor, window: int | None, padding: Tensor | None = None
) -> Tensor:
    """Attention of q (B, T, H, d) to k, v (B, G, S + 1, d) (see `Attention`) -> (B, T, H, d).

    Query head h reads key head h // (H / G). window: how many columns a query sees, its own included; None: all before it.
    padding: (B,) columns at the left that hold nothing.
    """
    if (
        q.is_cuda and q.size(1) == k.size(2) - 1 and padding is None
    ):  # training, and prompts of one length
        return flex(q, k[:, :, :-1], v[:, :, :-1], sink, window)
    q = q.unflatten(2, (k.size(1), -1))
    if q.size(1) == 1:
        return of_last(q[:, 0], k, v, sink, window, padding).flatten(1, 2)[:, None]
    return Attention.apply(q, k, v, sink.to(q.dtype), window, padding).flatten(2, 3)


def of_last(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor, window: int | None, padding: Tensor | None
) -> Tensor:
    """`Attention` of the last token alone, q and the result (B, G, R, d): it sees all columns, so decoding needs no mask but for
    padding."""
    columns = k.size(2) - 1
    begin = 0 if window is None else max(0, columns - window)
    k, v = k[:, :, begin:], v[:, :, begin:]
    # k qᵀ and not q kᵀ, which takes three times as long in bfloat16 where a cache's rows lie apart (32 rows of 129 to 800 columns).
    scores = (k @ (q * q.size(-1) ** -0.5).mT).mT.contiguous()  # (B, G, R, columns + 1)
    scores[..., -1] = sink.view(q.shape[1:3])
    if padding is not None:
        empty = torch.arange(begin, columns + 1, device=q.device) < padding[:, None]
        scores.masked_fill_(empty[:, None, None], -math.inf)
    return scores.softmax(-1) @ v


@cache
def block_mask(tokens: int, window: int | None, device: str):
    """Which blocks of keys each block of queries meets, for FlexAttention: of a window layer only a band."""

    def seen(_batch, _head, query, key):
        return (key <= query) & (key > query - (window or tokens))

    return create_block_mask(seen, None, None, tokens, tokens, device=device)


@cache
def compiled_flex():
    """Without compilation FlexAttention holds all scores."""
    return torch.compile(flex_attention)


def flex(q: Tensor, k: Tensor, v: Tensor, sink: Tensor, window: int | None) -> Tensor:
    """Attention on a GPU: one kernel that never holds the scores. q (B, T, H, d), k, v (B, G, T, d) -> (B, T, H, d).

    The kernel also gives log Σ exp of each query's scores, and gradients pass through it, so the sink is put in behind:
    softmax with a further column of score s is the plain one times σ(lse - s). Dong et al. 2024, https://arxiv.org/abs/2412.05496.
    """
    kernel = compiled_flex() if q.is_cuda else flex_attention
    out, more = kernel(
        q.transpose(1, 2),
        k,
        v,
        block_mask=block_mask(q.size(1), window, q.device.type),
        enable_gqa=True,
        return_aux=AuxRequest(lse=True),
    )
    share = torch.sigmoid(more.lse.float() - sink.float()[:, None])  # (B, H, T)
    return (out * share[..., None].to(out.dtype)).transpose(1, 2)


def with_sink_row(x: Tensor) -> Tensor:
    """(B, T, G, d) -> (B, G, T + 1, d), the last row zeros."""
    return F.pad(x.transpose(1, 2), (0, 0, 0, 1))


class KeyValues:
    """Keys and values of one layer so far, for generation.

    Columns are appended to a buffer of zeros; when it is full, those that can still be seen move to a larger or, in a window
    layer, to an equally small one. So a window layer's memory does not grow, its columns stay in order without a ring's
    arithmetic, and the row behind the last column is always zeros, as `Attention` wants it.
    """

    def __init__(self, window: int | None, projection: tuple[Tensor, Tensor]):
        self.window, self.projection = (
            window,
            projection,
        )  # Block.projection, put together once for all tokens
        self.end, self.dropped, self.buffer = 0, 0, None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Appends k, v (B, T, G, d). Returns all that the new queries may see, (B, G, columns + 1, d) each, and how many
        columns came before those."""
        B, T, G, d = k.shape
        reach = self.end if self.window is None else min(self.end, self.window - 1)
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


class SharedKeyValues:
    """Keys and values of one layer for a text that all rows of a batch begin with, for training on what follows it."""

    projection = None  # the weights are being trained: put together anew, with their gradients

    def __init__(self, text: KeyValues):
        reach = text.end if text.window is None else min(text.end, text.window - 1)
        self.dropped = text.dropped + text.end - reach
        self.buffer = text.buffer[:, :, :, text.end - reach : text.end]  # (2, 1, G, reach, d)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Puts the text before k, v (B, T, G, d). Returns what KeyValues.extend does; k and v get their gradients."""
        k, v = (
            torch.cat([text.to(x.dtype).expand(len(x), -1, -1, -1), x.transpose(1, 2)], 2)
            for text, x in zip(self.buffer, (k, v), strict=True)
        )
        return F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), self.dropped
