"""The parameters of `evaluate`; params.yaml says what each does."""

from crawl2cart.core.params import Count, Positive, Section


class Evaluate(Section):
    max_new_tokens: Count
    temperature: Positive
    models: str


class EvaluateScale(Section):
    batch_size: Count
    turns: Count
    plans: Count
