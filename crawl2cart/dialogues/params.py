"""The parameters of `build_sft`; params.yaml says what each does."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from crawl2cart.core.params import Count, NotNegative, Positive, Section, Share


class Weights(Section):
    """Relative frequencies, of which at least one is positive."""

    @model_validator(mode="after")
    def one_is_positive(self) -> "Weights":
        if not any(self.model_dump().values()):
            raise ValueError("at least one of the weights should be above 0")
        return self


class IntentWeights(Weights):
    model_config = ConfigDict(serialize_by_alias=True)  # `return` is a keyword of Python

    search: NotNegative
    facts: NotNegative
    compare: NotNegative
    recommend: NotNegative
    stock: NotNegative
    price: NotNegative
    order_status: NotNegative
    cancel: NotNegative
    return_: Annotated[float, Field(ge=0, alias="return")]
    exchange: NotNegative
    address: NotNegative
    warranty: NotNegative
    policy: NotNegative
    gift: NotNegative
    complaint: NotNegative
    unanswerable: NotNegative
    out_of_scope: NotNegative


class StyleWeights(Weights):
    brief: NotNegative
    warm: NotNegative
    formal: NotNegative
    plain: NotNegative


class BuildSft(Section):
    multi_turn_ratio: Share
    intent_weights: IntentWeights
    train_intent_weights: IntentWeights
    style_weights: StyleWeights
    max_characters: Count
    teacher: Literal["none", "openai"]
    teacher_model: str
    teacher_wordings: Annotated[int, Field(ge=0)]
    teacher_dialogues: Annotated[int, Field(ge=0)]
    teacher_input_price: NotNegative
    teacher_output_price: NotNegative
    teacher_budget: Positive
    teacher_connections: Count


class BuildSftScale(Section):
    train_dialogues: Count
    validation_dialogues: Count
    test_dialogues: Count
    safety_dialogues: Count
