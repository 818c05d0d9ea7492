"""The one exception that a person is meant to read."""


class UserError(Exception):
    """Something the user can mend. Its text is one line that says what to do; the CLI exits with 1."""
