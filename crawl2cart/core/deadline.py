"""A deadline for a call that may never return."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def with_deadline(seconds: float, call: Callable[[], Result]) -> Result:
    """The call's result; what it raises; or TimeoutError when it takes longer.

    A network client's own timeout is for each read, so a server that sends a byte now and then would hold the customer for
    ever. The call runs in a thread that is left behind when the time is over.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(seconds)
