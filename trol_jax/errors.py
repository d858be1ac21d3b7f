"""The one exception that is addressed to the person at the keyboard."""


class UserError(ValueError):
    """Bad input. The message is one line that says what is wrong, where (file, row, field, flag) and what to do.

    Programs in `launch/` print it without a traceback and exit with status 2.
    """
