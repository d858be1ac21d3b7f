"""Rows of parquet files by number, a few row groups at a time in memory."""

import bisect
import collections
import contextlib
import itertools
import json
import os
import threading
from collections.abc import Collection, Iterator

import pyarrow
import pyarrow.parquet

from trol_jax.data.index import places, stamp, writing
from trol_jax.data.records import check_index
from trol_jax.errors import StorageError, UserError
from trol_jax.retry import may_pass, of_machine, retry

GROUPS = 4  # row groups that are kept decoded, of each file in each process
LARGEST = 1 << 18  # bytes of a decoded group; a file with larger ones is copied once,
SMALL = 1 << 16  # with groups of this size: to read a row takes a hundredth of the time that one of 8 MB takes
MARK = b"trol_jax.copy_of"


class ParquetRecords:
    """Rows of a parquet file: (row number, dict).

    To read a row is to decode its group. Files come with groups of a hundred megabytes, too much for a single row: they
    are read from a copy with small groups, that is made once as an index is (`index.places`).

    columns: those to read, as far as they are there; by default all. UserError names file and row of what is damaged.
    """

    def __init__(self, path: str | os.PathLike, columns: Collection[str] = ()):
        self.path = os.fspath(path)
        self._stamp = stamp(self.path)
        self._copy = self._file_with_small_groups()
        with self._explained(" as parquet"):
            metadata = pyarrow.parquet.read_metadata(self._copy)
            names = metadata.schema.to_arrow_schema().names
        self._columns = [name for name in names if name in columns] or None
        sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._firsts = list(itertools.accumulate(sizes, initial=0))
        self.total = metadata.num_rows
        self._reset()

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> tuple[int, dict]:
        index = check_index(index, self.total)
        group = bisect.bisect_right(self._firsts, index) - 1
        table = self._group(group)
        with self._explained("", f", row {index}"):
            return index, table.slice(index - self._firsts[group], 1).to_pylist()[0]

    def __getstate__(self) -> dict:
        return {name: self.__dict__[name] for name in ("path", "total", "_columns", "_stamp", "_copy", "_firsts")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        self._file, self._groups, self._lock = None, collections.OrderedDict(), threading.Lock()

    def _group(self, group: int) -> pyarrow.Table:
        with self._lock:  # a file of pyarrow serves one thread at a time
            if group not in self._groups:
                self._groups[group] = self._decode(group)
                if len(self._groups) > GROUPS:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
            return self._groups[group]

    def _decode(self, group: int) -> pyarrow.Table:
        with self._explained("", f", rows {self._firsts[group]} to {self._firsts[group + 1] - 1}"):
            return retry(self._read, group)

    def _read(self, group: int) -> pyarrow.Table:
        try:
            if self._file is None:
                if stamp(self.path) != self._stamp:
                    raise StorageError(f"{self.path} has changed since this program began; start it again")
                self._file = pyarrow.parquet.ParquetFile(self._copy)
            return self._file.read_row_group(group, self._columns, use_threads=False)
        except OSError:
            self._file = None  # a handle that is stale stays so: the next attempt takes a new one
            raise

    @contextlib.contextmanager
    def _explained(self, how: str, where: str = "") -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of pyarrow and of values: text that is not UTF-8, dates that Python does not have
            said = f"{self.path}{where} cannot be read{how}: {_line(error) or 'out of memory'}"
            if may_pass(error) or of_machine(error) or isinstance(error, FileNotFoundError):
                raise StorageError(said) from error
            raise UserError(f"{said}; copy the file again") from error

    def _file_with_small_groups(self) -> str:
        with self._explained(" as parquet"):
            metadata = pyarrow.parquet.read_metadata(self.path)
            if max(_sizes(metadata), default=0) <= LARGEST:
                return self.path
            for place in places(self.path, ".groups"):
                if _mark(place) == self._stamp:
                    return place
            return self._regroup(metadata)

    def _regroup(self, metadata) -> str:
        rows = max(1, metadata.num_rows * SMALL // sum(_sizes(metadata)))
        source = pyarrow.parquet.ParquetFile(self.path, pre_buffer=False)
        with source as file, writing(self.path, ".groups") as (temporary, final):
            schema = file.schema_arrow
            schema = schema.with_metadata((schema.metadata or {}) | {MARK: json.dumps(self._stamp).encode()})
            with pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
                for batch in self._batches(file, rows):
                    writer.write_batch(batch)
        return final

    def _batches(self, file: pyarrow.parquet.ParquetFile, rows: int) -> Iterator[pyarrow.RecordBatch]:
        with self._explained(""):  # here, or `writing` would say that the copy cannot be written
            yield from file.iter_batches(rows, use_threads=False)


def _sizes(metadata) -> list[int]:
    return [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]


def _mark(place: str) -> dict | None:
    """The stamp of the file that this one is a copy of."""
    try:
        return json.loads((pyarrow.parquet.read_metadata(place).metadata or {}).get(MARK, b"null"))
    except (pyarrow.ArrowException, OSError, ValueError):
        return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
