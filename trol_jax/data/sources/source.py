"""A source of the mixture as a grain source of random access."""

import dataclasses
import os
from collections.abc import Callable, Mapping

from trol_jax.data.paths import resolve
from trol_jax.data.records import JsonRecords
from trol_jax.data.sources.sample import Sample
from trol_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Spec:
    """A source of the mixture.

    file: at the root; .json (an array), .jsonl or .parquet. count: rows that the mixture of the paper has of it.
    read: (row, name of the source, number of the row) -> Sample, a function of a module, which workers can import.
    keep: filter of rows by their bytes, with a repr that tells it from others.
    columns: of a parquet file, those that `read` needs; () = all.
    """

    name: str
    file: str
    count: int
    read: Callable[[Mapping, str, int], Sample]
    keep: Callable[[bytes], bool] | None = None
    columns: tuple[str, ...] = ()


class Source:
    """Samples of a source by number, without those that its filter drops.

    UserError names file, row and field for a row that is damaged or a path that leaves the root. Pictures need not
    exist. Cheap to send to other processes, which open the file at the first sample.
    """

    def __init__(self, spec: Spec, root: str | os.PathLike):
        self.spec, self.root = spec, os.path.abspath(root)
        self.records = _records(os.path.join(self.root, spec.file), spec)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)[1]

    def read(self, index: int) -> tuple[int, Sample]:
        """(number of the row in the file, the sample)."""
        number, row = self.records[index]
        try:
            sample = self.spec.read(row, self.spec.name, number)
            for picture in sample.pictures:
                if isinstance(picture, str):
                    resolve(self.root, picture)
        except UserError as error:
            raise UserError(f"{self.records.path}, row {number} of {self.spec.name}: {error}") from None
        return number, sample

    def __repr__(self) -> str:
        return f"Source({self.spec.name}, {len(self):,} samples)"


def _records(path: str, spec: Spec):
    if not spec.file.endswith(".parquet"):
        return JsonRecords(path, spec.keep)
    if spec.keep is not None:
        raise ValueError(f"{spec.name}: rows of parquet files are not filtered")
    from trol_jax.data.parquet import ParquetRecords  # pyarrow takes 40 MB and a third of a second

    return ParquetRecords(path, spec.columns)
