"""Storage that fails for a moment is asked again."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
WAITS = (0.5, 2.0, 8.0)  # seconds before the second, third and fourth attempt
NAMES = (
    "EIO ESTALE ETIMEDOUT EAGAIN EBUSY EREMOTEIO ECONNRESET ECONNABORTED ENETDOWN ENETUNREACH EHOSTDOWN EHOSTUNREACH"
)
PASSING = frozenset(getattr(errno, name) for name in NAMES.split() if hasattr(errno, name))  # network disks say these
EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))  # a machine says these


def may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in PASSING


def of_machine(error: BaseException) -> bool:
    """Whether this machine is out of memory or of open files, whatever was to be read."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in EXHAUSTED)


def retry(call: Callable[..., T], *args) -> T:
    """call(*args), again after an OSError that may pass."""
    for wait in WAITS:
        try:
            return call(*args)
        except OSError as error:
            if not may_pass(error):
                raise
            time.sleep(wait)
    return call(*args)
