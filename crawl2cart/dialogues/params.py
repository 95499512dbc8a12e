"""The parameters of `build_sft`."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from crawl2cart.core.params import Count, NotNegative, Positive, Section, Share


class Weights(Section):
    """How often each of several is drawn: as often as its weight has to the sum of all."""

    @model_validator(mode="after")
    def some_weight(self) -> "Weights":
        if not any(self.model_dump().values()):
            raise ValueError("at least one of them should be above 0")
        return self


class IntentWeights(Weights):
    model_config = ConfigDict(serialize_by_alias=True)  # `return` is no name in Python

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
