"""Show progress on a terminal and in a log."""

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
    """Yield the items and show rate and remaining time.

    On a terminal this is a bar, elsewhere a line every 15 seconds.

    first: items that an earlier run has done. total: all items, those included. Of several
    processes only the first prints.
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
    started = last_line = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last_line >= SECONDS_BETWEEN_LINES:
            rate = done / (now - started)
            seconds_left = (total - first - done) / rate
            counts = f"{first + done:,} of {total:,} {units}"
            print(
                f"{name}: {counts}, {rate:,.1f} per second, {seconds_left:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )
            last_line = now
