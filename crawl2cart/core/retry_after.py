"""The Retry-After header, with which a busy server says when to come back."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after(header: str | None) -> float | None:
    """Parse a Retry-After header (RFC 9110, section 10.2.3), which holds seconds or a date.

    Returns seconds from now, at least 0, or None if the header is absent or unreadable.
    """
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # TypeError: a date without a time zone
        return None
