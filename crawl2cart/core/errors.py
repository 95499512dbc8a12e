"""The exception for errors that the user can fix."""


class UserError(Exception):
    """An error whose text says what is wrong, where, and what to do; shown without traceback."""
