"""Folders that get their name when everything in them is written."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator

from trol_jax.errors import UserError


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[str]:
    """Gives an empty folder to write into, which becomes `path`; of work that fails nothing stays.

    UserError if there is something already, and where it cannot be written.
    """
    path = os.path.abspath(path)
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise UserError(f"{path} is there already; name a folder that is new or empty")
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        os.makedirs(temporary)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
