"""What a rule measures on a page, and whether the page passes."""

from collections.abc import Iterable
from typing import NamedTuple


class Check(NamedTuple):
    """A rule's score on a page, and the least and the greatest score that pass."""

    rule: str
    score: float
    low: float
    high: float

    @property
    def ok(self) -> bool:
        return self.low <= self.score <= self.high


def first_failure(checks: Iterable[Check]) -> Check | None:
    """Return the first check that fails, None if all pass. Those behind it are not computed."""
    return next((check for check in checks if not check.ok), None)
