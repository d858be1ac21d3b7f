"""Several samples in one row of a batch, so that few tokens are padding.

Rows are made in every process alike, from the tokens of all samples; each process decodes the pictures of its own rows
only. So a batch does not depend on the number of processes, and a position is: the next sample, and those that wait.
"""

import bisect
import collections
import concurrent.futures
import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from trol_jax.data.encode import Encoded, SampleEncoder
from trol_jax.data.images import keep_freed_memory, load_image, prepare
from trol_jax.data.mixture import HeldOut, Mixture, Part, Rest
from trol_jax.data.sources import SOURCES, open_sources
from trol_jax.data.tokenizer import Tokenizer
from trol_jax.errors import StorageError, UserError

log = logging.getLogger(__name__)
WAITING = 512  # samples among which the next for a row is looked for
NAMED = 100  # bad samples that are named in the log
AHEAD = 2  # batches that are made before they are asked for
INTS = ("tokens", "positions", "segment_ids", "turn_ids")


@dataclasses.dataclass(frozen=True)
class Rows:
    """The shape of a batch. rows: of all processes; length: tokens of a row; tiles: of all pictures of a row."""

    rows: int
    length: int
    tiles: int
    image_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureOptions:
    root: str  # folder of the sources, in the layout of the original, or what launch.prepare_data made of it
    parts: tuple  # of each source (name, repeat), or (name, repeat, cap, weight), see `mixture.Part`; () = all, once
    max_length: int  # tokens a row
    sample_length: int  # tokens of a sample; what is beyond is cut off
    row_tiles: int  # pictures (or tiles of them) a row
    max_tiles: int  # of a picture, in the family that cuts them into tiles; one more where there are several
    system: str  # system message; "" = none
    held_out: int = 0  # of so many samples of a source one is never trained on, but measures the run; 0 = of none
    bad: str  # "fail" or "skip": what becomes of a sample that cannot be used
    threads: int  # that read and decode


def train_iterator(
    options: MixtureOptions,
    tokenizer: Tokenizer,
    *,
    image_size: int,
    image_tokens: int,
    batch_size: int,
    seed: int,
    shares: Sequence[Sequence[int]] = (),
    share: int = 0,
    held_out: bool = False,
) -> "Packer":
    """Batches of the published training data, or of what is held out of it; see `pipeline.train_iterator`.

    UserError for options that cannot work.
    """
    for name in ("max_length", "sample_length", "row_tiles", "max_tiles", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"data.{name} is {getattr(options, name)}, must be at least 1")
    if options.held_out < 0 or options.held_out == 1:
        raise UserError(f"data.held_out is {options.held_out}, must be 0 or at least 2")
    if options.bad not in ("fail", "skip"):
        raise UserError(f"data.bad is {options.bad!r}, must be fail or skip")
    if options.sample_length > options.max_length:
        raise UserError(f"data.sample_length {options.sample_length} is more than data.max_length {options.max_length}")
    parts = [_part(each) for each in options.parts or ((name, 1) for name in SOURCES)]
    sources = _sources(options.root, [part.source for part in parts])
    if options.held_out:
        part = HeldOut if held_out else Rest
        sources = {name: part(source, options.held_out) for name, source in sources.items()}
    samples = Mixture(sources, parts, seed)
    encode = SampleEncoder(
        os.path.abspath(options.root), tokenizer, image_size, image_tokens,
        options.max_tiles, options.sample_length, options.system,
    )  # fmt: skip
    shape = Rows(batch_size, options.max_length, options.row_tiles, image_size)
    options = dict(bad=options.bad, shares=shares, share=share, threads=options.threads)
    return Packer(samples, encode, shape, lengths={name: len(each) for name, each in sources.items()}, **options)


def _part(given) -> Part:
    """UserError for what is no part."""
    name, *numbers = given if isinstance(given, list | tuple) else [given]
    kinds = (int | float, int | None, int | float | None)[: len(numbers)]
    known = len(numbers) in (1, 3) and isinstance(name, str) and all(map(isinstance, numbers, kinds))
    if not known or bool in map(type, numbers):
        raise UserError(
            f"data.parts: {given!r} is no part of a mixture; write (name, repeat), or (name, repeat, cap, weight) with "
            "a whole number as cap and None for a cap or a weight that is not wanted"
        )
    return Part(name, *numbers)


def _sources(root: str, names: Sequence[str]) -> dict[str, Sequence]:
    from trol_jax.data import prepared  # array_record, which other data does not need

    folder = prepared.find(root)
    return open_sources(root, names) if folder is None else prepared.open_prepared(folder, names)


class Packer:
    """Batches without end: see `pipeline.train_iterator`, of which it has the methods and what it yields.

    samples: [i] for any i >= 0, len is that of an epoch, as of `mixture.Mixture`. encode: `encode.SampleEncoder`.
    bad: "fail" or "skip", what becomes of a sample that cannot be used; of one whose picture turns out to be broken
    nothing is learned. Those that are skipped are named in the log, and end the run where they are most of the latest.
    StorageError in any case where files cannot be read, or a folder that had pictures has none now.
    shares, share: rows of the processes, and which are ours; by default all.
    lengths: of the sources; a position in others is refused.

    images: uint8[B, tiles, size, size, 3], black where there is no picture. segment_ids: 1, 2, ... of the samples of a
    row, 0 = padding. No sample is cut to fit; each row begins with the one that has waited longest, so none waits long.
    """

    def __init__(
        self,
        samples: Sequence,
        encode: SampleEncoder,
        shape: Rows,
        *,
        bad: str = "fail",
        shares: Sequence[Sequence[int]] = (),
        share: int = 0,
        threads: int = 2,
        lengths: Mapping[str, int] | None = None,
    ):
        self.samples, self.encode, self.shape, self.bad, self.lengths = samples, encode, shape, bad, dict(lengths or {})
        keep_freed_memory()
        self.own = list(shares[share]) if shares else list(range(shape.rows))
        # Of the batches taken: tokens, padding, cut, bad, and samples by source. Pictures that are broken: of our rows.
        self.counts = collections.Counter()
        self._pool, self._named = concurrent.futures.ThreadPoolExecutor(threads), 0
        self._folders = set()  # of pictures that were read
        # Of the latest samples, and of the latest of our rows that have pictures: which were bad.
        self._latest, self._latest_seen = (collections.deque(maxlen=2 * WAITING) for _ in range(2))
        self.set_state({"next": 0, "waiting": [], "counts": {}})

    def __iter__(self) -> Iterator[dict]:
        return self

    def __next__(self) -> dict:
        while len(self._ready) < AHEAD:
            rows, state = self._rows()
            pictures = [self._pool.submit(self._images, rows[i]) for i in self.own]
            self._ready.append((rows, pictures, state))
        rows, pictures, state = self._ready.popleft()
        tiles, broken = zip(*(each.result() for each in pictures), strict=True)
        self._broken += sum(map(len, broken))
        for i, bad in zip(self.own, broken, strict=True):
            self._latest_seen.extend(number in bad for number, each in enumerate(rows[i]) if each.pictures)
        require_good(self._latest_seen, "a picture of them is broken")
        self._state = state | {"broken": self._broken}
        self.counts = collections.Counter(state["counts"])
        self.counts["bad"] += self._broken
        texts = [self._text(rows[i], bad) for i, bad in zip(self.own, broken, strict=True)]
        batch = {name: np.stack([text[name] for text in texts]) for name in texts[0]}
        return {"images": np.stack(tiles)} | batch

    def get_state(self) -> dict:
        return self._state

    def set_state(self, state: dict) -> None:
        """UserError where the sources are not those of the position, or what waits there can no longer be used."""
        before = state.get("lengths", self.lengths)
        if changed := [name for name, length in self.lengths.items() if before.get(name) != length]:
            raise UserError(
                f"the run has read a {changed[0]} of {before.get(changed[0], 0):,} samples, now it has "
                f"{self.lengths[changed[0]]:,}: its order would be another; go on with the data that it began with"
            )
        for _, pictures, _ in getattr(self, "_ready", ()):
            for each in pictures:
                each.cancel()
        self._state, self._ready = state, collections.deque()
        self._next, self._counts = state["next"], collections.Counter(state["counts"])
        self._broken = state.get("broken", 0)  # samples, of our rows, whose pictures are
        self._waiting: dict[int, Encoded] = {}  # by number, the oldest first
        self._by_length: list[tuple[int, int]] = []  # (tokens, -number) of the same, in order
        for index in state["waiting"]:
            self._take(index, self._one(index))
        self._stream = None

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Packer":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def shares_so_far(self) -> dict[str, float]:
        """For the metrics: samples so far, and how many epochs that is; samples left out as bad; the part of the tokens
        that is padding or was cut off, and of all samples that each source has.
        """
        count = self.counts
        samples = {name: number for name, number in count.items() if name.startswith("samples/")}
        total, read = max(1, sum(samples.values())), self._state["next"] - len(self._state["waiting"])
        found = {f"data/{name.removeprefix('samples/')}": number / total for name, number in sorted(samples.items())}
        padding = count["padding"] / max(1, count["padding"] + count["tokens"])
        return found | {
            "data/samples": read,
            "data/epochs": read / len(self.samples),
            "data/padding": padding,
            "data/cut": count["cut"] / max(1, count["tokens"]),
            "data/bad": count["bad"],
        }

    # ------------------------------------------------------------------ which samples
    def _rows(self) -> tuple[list[list[Encoded]], dict]:
        rows = [self._row() for _ in range(self.shape.rows)]
        tokens = sum(len(each.tokens) for row in rows for each in row)
        self._counts.update(tokens=tokens, padding=self.shape.rows * self.shape.length - tokens)
        for each in (each for row in rows for each in row):
            self._counts[f"samples/{each.source}"] += 1
            self._counts["cut"] += each.cut
        state = {"next": self._next, "waiting": list(self._waiting), "counts": dict(self._counts)}
        return rows, state | {"lengths": self.lengths}

    def _row(self) -> list[Encoded]:
        self._fill()
        row, room, tiles = [], self.shape.length, self.shape.tiles
        index = next(iter(self._waiting))
        while index is not None:
            row.append(each := self._waiting.pop(index))
            self._by_length.remove((len(each.tokens), -index))
            room, tiles = room - len(each.tokens), tiles - sum(each.tiles)
            index = self._largest(room, tiles)
        return row

    def _largest(self, room: int, tiles: int) -> int | None:
        """Of those that fit, one with the most tokens; of equal ones the oldest."""
        for place in range(bisect.bisect_right(self._by_length, (room, 1)), 0, -1):
            index = -self._by_length[place - 1][1]
            if sum(self._waiting[index].tiles) <= tiles:
                return index
        return None

    def _fill(self) -> None:
        if self._stream is None:
            self._stream = self._encoded(self._next)
        while len(self._waiting) < WAITING:
            index, encoded = next(self._stream)
            self._next = index + 1
            self._take(index, encoded)

    def _take(self, index: int, encoded: Encoded | UserError) -> None:
        """Among those that wait, or out."""
        self._latest.append(isinstance(encoded, UserError))
        if isinstance(encoded, UserError):
            if self.bad == "fail":
                raise encoded
            self._counts["bad"] += 1
            self._name("left out: %s", encoded)
            require_good(self._latest, str(encoded))
        else:
            self._waiting[index] = encoded
            bisect.insort(self._by_length, (len(encoded.tokens), -index))

    def _name(self, *message) -> None:
        self._named += 1
        if self._named <= NAMED:
            log.warning(*message)
        if self._named == NAMED:
            log.warning("others are not named; data/bad in the metrics counts them, launch.check_data names them")

    def _encoded(self, first: int) -> Iterator[tuple[int, Encoded | UserError]]:
        pending, index = collections.deque(), first
        while True:
            while len(pending) < 64:
                pending.append((index, self._pool.submit(self._one, index)))
                index += 1
            number, future = pending.popleft()
            yield number, future.result()

    def _one(self, index: int) -> Encoded | UserError:
        try:
            encoded = self.encode(self.samples[index])
        except StorageError:
            raise
        except UserError as error:
            self._require_folder(error)
            return error
        if sum(encoded.tiles) > self.shape.tiles or len(encoded.tokens) > self.shape.length:
            return UserError(
                f"sample {encoded.id} of {encoded.source} has {len(encoded.tokens):,} tokens and "
                f"{sum(encoded.tiles)} tiles, a row holds {self.shape.length:,} and {self.shape.tiles}"
            )
        return encoded

    # ------------------------------------------------------------------ rows as arrays
    def _images(self, row: list[Encoded]) -> tuple[np.ndarray, set[int]]:
        """(tiles of a row, places of the samples there whose pictures cannot be read)."""
        size, family = self.shape.image_size, self.encode.tokenizer.format.name
        tiles, broken, place = np.zeros((self.shape.tiles, size, size, 3), np.uint8), set(), 0
        for number, each in enumerate(row):
            for picture, count in zip(each.pictures, each.tiles, strict=True):
                try:
                    made = prepare(load_image(picture), family, size, self.encode.max_tiles)
                    tiles[place : place + count] = made
                    if isinstance(picture, str):
                        self._folders.add(os.path.dirname(picture))
                except UserError as error:
                    self._require_folder(error)
                    if self.bad == "fail" or isinstance(error, StorageError):
                        raise type(error)(f"sample {each.id} of {each.source}: {error}") from None
                    self._name("nothing is learned of sample %s of %s: %s", each.id, each.source, error)
                    broken.add(number)
                place += count
        return tiles, broken

    def _require_folder(self, error: BaseException | None) -> None:
        """StorageError where a picture is missing because all of its folder is, which had some before."""
        while error is not None and not isinstance(error, FileNotFoundError):
            error = error.__cause__
        folder = error and os.path.dirname(error.filename or "")
        if folder in self._folders and not _holds_any(folder):
            raise StorageError(f"{folder} had pictures and has none now; bring it back, or mount it again") from None

    def _text(self, row: list[Encoded], broken: set[int]) -> dict[str, np.ndarray]:
        """Nothing is learned of a broken sample."""
        arrays = {name: np.zeros(self.shape.length, np.int32) for name in INTS}
        arrays["loss_mask"], place = np.zeros(self.shape.length, bool), 0
        for number, each in enumerate(row):
            here = slice(place, place + len(each.tokens))
            arrays["tokens"][here], arrays["segment_ids"][here] = each.tokens, number + 1
            arrays["positions"][here] = np.arange(len(each.tokens))
            arrays["loss_mask"][here] = each.loss_mask & (number not in broken)
            place = here.stop
        return arrays


def _holds_any(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entries)
    except OSError:
        return False


def require_good(latest: Sequence[bool], why: str) -> None:
    """UserError if most of the latest samples are bad: a folder is missing, or the data is of another kind."""
    if (bad := sum(latest)) > WAITING:
        raise UserError(
            f"{bad:,} of the latest {len(latest):,} samples cannot be used, the last of them: {why}; see "
            "python -m launch.check_data for all, and leave sources that are not there out of data.parts"
        )
