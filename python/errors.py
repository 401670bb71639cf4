"""The one exception that train.py shows without a traceback."""


class UserError(Exception):
    """Something the user can mend: the message says what was wrong, what was got, what to do."""
