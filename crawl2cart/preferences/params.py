"""The parameters of `sft`, `build_prefs` and `dpo`; params.yaml says what each does."""

from typing import Annotated, Literal

from pydantic import Field

from crawl2cart.core.params import Count, NotNegative, Positive, Section, Share


class TrlScale(Section):
    max_steps: Count
    batch_size: Count
    max_length: Count
    eval_samples: Count


class Sft(Section):
    learning_rate: Positive
    lora_rank: Count
    lora_alpha: Count
    warmup_ratio: Share


class BuildPrefs(Section):
    samples: Annotated[int, Field(ge=2)]
    temperature: Positive
    top_p: Share
    max_new_tokens: Count
    min_score_margin: Share
    max_reference_ratio: Annotated[float, Field(ge=0, lt=1)]
    feedback: str
    judge: Literal["none", "openai"]
    judge_model: str
    judge_input_price: NotNegative
    judge_output_price: NotNegative
    judge_budget: Positive


class BuildPrefsScale(Section):
    prompts: Count
    batch_size: Count


class Dpo(Section):
    loss_type: Literal["sigmoid", "apo_zero", "ipo", "sigmoid_norm"]
    beta: Positive
    learning_rate: Positive
    warmup_ratio: Share
    lora_rank: Count
    lora_alpha: Count
    sft_weight: NotNegative
