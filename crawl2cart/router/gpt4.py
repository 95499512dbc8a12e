"""Ask GPT-4 over the network: one client, one retry, one deadline, and a circuit breaker.

Two things can go wrong. `Unreachable`: the service did not answer; the circuit breaker counts
these. `Unusable`: it answered with something that is no chat completion. Both describe the failure
in our words, never in the server's, which may repeat the key or the customer's text.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from httpx import Timeout
from openai import APIConnectionError, APIStatusError, OpenAI

from crawl2cart.core.deadline import Result, with_deadline
from crawl2cart.core.retry_after import retry_after

CONNECT_SECONDS = 2.0
MAX_RETRY_AFTER = 2.0  # seconds; a server that asks for a longer pause is not asked again
MAX_FAILURES = 3  # within FAILURE_WINDOW seconds, which open the circuit for OPEN_SECONDS
FAILURE_WINDOW = 30.0
OPEN_SECONDS = 30.0

Ask = Callable[..., str]
OnText = Callable[[str], None]


class Unreachable(Exception):
    """The service did not answer: no connection, an error status, or no time left."""


class Unusable(Exception):
    """The service answered, but not with a chat completion that can be used."""


@dataclass
class Usage:
    """What one decision cost: its time, and the tokens and US dollars of all its requests."""

    seconds: float = 0.0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0


class CircuitBreaker:
    """Opens for OPEN_SECONDS after MAX_FAILURES failures within FAILURE_WINDOW seconds.

    clock: a monotonic clock in seconds. Safe to share between threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self._failures: deque[float] = deque(maxlen=MAX_FAILURES)
        self._closes = float("-inf")
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether calls are refused at present."""
        return self.clock() < self._closes

    def record_failure(self) -> None:
        """Count a failure, and open the circuit if there are too many."""
        with self._lock:
            now = self.clock()
            self._failures.append(now)
            recent = now - self._failures[0] <= FAILURE_WINDOW
            if len(self._failures) == MAX_FAILURES and recent:
                self._closes = now + OPEN_SECONDS
                self._failures.clear()


def retry_pause(error: APIConnectionError | APIStatusError) -> float | None:
    """Return the seconds until the request may be sent again, or None if it may not."""
    if isinstance(error, APIConnectionError):
        return 0.0
    pause = retry_after(error.response.headers.get("retry-after"))
    if error.status_code >= 500 and pause is None:
        return 0.0
    if error.status_code == 429 or error.status_code >= 500:
        return pause if pause is not None and pause <= MAX_RETRY_AFTER else None
    return None


def describe(error: APIConnectionError | APIStatusError) -> str:
    """Return the failure in our own words."""
    return f"status {error.status_code}" if isinstance(error, APIStatusError) else "no connection"


def token_count(usage: object, name: str) -> int:
    """Return a number of tokens, 0 if the server does not state it: compatible servers may not."""
    count = getattr(usage, name, None)
    return count if isinstance(count, int) and count > 0 else 0


class Gpt4:
    """A client of the chat completions API, active if OPENAI_API_KEY is set.

    OPENAI_BASE_URL may name another server. model: its name there. input_price, output_price: US
    dollars per million tokens.
    """

    def __init__(
        self,
        model: str,
        input_price: float = 0.0,
        output_price: float = 0.0,
        circuit: CircuitBreaker | None = None,
    ):
        self.model, self.input_price, self.output_price = model, input_price, output_price
        self.circuit = circuit or CircuitBreaker()
        self.has_key = bool(os.environ.get("OPENAI_API_KEY", "").strip())

    @cached_property
    def client(self) -> OpenAI:
        """The OpenAI client. It does not retry: `_ask` does."""
        return OpenAI(max_retries=0)

    def __call__(self, seconds: float, use: Callable[[Ask], Result]) -> Result:
        """Return `use(ask)`, or raise if it takes longer than `seconds`, retries included.

        ask(usage, on_text, **request) returns the text of one chat completion and adds its cost to
        `usage`. on_text, if given, receives the text so far while it streams. Raise Unreachable or
        Unusable, and whatever `use` raises.
        """
        if self.circuit.is_open:
            raise Unreachable("it failed repeatedly just now")
        deadline = time.monotonic() + seconds

        def ask(usage: Usage, on_text: OnText | None = None, **request: object) -> str:
            return self._ask(deadline, usage, on_text, request)

        try:
            return with_deadline(seconds, lambda: use(ask))
        except TimeoutError as error:
            self.circuit.record_failure()
            raise Unreachable(f"no answer within {seconds:g} s") from error
        except Unreachable:
            self.circuit.record_failure()
            raise

    def _ask(self, deadline: float, usage: Usage, on_text: OnText | None, request: dict) -> str:
        """Send a request, and once more where a second try may help."""
        try:
            return self._text(self._send(deadline, usage, on_text, request), usage)
        except (APIConnectionError, APIStatusError) as error:
            pause = retry_pause(error)
            if pause is None or time.monotonic() + pause >= deadline:
                raise Unreachable(describe(error)) from error
            time.sleep(pause)
        try:
            return self._text(self._send(deadline, usage, on_text, request), usage)
        except (APIConnectionError, APIStatusError) as error:
            raise Unreachable(f"{describe(error)}, twice") from error

    def _send(self, deadline: float, usage: Usage, on_text: OnText | None, request: dict) -> object:
        """Send one request and return the completion, streamed if `on_text` is given."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise Unreachable("no time left")
        usage.requests += 1
        timeout = Timeout(left, connect=min(left, CONNECT_SECONDS))
        request = request | {"model": self.model, "timeout": timeout}
        completions = self.client.chat.completions
        try:
            if on_text is None:
                return completions.create(**request)
            with completions.stream(**request, stream_options={"include_usage": True}) as events:
                for event in events:
                    if event.type == "content.delta" and time.monotonic() < deadline:
                        on_text(event.snapshot)
                return events.current_completion_snapshot
        except (APIConnectionError, APIStatusError):
            raise
        except Exception as error:  # a server may send anything; a key may not fit into a header
            raise Unusable(type(error).__name__) from error

    def _text(self, completion: object, usage: Usage) -> str:
        """Return a completion's text and add up its cost. Raise Unusable if it has no text."""
        stated = getattr(completion, "usage", None)
        read = token_count(stated, "prompt_tokens")
        written = token_count(stated, "completion_tokens")
        usage.input_tokens += read
        usage.output_tokens += written
        usage.dollars += (read * self.input_price + written * self.output_price) / 1e6
        try:
            message = completion.choices[0].message
            text = message.content
        except (AttributeError, IndexError, TypeError, KeyError) as error:
            raise Unusable("no chat completion") from error
        if getattr(message, "refusal", None):
            raise Unusable("a refusal")
        if not isinstance(text, str) or not text.strip():
            raise Unusable("an empty answer")
        return text
