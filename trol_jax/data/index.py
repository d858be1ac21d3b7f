"""Random access to the rows of large JSON files: their offsets, kept in a file beside the data.

The first use of a file reads it once (`scan`); later ones map the offsets into memory, which takes no time and next to
no memory. An offset file is taken only if size, time of change, beginning and end of the data and the filter are what
they were.
"""

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import xxhash

from trol_jax.data import scan
from trol_jax.data.paths import open_regular
from trol_jax.errors import StorageError, UserError
from trol_jax.retry import retry

ROW = np.dtype([("start", "<u8"), ("size", "<u4"), ("number", "<u4")])  # bytes; number among all rows of the file
HEADER = 1024  # bytes before the offsets: a line of JSON, filled up with spaces
ENDS = 64 << 10  # bytes at the beginning and at the end of the data that are compared
CHUNK = 1 << 16  # rows written together
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Index:
    """rows: ROW[number of rows that the filter keeps]; total: rows in the file; stamp: what the data was then."""

    rows: np.ndarray
    total: int
    stamp: dict


def row_index(path: str, keep: Callable[[bytes], bool] | None = None) -> Index:
    """The index of a .json or .jsonl file, built if there is none that fits.

    keep: filter of rows, given their bytes; its repr must tell one filter from another.
    UserError for a file that is missing or damaged between its rows.
    """
    expected = stamp(path, keep)
    for place in places(path, ".index"):
        if (index := _read(place, expected)) is not None:
            return index
    with writing(path, ".index") as (temporary, _):
        _write(temporary, path, keep, expected)
        if stamp(path, keep) != expected:
            raise UserError(f"{path} changed while its rows were counted; start again when it is complete")
        return _read(temporary, expected)  # what is mapped stays, whatever its name becomes


def stamp(path: str, note: object = None) -> dict:
    """What tells one state of a file from another, and a note; JSON-able."""
    try:
        status, ends = retry(_status_and_ends, path)
    except FileNotFoundError:
        raise StorageError(f"{path} does not exist") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from None
    except UserError as error:  # it may have been a file when the program began: no row is bad for that
        raise StorageError(str(error)) from None
    digest = xxhash.xxh3_64(ends).hexdigest()
    return {
        "version": VERSION, "bytes": status.st_size, "changed": status.st_mtime_ns, "ends": digest, "note": repr(note),
    }  # fmt: skip


def _status_and_ends(path: str) -> tuple[os.stat_result, bytes]:
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        ends = file.read(ENDS)
        file.seek(max(0, status.st_size - ENDS))
        return status, ends + file.read(ENDS)


def places(path: str, suffix: str) -> list[str]:
    """Where a file derived from `path` may lie: beside it or, where that cannot be written, among the user's caches."""
    path = os.path.abspath(path)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = f"{hashlib.sha256(path.encode()).hexdigest()[:16]}-{os.path.basename(path)}{suffix}"
    return [path + suffix, os.path.join(caches, "trol_jax", "data", name)]


@contextlib.contextmanager
def writing(path: str, suffix: str) -> Iterator[tuple[str, str]]:
    """(temporary name, final name) in the first of `places` that can be written; nothing stays after an error, and what
    a process that was killed has left goes.
    """
    held = None
    for place in places(path, suffix):
        try:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            _remove_abandoned(place)
            held = _held(place)
            break
        except OSError as error:
            problem = error
    if held is None:
        raise UserError(f"the index of {path} can be written neither beside it nor to {place}: {problem.strerror}")
    with held:
        try:
            yield held.name, place
            os.replace(held.name, place)
        except OSError as error:
            raise UserError(f"{place} cannot be written: {error.strerror or error}") from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(held.name)


def _held(place: str) -> BinaryIO:
    """A new temporary file, which the lock of its process keeps."""
    while True:
        file = open(f"{place}.{secrets.token_hex(4)}.tmp", "xb")  # noqa: SIM115
        with contextlib.suppress(OSError):  # some network disks have no locks, and then nothing is removed either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # removed before it was locked


def _remove_abandoned(place: str) -> None:
    """Temporary files of this name that no process holds any more."""
    for each in glob.glob(f"{glob.escape(place)}.????????.tmp"):
        with contextlib.suppress(OSError), open(each, "r+b") as file:  # another process may remove it, or hold it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.remove(each)


def _write(place: str, path: str, keep: Callable[[bytes], bool] | None, header: dict) -> None:
    """Offsets of the rows to keep, a chunk at a time, then the header, without which the file is none."""
    kept = total = 0

    def entries():
        nonlocal total
        for number, start, row in scan.rows(path):
            total += 1
            if keep is None or keep(row):
                yield start, len(row), number

    rows = entries()
    with open(place, "wb") as file:
        file.seek(HEADER)
        while chunk := list(itertools.islice(rows, CHUNK)):
            file.write(np.array(chunk, ROW).tobytes())
            kept += len(chunk)
        line = json.dumps(header | {"total": total, "rows": kept}).encode()
        file.seek(0)
        file.write(line.ljust(HEADER - 1) + b"\n")


def _read(place: str, expected: dict) -> Index | None:
    try:
        with open(place, "rb") as file:
            header = json.loads(file.read(HEADER))
            if any(header[key] != value for key, value in expected.items()):
                return None
            kept, total = header["rows"], header["total"]
            if os.fstat(file.fileno()).st_size != HEADER + kept * ROW.itemsize:
                return None
            rows = np.asarray(np.memmap(file, ROW, "r", HEADER, (kept,))) if kept else np.empty(0, ROW)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or not one of ours
    return Index(rows, total, expected)
