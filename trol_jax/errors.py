"""The exceptions that are addressed to the person at the keyboard, or to the scheduler."""


class UserError(ValueError):
    """Bad input. The message is one line that says what is wrong, where (file, row, field, flag) and what to do.

    Programs in `launch/` print it without a traceback and exit with `status`.
    """

    status = 2


class StorageError(UserError):
    """Files that cannot be had now, whatever is in them: no sample is bad for that, and none is left out.

    For the disk, or for want of memory or open files.
    """


class Diverged(UserError):
    """Training that came to nothing: started again it would do so again."""

    status = 3


CAUGHT: list[int] = []  # numbers of the signals that came, each of which raised KeyboardInterrupt (launch.cli)


def look_for_signals() -> None:
    """Raises KeyboardInterrupt again where a signal came: foreign code that it fell into may have swallowed it."""
    if CAUGHT:
        raise KeyboardInterrupt(CAUGHT[-1])


def one_line(text: object) -> str:
    """As a person may see it: what data say is no command to a terminal."""
    line = " ".join(str(text).split())
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


STOPPED = 75  # of a program that was told to stop, and did so with everything saved: start it again (EX_TEMPFAIL)
