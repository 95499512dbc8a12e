"""The one exception of this project that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend. The text says what was wrong, where, and what to do; no traceback is shown."""
