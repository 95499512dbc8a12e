"""The parameters of the demonstration; params.yaml says what each does."""

from crawl2cart.core.params import Count, NotNegative, Section


class Demo(Section):
    openai_model: str
    input_price: NotNegative
    output_price: NotNegative
    log_text: bool
    constrained: bool
    max_query_chars: Count
    rate_limit_per_minute: Count
    max_concurrency: Count
    max_queue: Count
    max_sessions: Count
