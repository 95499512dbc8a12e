"""Give a call that may never return a deadline."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def with_deadline(seconds: float, call: Callable[[], Result]) -> Result:
    """Return the call's result or raise its exception; raise TimeoutError after `seconds`.

    A network client's timeout is for one read, so a server that sends a byte now and then would
    block for ever. The call runs in a daemon thread, which is abandoned at the deadline.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(seconds)
