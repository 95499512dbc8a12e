"""A chat model that costs money: its answers are kept on disk by what was asked, and what new ones may cost has a limit."""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from openai import APIStatusError, OpenAI

from crawl2cart.core.deadline import with_deadline
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_json, write_json

RETRIES = (
    5  # of a request that got no answer: the client waits longer each time, or as Retry-After says
)
SECONDS = 60.0  # for one of them
LETTERS_PER_TOKEN = 3  # fewer than any English text has, so that a price is never guessed too low


class OverBudget(Exception):
    """There is no money left for a request."""


@dataclass
class PaidChat:
    """setting: the parameter that is `openai`, for errors. cache: where answers are kept. budget: US dollars that new ones may cost.

    input_price, output_price: US dollars for a million tokens. seconds, retries: of one request. Many threads may ask at once.
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
                f"{self.setting} is openai, but OPENAI_API_KEY is not set. Set it, or set {self.setting} to none."
            )
        self._client = OpenAI(max_retries=self.retries, timeout=self.seconds)
        self._lock, self._promised = threading.Lock(), 0.0

    def ask(self, check: Callable[[dict], None], max_tokens: int, **request: object) -> dict:
        """The message that answers a request: its `content` and `calls`, name and JSON text of the arguments.

        check: raises what this then raises where an answer is of no use, and is not kept. Raises OverBudget, the client's OpenAIError,
        TimeoutError, and whatever an answer makes of itself that is none (a server may send anything).
        """
        request = {"model": self.model, "max_tokens": max_tokens, **request}
        text = json.dumps(request, sort_keys=True)
        place = self.cache / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
        if place.is_file():
            return read_json(place)
        most = (
            len(text) / LETTERS_PER_TOKEN * self.input_price + max_tokens * self.output_price
        ) / 1e6
        with self._lock:
            if self.dollars + self._promised + most > self.budget:
                raise OverBudget
            self._promised += most
        cost = most  # of a request that broke off: it may be on the bill
        try:
            said = with_deadline(
                2 * self.seconds * (self.retries + 1),
                lambda: self._client.chat.completions.create(**request),
            )
            if said.usage:
                cost = (
                    said.usage.prompt_tokens * self.input_price
                    + said.usage.completion_tokens * self.output_price
                ) / 1e6
            message = said.choices[0].message
            answer = {
                "content": message.content or "",
                "calls": [
                    {"name": call.function.name, "arguments": call.function.arguments}
                    for call in message.tool_calls or []
                ],
            }
        except APIStatusError:
            cost = 0.0
            raise
        finally:
            with self._lock:
                self._promised -= most
                self.dollars += cost
        check(answer)
        write_json(place, answer)
        return answer
