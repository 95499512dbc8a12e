"""The parameters of `encode`, `pretrain` and `midtrain`; params.yaml says what each does."""

from typing import Annotated, Literal

from pydantic import Field

from crawl2cart.core.params import Count, NotNegative, Positive, Section, Share


class Encode(Section):
    vocab_size: Annotated[int, Field(ge=256)]


class Loop(Section):
    optimizer: Literal["adamw", "muon"]
    schedule: Literal["cosine", "wsd"]
    sharded: bool
    weight_decay: NotNegative
    adam_beta1: Share
    adam_beta2: Share
    grad_clip: Positive
    warmup_ratio: Share
    min_lr_ratio: Share


class Mlp(Section):
    learning_rate: Positive


class Recurrent(Section):
    learning_rate: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]


class GptOss(Section):
    learning_rate: Positive
    router_aux_loss_coef: NotNegative
    router_z_loss_coef: NotNegative


class Pretrain(Section):
    loop: Loop
    mlp: Mlp
    rnn: Recurrent
    lstm: Recurrent
    gru: Recurrent
    gpt_oss: GptOss


class PretrainScale(Section):
    context: Count
    batch_tokens: Count
    max_steps: Count
    eval_interval: Count
    eval_tokens: Count
    compile: bool


class MlpSize(Section):
    context_size: Count
    embedding_size: Count
    hidden_size: Count


class RecurrentSize(Section):
    hidden_size: Count
    num_layers: Count
    bptt_length: Count


class GptOssSize(Section):
    num_layers: Count
    hidden_size: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    intermediate_size: Count
    num_experts: Count
    experts_per_token: Count
    sliding_window: Count
    max_position_embeddings: Count
    rope_factor: Annotated[float, Field(ge=1)]


class Models(Section):
    mlp: MlpSize
    rnn: RecurrentSize
    lstm: RecurrentSize
    gru: RecurrentSize
    gpt_oss: GptOssSize


class LossWeights(Section):
    reply: Positive
    arguments: Positive
    tool_choice: Positive


class Midtrain(Section):
    learning_rate: Positive
    weight_decay: NotNegative
    grad_clip: Positive
    warmup_ratio: Share
    min_lr_ratio: Share
    replay_ratio: Share
    loss_weights: LossWeights
    curriculum_ratio: Share
    truncated_per_full: Annotated[int, Field(ge=0)]
    randomize_entities: Share
    randomize_categories: Share
    guide_weight: NotNegative
    idle_weight: NotNegative


class MidtrainScale(Section):
    base_model: str
    revision: str
    batch_tokens: Count
    max_steps: Count
    eval_interval: Count
