"""When a server that is busy wants to be asked again."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after(header: str | None) -> float | None:
    """Seconds to wait, from a Retry-After header of seconds or a date (RFC 9110, 10.2.3); None if there is none to be read."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # TypeError: a date without a zone
        return None
