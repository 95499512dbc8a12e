"""Progress that a person can read on a terminal and in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from crawl2cart.core.stage import is_first

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 15.0


def progress(
    items: Iterable[Item], name: str, unit: str, total: int | None = None, first: int = 0
) -> Iterator[Item]:
    """Yields the items, showing rate and remaining time: a bar on a terminal, a plain line now and then elsewhere.

    first: how many items an earlier run has done already. total: all items, the earlier ones included. Of several processes only the
    first speaks.
    """
    if not is_first():
        yield from items
        return
    if total is None:
        total = first + len(items)
    if sys.stderr.isatty():
        yield from tqdm(items, desc=name, unit=f" {unit}", total=total, initial=first)
        return
    units = f"{unit}{'es' if unit.endswith(('s', 'x', 'ch')) else 's'}"
    started = spoken = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - spoken >= SECONDS_BETWEEN_LINES:
            rate = done / (now - started)
            left = (total - first - done) / rate
            print(
                f"{name}: {first + done:,} of {total:,} {units}, {rate:,.1f} a second, {left:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )
            spoken = now
