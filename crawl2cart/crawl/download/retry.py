"""The one loop in which requests are repeated: what may be asked again, when, and when to stop asking.

All connections share one Retry, so that a server which says "later" to one of them is left alone by all.
Retry-After: RFC 9110 section 10.2.3. Jitter: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
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
LONGEST_WAIT = 600.0  # seconds between two attempts, unless the server asks for more
LONGEST_RETRY_AFTER = 3600.0  # seconds; whoever asks for more is not waited for
SPOKEN_WAIT = 2.0  # seconds from which on a wait is announced


class Fault(Exception):
    """An attempt that failed for now: it is worth while to ask again.

    kind: one word for the counts. after: seconds that the server asked to wait. gained: whether the attempt brought
    the work forward. evidence: a hash of what came, where it came whole and is wrong; the same twice is no accident.
    """

    def __init__(
        self,
        kind: str,
        text: str,
        after: float | None = None,
        gained: bool = False,
        evidence: str = "",
    ):
        super().__init__(text)
        self.kind, self.after, self.gained, self.evidence = kind, after, gained, evidence


class Stopped(Exception):
    """Raised in the connections that still work when another has met a UserError or the user has ended the run."""


class Retry:
    """seconds_between_requests: least time from one request to the next over all connections, and the first wait.

    attempts: how many attempts in a row may fail. faults: how often which fault was met.
    """

    def __init__(self, seconds_between_requests: float, attempts: int):
        self.pause, self.attempts = seconds_between_requests, attempts
        self.faults: Counter[str] = Counter()
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._next = 0.0  # time.monotonic() from which on the next request may start

    def take_turn(self) -> None:
        """Returns when the next request may start. Raises Stopped."""
        while True:
            with self._lock:
                now = time.monotonic()
                wait = self._next - now
                if wait <= 0:
                    self._next = now + self.pause
                    return
            self.sleep(wait)

    def sleep(self, seconds: float) -> None:
        if self.stopped.wait(seconds):
            raise Stopped

    def check(self) -> None:
        """Raises Stopped when the run is to end."""
        if self.stopped.is_set():
            raise Stopped

    def retry(self, what: str, attempt: Callable[[], Result]) -> Result:
        """What `attempt` returns, however often it has to be made. what: for messages.

        Raises UserError when `attempts` in a row have failed, or when the same wrong content came twice.
        """
        failures, seen = 0, set()
        while True:
            self.take_turn()
            try:
                return attempt()
            except Fault as fault:
                failures = 1 if fault.gained else failures + 1
                with self._lock:
                    self.faults[fault.kind] += 1
                if fault.evidence and fault.evidence in seen:
                    raise UserError(
                        f"{what}: {fault}. It came twice with the same bytes, so it is the server's copy that is bad. "
                        "Choose other files or another mirror (download.base)."
                    ) from fault
                seen.add(fault.evidence)
                if failures >= self.attempts:
                    raise UserError(
                        f"{what}: {fault}. That was attempt {failures} of {self.attempts} without success (met so far: "
                        f"{self.fault_summary()}). What has come is kept; run again later and it goes on from there."
                    ) from fault
                self.wait(what, fault, failures)

    def wait(self, what: str, fault: Fault, failures: int) -> None:
        """Waits as long as the server asked, or else twice as long each time, less a random part."""
        backoff = min(LONGEST_WAIT, self.pause * 2 ** min(failures - 1, 30)) * random.uniform(
            0.5, 1.0
        )
        seconds = max(fault.after or 0.0, backoff)
        if seconds > LONGEST_RETRY_AFTER:
            raise UserError(
                f"{what}: {fault}. The server asks to be left alone for {seconds / 3600:,.1f} hours. What has come is "
                "kept; run again then."
            ) from fault
        if fault.after is not None:
            with self._lock:
                self._next = max(self._next, time.monotonic() + seconds)
        if seconds >= SPOKEN_WAIT:
            tqdm.write(
                f"{what}: {fault}; again in {seconds:,.0f} s ({failures} of {self.attempts})",
                file=sys.stderr,
            )
        self.sleep(seconds)

    def fault_summary(self) -> str:
        """The faults met, in words."""
        return (
            ", ".join(f"{kind} {count} times" for kind, count in sorted(self.faults.items()))
            or "no fault"
        )
