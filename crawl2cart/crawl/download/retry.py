"""When requests may start, which failures are retried, and when to give up.

All connections share one Retry: a server that asks one of them to wait is left alone by all.
Retry-After: RFC 9110, section 10.2.3. Backoff with jitter:
https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
"""

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from tqdm import tqdm

from crawl2cart.core.errors import UserError

Result = TypeVar("Result")
MAX_BACKOFF = 600.0  # seconds
MAX_RETRY_AFTER = 3600.0  # seconds; we end the run if a server asks for more
ANNOUNCED_WAIT = 2.0  # seconds; shorter waits are silent


class TransientError(Exception):
    """A failure that a retry may mend.

    kind: one or two words, for the counts. retry_after: seconds the server asked us to wait.
    progressed: whether the attempt brought the work forward. checksum: hash of content that
    arrived whole but is wrong; the same hash twice means that the server's copy is bad.
    """

    def __init__(self, kind: str, text: str, retry_after: float | None = None, checksum: str = ""):
        super().__init__(text)
        self.kind, self.retry_after, self.checksum = kind, retry_after, checksum
        self.progressed = False


class Stopped(Exception):
    """Ends the other connections when one has met a UserError or the user ends the run."""


class Retry:
    """Spaces requests and repeats those that fail.

    seconds_between_requests: least time between the starts of two requests, and the first backoff.
    max_attempts: how many attempts in a row may fail. errors: how often each kind was met.
    """

    def __init__(self, seconds_between_requests: float, max_attempts: int):
        self.pause, self.max_attempts = seconds_between_requests, max_attempts
        self.errors: Counter[str] = Counter()
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._next_start = 0.0  # time.monotonic() from which the next request may start

    def take_turn(self) -> None:
        """Wait until the next request may start. Raises Stopped."""
        while True:
            with self._lock:
                now = time.monotonic()
                seconds = self._next_start - now
                if seconds <= 0:
                    self._next_start = now + self.pause
                    return
            self.sleep(seconds)

    def sleep(self, seconds: float) -> None:
        """Wait. Raises Stopped as soon as the run is to end."""
        if self.stopped.wait(seconds):
            raise Stopped

    def retry(self, what: str, attempt: Callable[[], Result]) -> Result:
        """Call `attempt` until it succeeds and return its result. what: names the work in messages.

        Raises UserError when `max_attempts` in a row have failed, when the same wrong content came
        twice, or when the server asks for too long a wait.
        """
        failures, checksums = 0, set()
        while True:
            self.take_turn()
            try:
                return attempt()
            except TransientError as error:
                with self._lock:
                    self.errors[error.kind] += 1
                failures = 1 if error.progressed else failures + 1
                if error.checksum in checksums:
                    raise UserError(
                        f"{what}: {error}. The same bytes came twice, so the server's copy is bad. "
                        "Choose other files or another mirror (download.base)."
                    ) from error
                if failures >= self.max_attempts:
                    raise UserError(
                        f"{what}: {error}. Attempt {failures} of {self.max_attempts} failed "
                        f"(so far: {self.error_summary()}). What was downloaded is kept: run again "
                        "later to resume."
                    ) from error
                if error.checksum:
                    checksums.add(error.checksum)
                self.back_off(what, error, failures)

    def back_off(self, what: str, error: TransientError, failures: int) -> None:
        """Wait as long as the server asked, or else exponentially with jitter.

        Raises Stopped, or UserError if the server asks for more than MAX_RETRY_AFTER.
        """
        backoff = min(MAX_BACKOFF, self.pause * 2 ** min(failures - 1, 30))
        seconds = max(error.retry_after or 0.0, backoff * random.uniform(0.5, 1.0))
        if seconds > MAX_RETRY_AFTER:
            raise UserError(
                f"{what}: {error}. The server asks us to wait {seconds / 3600:,.1f} hours. What "
                "was downloaded is kept: run again then to resume."
            ) from error
        if error.retry_after is not None:
            with self._lock:
                self._next_start = max(self._next_start, time.monotonic() + seconds)
        if seconds >= ANNOUNCED_WAIT:
            tqdm.write(
                f"{what}: {error}. Retry in {seconds:,.0f} s "
                f"(attempt {failures} of {self.max_attempts} failed)",
                file=sys.stderr,
            )
        self.sleep(seconds)

    def error_summary(self) -> str:
        """Return the errors met and how often, in words."""
        counts = [f"{kind} {count} times" for kind, count in sorted(self.errors.items())]
        return ", ".join(counts) or "no error"
