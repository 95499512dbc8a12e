"""Ask a paid chat model within a budget, and cache its answers on disk by the request."""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from openai import APIStatusError, OpenAI
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionMessage

from crawl2cart.core.deadline import with_deadline
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_json, write_json

RETRIES = 5  # of a failed request; the client backs off exponentially and honours Retry-After
SECONDS = 60.0  # for one attempt
CHARACTERS_PER_TOKEN = 3  # fewer than in English text, so that a price is never underestimated


class OverBudget(Exception):
    """Say that the next request could exceed the budget."""


@dataclass
class PaidChat:
    """A client of the OpenAI API with a cache and a budget. Threads may share it.

    setting: the parameter that selects this service, for error messages. input_price, output_price:
    US dollars per million tokens. budget: US dollars that new answers may cost. cache: the folder
    of answers. seconds, retries: of one request. dollars: spent so far.
    """

    setting: str
    model: str
    input_price: float
    output_price: float
    budget: float
    cache: Path
    seconds: float = SECONDS
    retries: int = RETRIES
    dollars: float = 0.0

    def __post_init__(self):
        if not os.environ.get("OPENAI_API_KEY", "").strip():
            raise UserError(
                f"{self.setting} is openai, but OPENAI_API_KEY is not set. "
                f"Set it, or set {self.setting} to none."
            )
        self._client = OpenAI(max_retries=self.retries, timeout=self.seconds)
        self._lock, self._reserved = threading.Lock(), 0.0

    def ask(self, check: Callable[[dict], None], max_tokens: int, **request: object) -> dict:
        """Return the answer to a request: {"content": str, "calls": [{"name", "arguments"}]}.

        check(answer) raises if the answer is useless; such an answer is not cached. Raises what
        `check` raises, OverBudget, openai.OpenAIError, TimeoutError, and any error that an
        ill-formed response causes, because a server may send anything.
        """
        request = {"model": self.model, "max_tokens": max_tokens, **request}
        text = json.dumps(request, sort_keys=True)
        file = self.cache / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
        if file.is_file():
            return read_json(file)
        answer = self._send(request, self._price(len(text) / CHARACTERS_PER_TOKEN, max_tokens))
        check(answer)
        write_json(file, answer)
        return answer

    def _send(self, request: dict, highest_price: float) -> dict:
        """Send a request while its highest price is reserved, then book what it cost."""
        with self._lock:
            if self.dollars + self._reserved + highest_price > self.budget:
                raise OverBudget
            self._reserved += highest_price
        cost = highest_price  # a request that breaks off may still be billed
        try:
            response = with_deadline(
                2 * self.seconds * (self.retries + 1),
                lambda: self._client.chat.completions.create(**request),
            )
            cost = self._cost(response.usage, default=highest_price)
            return _to_answer(response.choices[0].message)
        except APIStatusError:
            cost = 0.0
            raise
        finally:
            with self._lock:
                self._reserved -= highest_price
                self.dollars += cost

    def _price(self, input_tokens: float, output_tokens: float) -> float:
        return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6

    def _cost(self, usage: CompletionUsage | None, default: float) -> float:
        return self._price(usage.prompt_tokens, usage.completion_tokens) if usage else default


def _to_answer(message: ChatCompletionMessage) -> dict:
    """Reduce a response's message to what is cached."""
    calls = [
        {"name": call.function.name, "arguments": call.function.arguments}
        for call in message.tool_calls or []
    ]
    return {"content": message.content or "", "calls": calls}
