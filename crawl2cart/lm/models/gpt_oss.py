"""GPT-OSS, small: the architecture of openai/gpt-oss-20b, written out.

Pre-norm blocks of attention (attention.py: sinks, every other layer a window) and experts (experts.py), an untied head
without bias. It exports to transformers' GptOssForCausalLM tensor by tensor (export.py).
Source: https://github.com/openai/gpt-oss, gpt_oss/torch/model.py; OpenAI 2025, https://arxiv.org/abs/2508.10925.
"""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from crawl2cart.lm.models.attention import (
    KeyValues,
    SharedKeyValues,
    attention,
    frequencies,
    rope,
    rope_table,
    with_sink_row,
)
from crawl2cart.lm.models.init import ParamSpec, constant, fan_in, normal, pad_vocab
from crawl2cart.lm.models.moe import experts, route
from crawl2cart.lm.training.losses import balance, cross_entropy, z_loss

EPSILON = 1e-5
# How heads of window layers start (look_back): size of their biases, and how many places back there are.
NEAR, NEAR_HEADS = 4.5, 4


class RmsNorm(torch.autograd.Function):
    """`rms_norm` with its gradient written out: autograd's own reads and writes x three times as often."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        t = x.float()
        scale = torch.rsqrt(t.square().mean(-1, keepdim=True) + EPSILON)
        ctx.save_for_backward(x, weight, scale)
        return (t * scale).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, scale = ctx.saved_tensors
        normed, gradient = x.float() * scale, gradient.float()
        weight_gradient = (gradient * normed).flatten(0, -2).sum(0)
        d = gradient * weight
        # What lies along x is lost: the norm takes it out again.
        along = (d * normed).mean(-1, keepdim=True)
        return d.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype), weight_gradient


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / √(mean x² + ε) · weight over the last dimension, in float32 including the weight, then x's dtype."""
    if torch.is_grad_enabled():
        return RmsNorm.apply(x, weight)
    if x.dtype == weight.dtype == torch.float32:
        return F.rms_norm(x, weight.shape, weight, EPSILON)
    return F.rms_norm(x.float(), weight.shape, weight.float(), EPSILON).to(x.dtype)


class State:
    """What generation keeps: keys and values of every layer, and how far it has come.

    padding (B,): columns at the left of each row that hold nothing; None where all rows start together.
    """

    def __init__(self, layers: list[KeyValues], padding: Tensor | None):
        self.layers, self.padding, self.columns = layers, padding, 0


def previous_token_bias(tensor: Tensor, _: Generator, block: "Block") -> None:
    """Starts a bias of queries or keys, so that the heads of a window layer look at places before they look at words.

    Head h scores most what stands h mod NEAR_HEADS places back (0: itself): rotary positions turn the query's bias against the
    key's, and it starts turned back by so many places. From biases of 0 this cannot be learnt at once: each one's gradient holds the
    other as a factor. Layers that see all tokens start from 0.
    """
    tensor.zero_()
    if block.window is None:
        return
    heads = tensor.view(-1, block.head_dim)
    for head in range(len(heads)):
        heads[head] = previous_token_rotation(
            head % NEAR_HEADS if len(tensor) == len(block.query_bias) else 0, block.head_dim
        )


def previous_token_rotation(places: int, head_dim: int) -> Tensor:
    """The bias (head_dim,) of queries that score most what stands so many places back, where keys have that of 0 places."""
    bias, pairs = torch.zeros(head_dim), head_dim // 8  # the fastest pairs tell near places apart
    turned = frequencies(head_dim, 1.0, 1.0)[0][:pairs] * places
    bias[:pairs], bias[head_dim // 2 : head_dim // 2 + pairs] = (
        NEAR * turned.cos(),
        -NEAR * turned.sin(),
    )
    return bias


class Block(nn.Module):
    def __init__(self, config: Mapping, window: int | None):
        super().__init__()
        D, H, G, d = (
            config["hidden_size"],
            config["num_heads"],
            config["num_kv_heads"],
            config["head_dim"],
        )
        E, width = config["num_experts"], config["intermediate_size"]
        self.window, self.heads, self.num_kv_heads, self.head_dim = window, H, G, d
        self.experts_per_token = config["experts_per_token"]
        shapes = {
            "attention_norm": (D,),
            "query": (H * d, D),
            "query_bias": (H * d,),
            "key": (G * d, D),
            "key_bias": (G * d,),
            "value": (G * d, D),
            "value_bias": (G * d,),
            "sinks": (H,),
            "output": (D, H * d),
            "output_bias": (D,),
            "expert_norm": (D,),
            "router": (E, D),
            "router_bias": (E,),
            "gate_up": (E, D, 2 * width),
            "gate_up_bias": (E, 2 * width),
            "down": (E, width, D),
            "down_bias": (E, D),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def projection(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of queries, keys and values in one product."""
        return torch.cat([self.query, self.key, self.value]), torch.cat(
            [self.query_bias, self.key_bias, self.value_bias]
        )

    def attend(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        past: KeyValues | SharedKeyValues | None,
        padding: Tensor | None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D). turn: cosine and sine of the positions."""
        weight, bias = past and past.projection or self.projection()
        heads = F.linear(x, weight, bias).unflatten(-1, (-1, self.head_dim))  # (B, T, H + G + G, d)
        turned, v = heads.split([heads.size(2) - self.num_kv_heads, self.num_kv_heads], 2)
        q, k = rope(turned, *turn).split(
            [self.heads, self.num_kv_heads], 2
        )  # (B, T, H, d), (B, T, G, d)
        if past is None:
            k, v = with_sink_row(k), with_sink_row(v)
        else:
            k, v, before = past.extend(k, v)
            padding = None if padding is None else padding - before
        out = attention(q, k, v, self.sinks, self.window, padding)
        return F.linear(out.flatten(2), self.output, self.output_bias)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        past: KeyValues | SharedKeyValues | None = None,
        padding: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, T, D) -> the same shape, and what the router said: logits (B, T, E), chosen (B, T, K)."""
        x = x + self.attend(rms_norm(x, self.attention_norm), turn, past, padding)
        normed = rms_norm(x, self.expert_norm).flatten(0, 1)
        logits, chosen, share = route(normed, self.router, self.router_bias, self.experts_per_token)
        mixed = experts(
            normed, chosen, share, self.gate_up, self.gate_up_bias, self.down, self.down_bias
        )
        return x + mixed.view(x.shape), (
            logits.view(*x.shape[:2], -1),
            chosen.view(*x.shape[:2], -1),
        )


class GptOss(nn.Module):
    """config: num_layers, hidden_size, num_heads, num_kv_heads, head_dim, intermediate_size, num_experts,
    experts_per_token, sliding_window, max_position_embeddings
    (tokens), rope_factor (YaRN's; the original context is max_position_embeddings / rope_factor), router_aux_loss_coef and router_z_loss_coef."""

    PARAMS = {
        "embedding": ParamSpec(
            normal(1.0), decay=False
        ),  # 0.02 learns slower: 5.15 against 4.72 nats after 80 steps of 2,048 tokens
        "attention_norm": ParamSpec(constant(1.0), decay=False),
        "sinks": ParamSpec(
            constant(0.0), decay=False
        ),  # one virtual key of score 0; -inf would never get a gradient
        "query": ParamSpec(fan_in(), decay=True),
        "query_bias": ParamSpec(previous_token_bias, decay=False),
        "key": ParamSpec(fan_in(), decay=True),
        "key_bias": ParamSpec(previous_token_bias, decay=False),
        "value": ParamSpec(fan_in(), decay=True),
        "value_bias": ParamSpec(constant(0.0), decay=False),
        "output": ParamSpec(constant(0.0), decay=True),  # each block starts as the identity
        "output_bias": ParamSpec(constant(0.0), decay=False),
        "expert_norm": ParamSpec(constant(1.0), decay=False),
        "router": ParamSpec(normal(0.02), decay=True),
        "router_bias": ParamSpec(constant(0.0), decay=False),
        "gate_up": ParamSpec(fan_in(dim=1), decay=True),
        "gate_up_bias": ParamSpec(constant(0.0), decay=False),
        "down": ParamSpec(constant(0.0), decay=True),
        "down_bias": ParamSpec(constant(0.0), decay=False),
        "norm": ParamSpec(constant(1.0), decay=False),
        "head": ParamSpec(normal(0.02), decay=True),
    }

    def __init__(self, config: Mapping, vocabulary: int):
        super().__init__()
        self.config, self.vocabulary = dict(config), vocabulary
        self.embedding = nn.Parameter(torch.empty(pad_vocab(vocabulary), config["hidden_size"]))
        self.blocks = nn.ModuleList(
            Block(config, config["sliding_window"] if layer % 2 == 0 else None)
            for layer in range(config["num_layers"])
        )
        self.norm = nn.Parameter(torch.empty(config["hidden_size"]))
        self.head = nn.Parameter(torch.empty(pad_vocab(vocabulary), config["hidden_size"]))

    @torch.no_grad()
    def init_state(self, batch: int, padding: Tensor | None = None) -> State:
        """An empty state for generation. padding (batch,): how many columns at the left of each row hold nothing."""
        assert padding is None or padding.shape == (batch,), "padding must have one number a row"
        return State(
            [KeyValues(block.window, block.projection()) for block in self.blocks], padding
        )

    @torch.no_grad()
    def prefill(self, tokens: Tensor) -> State:
        """A state in which every row of a batch has read `tokens` (1, T): training goes on from there, in one call of `loss`.

        What they share is read once, and no gradient reaches the reading of it.
        """
        state = self.init_state(1)
        self.forward_hidden(tokens, state)
        shared = State([SharedKeyValues(layer) for layer in state.layers], None)
        shared.columns = state.columns
        return shared

    def forward_hidden(
        self, tokens: Tensor, state: State | None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """tokens (B, T) -> hidden (B, T, D) after the last norm, and what each layer's router said."""
        config = self.config
        columns = torch.arange(tokens.size(1), device=tokens.device)
        padding, past = None, [None] * len(self.blocks)
        if state is not None:
            columns, padding, past = columns + state.columns, state.padding, state.layers
            state.columns += tokens.size(1)
        positions = columns[None] if padding is None else columns - padding[:, None]
        turn = rope_table(
            positions,
            config["head_dim"],
            config["rope_factor"],
            config["max_position_embeddings"] / config["rope_factor"],
        )
        x, routed = F.embedding(tokens, self.embedding), []
        for block, layer in zip(self.blocks, past, strict=True):
            x, said = block(x, turn, layer, padding)
            routed.append(said)
        return rms_norm(x, self.norm), routed

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """tokens (B, T) -> hidden (B, T, D) and the state after them; without a state nothing is kept."""
        return self.forward_hidden(tokens, state)[0], state

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: State | None = None,
        importance: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Mean nats per target, weighted by importance (B, T) if there is one. Its gradient holds the routers' losses too, its value
        does not. state: as `after` gives it."""
        hidden, routed = self.forward_hidden(tokens, state)
        nats = cross_entropy(hidden, self.head, targets, importance)
        router = sum(
            self.config["router_aux_loss_coef"] * balance(logits, chosen)
            + self.config["router_z_loss_coef"] * z_loss(logits)
            for logits, chosen in routed
        ) / len(routed)
        return nats + (router - router.detach()), None

    def active_parameters(self) -> int:
        """Parameters that a token meets: all but those of the experts it is not sent to."""
        whole = sum(parameter.numel() for parameter in self.parameters())
        one = sum(
            getattr(self.blocks[0], name)[0].numel()
            for name in ("gate_up", "gate_up_bias", "down", "down_bias")
        )
        return (
            whole
            - len(self.blocks)
            * (self.config["num_experts"] - self.config["experts_per_token"])
            * one
        )
