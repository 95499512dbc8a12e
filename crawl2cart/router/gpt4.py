"""GPT-4 over the network: one client, one retry loop, one deadline, and a circuit that opens when the service is down.

What goes wrong is one of two things: `Unreachable` (the service did not answer; counted by the circuit) or `Unusable` (it
answered something that is no chat completion). Both say in our own words what happened, never in the server's, which may
repeat the key or the customer's text.
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

from crawl2cart.agent.endpoint import OnText
from crawl2cart.core.deadline import Result, with_deadline
from crawl2cart.core.retry_after import retry_after

SECONDS_TO_CONNECT = 2.0
LONGEST_RETRY_AFTER = (
    2.0  # seconds; a server that asks for more patience than the customer has is not asked again
)
FAILURES_THAT_OPEN = 3
SECONDS_OF_FAILURES = 30.0
SECONDS_OPEN = 30.0

Ask = Callable[..., str]


class Unreachable(Exception):
    """The service did not answer: no connection, a status that is no success, or no time left."""


class Unusable(Exception):
    """The service answered what is no answer."""


@dataclass
class Spent:
    """What one decision took: the time, and over all of its requests the tokens and their price in US dollars."""

    seconds: float = 0.0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0


class Circuit:
    """Closed, it lets calls through; FAILURES_THAT_OPEN of them failing within SECONDS_OF_FAILURES open it for SECONDS_OPEN.

    clock: seconds that only grow. Safe to share between threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self._failures: deque[float] = deque(maxlen=FAILURES_THAT_OPEN)
        self._closes = float("-inf")
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        return self.clock() < self._closes

    def failed(self) -> None:
        with self._lock:
            now = self.clock()
            self._failures.append(now)
            if (
                len(self._failures) == FAILURES_THAT_OPEN
                and now - self._failures[0] <= SECONDS_OF_FAILURES
            ):
                self._closes = now + SECONDS_OPEN
                self._failures.clear()


def pause_before_retry(error: APIConnectionError | APIStatusError) -> float | None:
    """Seconds until the request may be sent again, or None if it may not be."""
    if isinstance(error, APIConnectionError):
        return 0.0
    wait = retry_after(error.response.headers.get("retry-after"))
    if error.status_code == 429:
        return wait if wait is not None and wait <= LONGEST_RETRY_AFTER else None
    if error.status_code >= 500:
        return (wait or 0.0) if (wait or 0.0) <= LONGEST_RETRY_AFTER else None
    return None


def in_words(error: APIConnectionError | APIStatusError) -> str:
    return f"status {error.status_code}" if isinstance(error, APIStatusError) else "no connection"


def counted(usage: object, name: str) -> int:
    """A number of tokens as the server states it, 0 if it states none: not every compatible server does."""
    number = getattr(usage, name, None)
    return number if isinstance(number, int) and number > 0 else 0


class Gpt4:
    """A key in OPENAI_API_KEY switches GPT-4 on; OPENAI_BASE_URL may name another server.

    model: its name there. input_price, output_price: US dollars for a million tokens.
    """

    def __init__(
        self,
        model: str,
        input_price: float = 0.0,
        output_price: float = 0.0,
        circuit: Circuit | None = None,
    ):
        self.model, self.input_price, self.output_price = model, input_price, output_price
        self.circuit = circuit or Circuit()
        self.has_key = bool(os.environ.get("OPENAI_API_KEY", "").strip())

    @cached_property
    def client(self) -> OpenAI:
        return OpenAI(max_retries=0)  # the loop below is the only one

    def __call__(self, seconds: float, use: Callable[[Ask], Result]) -> Result:
        """use(ask) within the deadline, where ask(spent, hear, **request) is the text of a chat completion.

        hear, if any, is told the text as far as it is written. Raises Unreachable or Unusable, and what `use` raises itself.
        """
        if self.circuit.is_open:
            raise Unreachable("it failed repeatedly just now")
        ends = time.monotonic() + seconds
        try:
            return with_deadline(
                seconds,
                lambda: use(
                    lambda spent, hear=None, **request: self._ask(ends, spent, hear, request)
                ),
            )
        except TimeoutError as error:
            self.circuit.failed()
            raise Unreachable(f"no answer within {seconds:g} s") from error
        except Unreachable:
            self.circuit.failed()
            raise

    def _ask(self, ends: float, spent: Spent, hear: OnText | None, request: dict) -> str:
        try:
            return self._text(self._send(ends, spent, hear, request), spent)
        except (APIConnectionError, APIStatusError) as error:
            pause = pause_before_retry(error)
            if pause is None or time.monotonic() + pause >= ends:
                raise Unreachable(in_words(error)) from error
            time.sleep(pause)
        try:
            return self._text(self._send(ends, spent, hear, request), spent)
        except (APIConnectionError, APIStatusError) as error:
            raise Unreachable(f"{in_words(error)}, twice") from error

    def _send(self, ends: float, spent: Spent, hear: OnText | None, request: dict) -> object:
        left = ends - time.monotonic()
        if left <= 0:
            raise Unreachable("no time left")
        spent.requests += 1
        request = request | {
            "model": self.model,
            "timeout": Timeout(left, connect=min(left, SECONDS_TO_CONNECT)),
        }
        try:
            if hear is None:
                return self.client.chat.completions.create(**request)
            with self.client.chat.completions.stream(
                **request, stream_options={"include_usage": True}
            ) as events:
                for event in events:
                    if event.type == "content.delta" and time.monotonic() < ends:
                        hear(event.snapshot)
                return events.current_completion_snapshot
        except (APIConnectionError, APIStatusError):
            raise
        except (
            Exception
        ) as error:  # a server may send anything, and a key may be what no header can carry
            raise Unusable(type(error).__name__) from error

    def _text(self, said: object, spent: Spent) -> str:
        """The answer's text. Raises Unusable if there is none: a refusal, an empty one, a body that is something else."""
        usage = getattr(said, "usage", None)
        read, written = counted(usage, "prompt_tokens"), counted(usage, "completion_tokens")
        spent.input_tokens += read
        spent.output_tokens += written
        spent.dollars += (read * self.input_price + written * self.output_price) / 1e6
        try:
            message = said.choices[0].message
            text = message.content
        except (AttributeError, IndexError, TypeError, KeyError) as error:
            raise Unusable("no chat completion") from error
        if getattr(message, "refusal", None):
            raise Unusable("a refusal")
        if not isinstance(text, str) or not text.strip():
            raise Unusable("an empty answer")
        return text
