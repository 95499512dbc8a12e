"""GPT-OSS, small: the architecture of openai/gpt-oss-20b, written out.

Pre-norm blocks of attention (attention.py: sinks, a window in every other layer) and experts
(moe.py), and an untied head without bias. Each tensor is one of transformers' GptOssForCausalLM
(formats/from_hf.py).
Source: https://github.com/openai/gpt-oss, gpt_oss/torch/model.py; OpenAI 2025, arXiv 2508.10925.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from crawl2cart.lm.models.attention import (
    KeyValues,
    SharedKeyValues,
    attention_with_sink_row,
    frequencies,
    rope,
    rope_table,
    with_sink_row,
)
from crawl2cart.lm.models.config import complete_config
from crawl2cart.lm.models.init import ParamSpec, constant, fan_in, normal, pad_vocab
from crawl2cart.lm.models.moe import experts, route
from crawl2cart.lm.training.losses import balance, linear_cross_entropy, z_loss

REQUIRED = (
    "num_layers",
    "hidden_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "num_experts",
    "experts_per_token",
    "sliding_window",
    "max_position_embeddings",
    "rope_factor",
    "router_aux_loss_coef",
    "router_z_loss_coef",
)
# The values of gpt-oss-20b's config.json.
DEFAULTS = {
    "rope_theta": 150_000.0,
    "rope_beta_fast": 32.0,
    "rope_beta_slow": 1.0,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "rms_norm_eps": 1e-5,
}
# How heads of window layers start: size of their biases, and how many places back they look.
NEAR, NEAR_HEADS = 4.5, 4


class RmsNorm(torch.autograd.Function):
    """`rms_norm` with a written-out gradient, which reads and writes x a third as often."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        t = x.float()
        scale = torch.rsqrt(t.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return (t * scale).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed, gradient = x.float() * scale, gradient.float()
        d_weight = (gradient * normed).flatten(0, -2).sum(0)
        d = gradient * weight
        # What lies along x is lost: the norm takes it out again.
        along = (d * normed).mean(-1, keepdim=True)
        return d.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype), d_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Return x / √(mean x² + eps) · weight over the last dimension, in x's dtype.

    Computed in float32, the product with the weight included.
    """
    if torch.is_grad_enabled():
        return RmsNorm.apply(x, weight, eps)
    if x.dtype == weight.dtype == torch.float32:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


class State:
    """What generation keeps: keys and values of every layer, and how many columns were read.

    padding (B,): columns at the left of each row that hold nothing; None: all rows start together.
    """

    def __init__(self, layers: list[KeyValues], padding: Tensor | None, columns: int = 0):
        self.layers, self.padding, self.columns = layers, padding, columns
        self.least_padding = 0 if padding is None else int(padding.min())

    def __getitem__(self, rows: Tensor) -> "State":
        """Return the state of these rows of the batch."""
        padding = None if self.padding is None else self.padding[rows]
        return State([layer[rows] for layer in self.layers], padding, self.columns)


def previous_token_bias(tensor: Tensor, _: Generator, block: "Block") -> None:
    """Start a bias of queries or keys so that heads of a window layer look at near places first.

    Head h scores most what stands h mod NEAR_HEADS places back (0: itself). Rotary positions turn
    the query's bias against the key's, so it starts turned back by that many places. From zeros
    this is hard to learn, as each bias's gradient has the other as a factor. Layers that see all
    tokens start from zeros.
    """
    tensor.zero_()
    if block.window is None:
        return
    heads = tensor.view(-1, block.head_dim)
    is_query = len(tensor) == len(block.query_bias)
    for head in range(len(heads)):
        places = head % NEAR_HEADS if is_query else 0
        heads[head] = previous_token_rotation(places, block.head_dim, block.rope_theta)


def previous_token_rotation(places: int, head_dim: int, theta: float = 150_000.0) -> Tensor:
    """Return a query bias (head_dim,) that scores most what stands so many places back.

    The key bias for it is the one of 0 places.
    """
    bias, pairs = torch.zeros(head_dim), head_dim // 8  # the fastest pairs tell near places apart
    angles = frequencies(head_dim, 1.0, 1.0, theta)[0][:pairs] * places
    bias[:pairs] = NEAR * angles.cos()
    bias[head_dim // 2 : head_dim // 2 + pairs] = -NEAR * angles.sin()
    return bias


class Block(nn.Module):
    """One layer: attention and experts, each added to its input."""

    def __init__(self, config: Mapping, window: int | None):
        super().__init__()
        D, H, G = config["hidden_size"], config["num_heads"], config["num_kv_heads"]
        d, E, width = config["head_dim"], config["num_experts"], config["intermediate_size"]
        self.window, self.heads, self.num_kv_heads, self.head_dim = window, H, G, d
        self.experts_per_token = config["experts_per_token"]
        self.rope_theta, self.eps = config["rope_theta"], config["rms_norm_eps"]
        self.swiglu = config["swiglu_alpha"], config["swiglu_limit"]
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
        """Return weight and bias of queries, keys and values as one product."""
        weight = torch.cat([self.query, self.key, self.value])
        return weight, torch.cat([self.query_bias, self.key_bias, self.value_bias])

    def attend(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        past: KeyValues | SharedKeyValues | None,
        padding: Tensor | None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D). turn: cosine and sine of the positions."""
        H, G = self.heads, self.num_kv_heads
        weight, bias = past and past.projection or self.projection()
        heads = F.linear(x, weight, bias).unflatten(-1, (-1, self.head_dim))  # (B, T, H + G + G, d)
        turned, v = heads.split([H + G, G], 2)
        q, k = rope(turned, *turn).split([H, G], 2)  # (B, T, H, d), (B, T, G, d)
        if past is None:
            k, v = with_sink_row(k), with_sink_row(v)
        else:
            k, v, before = past.extend(k, v)
            padding = None if padding is None else padding - before
        out = attention_with_sink_row(q, k, v, self.sinks, self.window, padding)
        return F.linear(out.flatten(2), self.output, self.output_bias)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        past: KeyValues | SharedKeyValues | None = None,
        padding: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, T, D) -> (B, T, D), and the router's logits (B, T, E) and choices (B, T, K)."""
        B, T, _ = x.shape
        x = x + self.attend(rms_norm(x, self.attention_norm, self.eps), turn, past, padding)
        normed = rms_norm(x, self.expert_norm, self.eps).flatten(0, 1)
        logits, chosen, share = route(normed, self.router, self.router_bias, self.experts_per_token)
        weights = self.gate_up, self.gate_up_bias, self.down, self.down_bias
        mixed = experts(normed, chosen, share, *weights, *self.swiglu)
        return x + mixed.view(x.shape), (logits.view(B, T, -1), chosen.view(B, T, -1))


class GptOss(nn.Module):
    """A GPT-OSS of any size.

    config: REQUIRED and, where they differ from gpt-oss-20b's, DEFAULTS. Lengths are in tokens.
    The original context of YaRN is max_position_embeddings / rope_factor. router_aux_loss_coef and
    router_z_loss_coef weigh the routers' losses. vocabulary: number of token ids.
    Raises ValueError if a key is missing.
    Parameters are uninitialised memory until `initialise` or a state dict fills them.
    """

    name = "gpt_oss"
    PARAMS = {
        "embedding": ParamSpec(normal(1.0), decay=False),  # from 0.02 it learns slower
        "attention_norm": ParamSpec(constant(1.0), decay=False),
        "sinks": ParamSpec(constant(0.0), decay=False),  # -inf would never get a gradient
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
        self.config = config = complete_config(self.name, config, REQUIRED, **DEFAULTS)
        self.vocabulary = vocabulary
        self.embedding = nn.Parameter(torch.empty(pad_vocab(vocabulary), config["hidden_size"]))
        self.blocks = nn.ModuleList(
            Block(config, config["sliding_window"] if layer % 2 == 0 else None)
            for layer in range(config["num_layers"])
        )
        self.norm = nn.Parameter(torch.empty(config["hidden_size"]))
        self.head = nn.Parameter(torch.empty(pad_vocab(vocabulary), config["hidden_size"]))

    @torch.no_grad()
    def init_state(self, batch: int, padding: Tensor | None = None) -> State:
        """Return an empty state for generation.

        padding (batch,): how many columns at the left of each row hold nothing.
        """
        assert padding is None or padding.shape == (batch,), "padding must have one number a row"
        layers = [KeyValues(block.window, block.projection()) for block in self.blocks]
        return State(layers, padding)

    @torch.no_grad()
    def prefill(self, tokens: Tensor) -> State:
        """Return a state in which every row of a batch has read `tokens` (1, T), for `loss`.

        The shared text is read once, and no gradient reaches the reading of it.
        """
        state = self.init_state(1)
        self.forward_hidden(tokens, state)
        return State([SharedKeyValues(layer) for layer in state.layers], None, state.columns)

    def rope_turn(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine (…, T, 1, head_dim / 2) for positions (…, T)."""
        config = self.config
        return rope_table(
            positions,
            config["head_dim"],
            config["rope_factor"],
            config["max_position_embeddings"] / config["rope_factor"],
            theta=config["rope_theta"],
            beta_fast=config["rope_beta_fast"],
            beta_slow=config["rope_beta_slow"],
        )

    def forward_hidden(
        self, tokens: Tensor, state: State | None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """tokens (B, T) -> hidden (B, T, D) after the last norm, and each layer's routing.

        Raises ValueError if a row becomes longer than max_position_embeddings.
        """
        columns = torch.arange(tokens.size(1), device=tokens.device)
        length, padding, past = tokens.size(1), None, [None] * len(self.blocks)
        if state is not None:
            columns, padding, past = columns + state.columns, state.padding, state.layers
            state.columns += tokens.size(1)
            length = state.columns - state.least_padding
        if length > self.config["max_position_embeddings"]:
            raise ValueError(
                f"A row of {length:,} tokens is longer than the model's max_position_embeddings, "
                f"{self.config['max_position_embeddings']:,}. Shorten it."
            )
        positions = columns[None] if padding is None else columns - padding[:, None]
        turn = self.rope_turn(positions)
        x, routed = F.embedding(tokens, self.embedding), []
        for block, layer in zip(self.blocks, past, strict=True):
            x, routing = block(x, turn, layer, padding)
            routed.append(routing)
        return rms_norm(x, self.norm, self.config["rms_norm_eps"]), routed

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """tokens (B, T) -> hidden (B, T, D) and the state after them; no state keeps nothing.

        Raises ValueError if a row becomes longer than max_position_embeddings.
        """
        return self.forward_hidden(tokens, state)[0], state

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, D) -> (…, vocabulary), without the ids that only pad the table."""
        return F.linear(hidden, self.head[: self.vocabulary])

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: State | None = None,
        importance: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return mean nats per target. The gradient includes the routers' losses, the value not.

        tokens, targets (B, T), importance (B, T): weight of each target in the mean. state: what
        `prefill` returned. Ids that pad the table count in the softmax.
        """
        hidden, routed = self.forward_hidden(tokens, state)
        nats = linear_cross_entropy(hidden, self.head, targets, importance)
        router = self.router_loss(routed)
        return nats + (router - router.detach()), None

    def router_loss(self, routed: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the weighted losses of the routers, mean over layers."""
        aux, z = self.config["router_aux_loss_coef"], self.config["router_z_loss_coef"]
        losses = (aux * balance(logits, chosen) + z * z_loss(logits) for logits, chosen in routed)
        return sum(losses) / len(routed)

    def active_parameters(self) -> int:
        """Return how many parameters a token meets: not those of experts it is not sent to."""
        all_parameters = sum(parameter.numel() for parameter in self.parameters())
        expert_parts = ("gate_up", "gate_up_bias", "down", "down_bias")
        one_expert = sum(getattr(self.blocks[0], name)[0].numel() for name in expert_parts)
        idle = self.config["num_experts"] - self.config["experts_per_token"]
        return all_parameters - len(self.blocks) * idle * one_expert
