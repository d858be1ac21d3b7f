"""Files of the benchmarks below one root: JSON, JSON lines, tables and parquet, row by row, with every fault named."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trol_jax.errors import UserError
from trol_jax.evals.items import Item


class BadRow(UserError):
    """A row that cannot be used: which, and why. data: what it holds, where it is an object."""

    def __init__(self, message: str, data: Mapping[str, Any]):
        super().__init__(message)
        self.data = data


@dataclass(frozen=True, slots=True)
class Row:
    """A row, its file below the root and its number there, from 1 (of an object of rows, its key)."""

    data: Mapping[str, Any]
    file: str
    number: int | str

    def bad(self, why: str) -> BadRow:
        data = self.data if isinstance(self.data, Mapping) else {}
        return BadRow(f"{self.file}, row {self.number}: {why}", data)

    def get(self, name: str, *types: type) -> Any:
        """The field's value, of one of the types; BadRow otherwise. A bool is no int."""
        try:
            value = self.data[name]
        except (KeyError, TypeError, IndexError):
            raise self.bad(f'there is no field "{name}"') from None
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            wanted = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in types)
            raise self.bad(f'"{name}" is {json.dumps(value, default=repr)[:60]}, must be {wanted}')
        return value

    def text(self, name: str) -> str:
        return self.get(name, str)

    def texts(self, name: str) -> list[str]:
        values = self.get(name, list)
        if not all(isinstance(value, str) for value in values):
            raise self.bad(f'"{name}" must hold texts only')
        return values

    def inner(self, name: str) -> "Row":
        """A field that is an object of its own."""
        return Row(self.get(name, dict), self.file, f"{self.number}, {name}")

    def index(self, name: str, of: list) -> int:
        """The place of a choice."""
        value = self.get(name, int)
        if not 0 <= value < len(of):
            raise self.bad(f'"{name}" is {value}, and there are {len(of)} choices')
        return value


def each(rows: Iterable[Row], convert: Callable[[Row], Item]) -> Iterator[Item | BadRow]:
    """Items, with what is wrong in the place of those that cannot be made."""
    for row in rows:
        try:
            if not isinstance(row.data, Mapping):
                raise row.bad(f"is {json.dumps(row.data, default=repr)[:60]}, must be an object")
            yield replace(convert(row), row=f"{row.file}, row {row.number}")
        except BadRow as error:
            yield error


def readable(file: Path) -> bool:
    """False also for a name that no file can have, where Path would raise: one of 300 letters."""
    return os.path.isfile(file) and os.access(file, os.R_OK)


class Root:
    """The folder that holds the benchmarks. pictures=False: only texts are read, and no picture is looked for.
    look=False: pictures inside of files are read, those beside them are not looked for.
    """

    def __init__(self, path: str | os.PathLike, pictures: bool = True, look: bool = True):
        self.path, self.pictures, self.look = Path(path), pictures, pictures and look

    # ------------------------------------------------------------------ files

    def find(self, pattern: str) -> list[str]:
        """Files that fit the pattern, as paths below the root; UserError if there are none."""
        found = sorted(path for path in self.path.glob(pattern) if path.is_file())
        if not found:
            raise UserError(f"{self.path / pattern} does not exist")
        return [path.relative_to(self.path).as_posix() for path in found]

    def read(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise UserError(f"{self.path / name} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path / name} is not UTF-8 text: {error}") from error

    def json(self, name: str, kind: type = dict) -> Any:
        """The object (or list) that a file holds."""
        return self._typed(name, self._decode(name, self.read(name)), kind)

    def objects(self, name: str, *path: str) -> Iterator[Row]:
        """Rows of a list, below the keys of `path`. A list of rows may also be written as JSON lines."""
        text = self.read(name)
        if not path and not text.lstrip().startswith("["):
            yield from self.lines(name, text)
            return
        value = self._decode(name, text)
        for key in path:
            value = self._typed(name, value, dict).get(key)
        for number, data in enumerate(self._typed(name, value, list), start=1):
            yield Row(data, name, number)

    def lines(self, name: str, text: str | None = None) -> Iterator[Row]:
        """Rows of a file of JSON lines; of a line that is no JSON the text."""
        for number, line in enumerate((self.read(name) if text is None else text).split("\n"), start=1):
            if line.strip():
                try:
                    yield Row(json.loads(line), name, number)
                except (ValueError, RecursionError):
                    yield Row(line, name, number)

    def entries(self, name: str) -> Iterator[Row]:
        """Rows of an object of rows, by key."""
        for key, data in self.json(name).items():
            yield Row(data, name, key)

    def table(self, name: str) -> Iterator[Row]:
        """Rows of a tab-separated file with a header; every value is text."""
        csv.field_size_limit(sys.maxsize)  # pictures are fields
        try:
            with open(self.path / name, encoding="utf-8-sig", newline="") as file:
                for number, data in enumerate(csv.DictReader(file, delimiter="\t"), start=1):
                    yield Row(data, name, number)
        except OSError as error:
            raise UserError(f"{self.path / name} cannot be read: {error.strerror}") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{self.path / name} is no table of UTF-8 text: {error}") from error

    def parquet(self, name: str, without: Iterable[str] = (), pictures: Iterable[str] = ()) -> Iterator[Row]:
        """Rows of a parquet file, a few at a time. pictures: columns that are read only where pictures are wanted."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        skipped = {*without} if self.pictures else {*without, *pictures}
        try:
            with pq.ParquetFile(self.path / name) as file:
                columns = [column for column in file.schema_arrow.names if column not in skipped]
                number = 0
                for batch in file.iter_batches(64 if self.pictures else 4096, columns=columns):
                    for data in batch.to_pylist():
                        yield Row(data, name, number := number + 1)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.path / name} cannot be read as parquet: {' '.join(str(error).split())}") from error

    def _decode(self, name: str, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path / name} is not JSON: {error}") from error

    def _typed(self, name: str, value: Any, kind: type) -> Any:
        if not isinstance(value, kind):
            raise UserError(f"{self.path / name} holds no {'object' if kind is dict else 'list'} where one is expected")
        return value

    # ------------------------------------------------------------------ pictures

    def picture(self, row: Row, *parts: str) -> str:
        """The path below the root that the parts make; BadRow if it leads out of it, or where there is no file."""
        path = "/".join(parts)
        if path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise row.bad(f"the picture {path!r} lies outside of the root")
        if self.look and not readable(self.path / self.spelled(path)):
            raise row.bad(f"the picture {self.path / path} cannot be read")
        return path

    def spelled(self, path: str) -> str:
        """The path with its ending as it is on the disk: HallusionBench mixes .png and .PNG."""
        if not os.path.exists(self.path / path):
            stem, dot, ending = path.rpartition(".")
            for other in (ending.lower(), ending.upper()):
                if dot and os.path.exists(self.path / f"{stem}.{other}"):
                    return f"{stem}.{other}"
        return path

    def embedded(self, row: Row, name: str) -> tuple[bytes, ...]:
        """The picture that a field holds, as bytes or as a struct of bytes and path; () where none are wanted."""
        if not self.pictures:
            return ()
        value = row.get(name, bytes, dict)
        data = value if isinstance(value, bytes) else value.get("bytes")
        if not isinstance(data, bytes) or not data:
            raise row.bad(f'"{name}" holds no picture')
        return (data,)
