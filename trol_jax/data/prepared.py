"""Reads what `prepare` wrote: the same samples at the same numbers as the files that it was made from."""

import bisect
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from array_record.python.array_record_data_source import ArrayRecordDataSource

from trol_jax.data import tfds
from trol_jax.data.paths import resolve
from trol_jax.data.records import check_index
from trol_jax.data.shards import lengths_of, require_same, shards_of
from trol_jax.data.sources.sample import Sample
from trol_jax.errors import StorageError, UserError
from trol_jax.retry import EXHAUSTED, PASSING, may_pass, of_machine, retry


def find(root: str | os.PathLike) -> Path | None:
    """The folder of the dataset, if `root` is one or the output of `prepare`."""
    places = Path(root), Path(root) / tfds.NAME / tfds.VERSION
    return next((place.absolute() for place in places if (place / tfds.INFO).is_file()), None)


def open_prepared(folder: Path, names: Iterable[str] | None = None) -> dict[str, "PreparedSource"]:
    """Sources by name, by default all that are there. UserError for names that are not, and for shards that are
    missing, incomplete or beyond the folder; `shards.verify` looks at every byte.
    """
    lengths = lengths_of(folder)
    names = list(lengths if names is None else names)
    if unknown := [name for name in names if name not in lengths]:
        raise UserError(f"{folder} was prepared without {', '.join(unknown)}; it has {', '.join(lengths)}")
    sources, lines = {name: PreparedSource(name, folder, lengths[name]) for name in names}, shards_of(folder)
    require_same(folder, lengths, lines)
    sizes = {line["shard"]: line["bytes"] for each in lines.values() for line in each}
    for path in (Path(shard.filename) for source in sources.values() for shard in source.shards):
        if not path.is_file() or path.stat().st_size != sizes.get(path.name):
            raise UserError(f"{path} is missing or incomplete; copy it again")
    return sources


class Shard(NamedTuple):
    """What array_record takes, so that no file is opened before its first sample is asked for."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class PreparedSource:
    """Samples of a source by number, their pictures as bytes. Cheap to send to other processes.

    lengths: samples of each shard.
    """

    def __init__(self, name: str, folder: Path, lengths: Sequence[int]):
        self.name = name
        shards = (tfds.shard_name(name, number, len(lengths)) for number in range(len(lengths)))
        files = [resolve(str(folder), shard) for shard in shards]
        self.shards = [Shard(file, 0, length, length) for file, length in zip(files, lengths, strict=True)]
        self._firsts = list(itertools.accumulate(lengths, initial=0))
        self._records = ArrayRecordDataSource(self.shards)

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, index: int) -> Sample:
        """UserError names the shard of a record that cannot be read."""
        index = check_index(index, len(self))
        try:
            return tfds.decode(retry(self._read, index))
        except Exception as error:  # array_record's RuntimeError, protobuf's DecodeError, what wrong records lack
            place = bisect.bisect_right(self._firsts, index) - 1
            said = (
                f"{self.shards[place].filename}, record {index - self._firsts[place]}, cannot be read: "
                f"{' '.join(str(error).split())[:200]}"
            )
            if may_pass(error) or of_machine(error):
                raise StorageError(said) from error
            raise UserError(f"{said}; copy the file again") from error

    def _read(self, index: int) -> bytes:
        try:
            return self._records[index]
        except RuntimeError as error:  # what the system said is in its text alone
            if number := next((each for each in PASSING | EXHAUSTED if os.strerror(each) in str(error)), None):
                self._records = ArrayRecordDataSource(self.shards)  # by new handles, for one that is stale stays so
                raise OSError(number, str(error)) from error
            raise

    def __repr__(self) -> str:
        return f"PreparedSource({self.name}, {len(self):,} samples)"
