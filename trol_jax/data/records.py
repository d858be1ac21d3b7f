"""Rows of .json, .jsonl and .parquet files by number, as dicts: (row number in the file, row).

Sources of workers: what is sent to another process are names and numbers, files are opened there at the first row.
"""

import functools
import json
import operator
import os
import weakref
from collections.abc import Callable

from trol_jax.data.index import row_index, stamp
from trol_jax.errors import StorageError, UserError
from trol_jax.retry import retry


class JsonRecords:
    """Rows of a JSON array of objects or of JSON lines.

    keep: see `index.row_index`. total: rows in the file, len: rows that are kept.
    """

    def __init__(self, path: str | os.PathLike, keep: Callable[[bytes], bool] | None = None):
        self.path, self._keep = os.fspath(path), keep
        index = row_index(self.path, keep)
        self.total, self._length, self._stamp = index.total, len(index.rows), index.stamp
        self.__dict__["_open"] = self._descriptor(), index.rows

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[int, dict]:
        _, rows = self._open
        start, size, number = rows[check_index(index, self._length)].tolist()
        try:
            data = retry(self._read, start, size)
        except OSError as error:
            raise StorageError(f"{self.path}, row {number}, cannot be read: {error.strerror}") from error
        try:
            row = json.loads(data.decode())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path}, row {number}, at byte {start}: {_reason(error, start)}") from None
        if not isinstance(row, dict):
            raise UserError(f"{self.path}, row {number}, at byte {start}: {str(row)[:40]!r} is not an object {{...}}")
        return number, row

    def _read(self, start: int, size: int) -> bytes:
        try:
            return os.pread(self._open[0], size, start)
        except OSError:
            self.__dict__.pop("_open", None)  # a handle that is stale stays so: the next attempt takes a new one
            raise

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    @functools.cached_property
    def _open(self):
        """(descriptor, offsets) of this process."""
        if stamp(self.path, self._keep) != self._stamp:
            raise StorageError(f"{self.path} has changed since this program began; start it again")
        return self._descriptor(), row_index(self.path, self._keep).rows

    def _descriptor(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        return descriptor


def check_index(index: int, length: int) -> int:
    index = operator.index(index)
    if not 0 <= index < length:
        raise IndexError(f"row {index} of {length}")
    return index


def _reason(error: Exception, start: int) -> str:
    match error:
        case UnicodeDecodeError():
            return f"byte {start + error.start} is not UTF-8"
        case json.JSONDecodeError():
            return f"no JSON: {error.msg} at character {error.pos} of the row"
        case RecursionError():
            return "nested too deeply"
    return f"no JSON: {error}"
