"""Paths that are written in data. Whoever made the data may name a picture, and no other file of this machine."""

import functools
import os
import re
import stat
from typing import BinaryIO

from trol_jax.errors import UserError

FOLDERS = 1 << 16  # whose place is remembered; all sources together have about 10,000
UNUSUAL = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\\\0\ud800-\udfff]|^[A-Za-z]:")  # "", "a//b", "../a", "a\b", "C:a"


def normalise(relative: str) -> str:
    """A path without "." and double slashes. UserError for one that is empty, absolute, with a drive or with ".."."""
    if not UNUSUAL.search(relative):
        return relative
    parts = [part for part in relative.split("/") if part not in ("", ".")]
    if not parts or relative.startswith("/") or ".." in parts or UNUSUAL.search("/".join(parts)):
        raise UserError(f"the path {relative[:200]!r} is not one below the root; write it like 'folder/picture.jpg'")
    return "/".join(parts)


def resolve(root: str, relative: str) -> str:
    """The full path of a file below the root, whether it exists or not.

    UserError for a path that `normalise` refuses, or one that leaves the root by a symbolic link. A folder is looked up
    once in each process: links to folders must stay while it runs.
    """
    relative = normalise(relative)
    folder, _, name = relative.rpartition("/")
    path = os.path.join(_folder(root, folder), name)
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            _refuse_beyond(root, os.path.realpath(path), relative)
    except OSError:
        pass  # missing: who opens it says so
    return path


@functools.lru_cache(FOLDERS)
def _folder(root: str, folder: str) -> str:
    path = os.path.realpath(os.path.join(root, folder))
    _refuse_beyond(root, path, folder)
    return path


def _refuse_beyond(root: str, path: str, relative: str) -> None:
    root = _real(root)
    if path != root and not path.startswith(os.path.join(root, "")):
        raise UserError(
            f"the path {relative!r} leaves the root {root} by a link, to {path}; "
            "put the files below the root, or mount them there"
        )


@functools.lru_cache(16)
def _real(root: str) -> str:
    return os.path.realpath(root)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """To read from. UserError for what is no file; nobody waits for who would write to a pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise UserError(f"{os.fspath(path)} cannot be read: it is a folder, a pipe or a device, and no file")
