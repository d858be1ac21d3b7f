"""Sources joined into one endless, globally shuffled dataset whose every position can be computed."""

import dataclasses
import functools
import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

import grain
import numpy as np
import xxhash

from trol_jax.errors import UserError

ROUNDS = 6  # of mixing; with four, neighbours are related now and then


@dataclasses.dataclass(frozen=True)
class Part:
    """How much of a source an epoch holds.

    cap: only that many of its samples, chosen once by the seed; None = all.
    repeat: times each is seen in an epoch; 0.5 = one half in this epoch, the other half in the next.
    weight: share of the epoch, in place of the share that cap and repeat give; all parts have one or none has.
    """

    source: str
    repeat: float = 1.0
    cap: int | None = None
    weight: float | None = None


@dataclasses.dataclass(frozen=True)
class HeldOut(Sequence):
    """Every `nth` row of a source, from the first on."""

    source: Sequence
    nth: int

    def __len__(self) -> int:
        return -(-len(self.source) // self.nth)

    def __getitem__(self, index: int):
        return self.source[range(0, len(self.source), self.nth)[index]]


@dataclasses.dataclass(frozen=True)
class Rest(Sequence):
    """The rows that `HeldOut` leaves."""

    source: Sequence
    nth: int

    def __len__(self) -> int:
        return len(self.source) - len(HeldOut(self.source, self.nth))

    def __getitem__(self, index: int):
        return self.source[index + index // (self.nth - 1) + 1]


@dataclasses.dataclass(frozen=True)
class Order:
    """Permutations of range(length), one after the other: [i] for any i >= 0, each place computed by itself.

    Written out here because the order of a run must not change with a release of grain.
    """

    length: int
    name: str  # another name, another order

    def __getitem__(self, index: int) -> int:
        number, place = divmod(index, self.length)
        key = _key(self.name, number, self._bits)
        place = _mix(place, self._bits, key)
        while place >= self.length:  # it comes back into the range before it comes back to where it began
            place = _mix(place, self._bits, key)
        return place

    def first(self, number: int, count: int) -> np.ndarray:
        """The first `count` places of one permutation, int64[count]."""
        key = _key(self.name, number, self._bits)
        places = _mix(np.arange(count), self._bits, key)
        while len(beyond := np.flatnonzero(places >= self.length)):
            places[beyond] = _mix(places[beyond], self._bits, key)
        return places

    @functools.cached_property
    def _bits(self) -> int:
        return (self.length - 1).bit_length()


def _mix(place, bits: int, key: tuple[tuple[int, int], ...]):
    """Another number of as many bits, by steps that can all be undone: no two numbers become one."""
    mask, half = (1 << bits) - 1, (bits + 1) // 2
    for flip, odd in key:
        place = (place ^ flip) * odd & mask
        place = place ^ (place >> half)
    return place


@functools.lru_cache(256)
def _key(name: str, number: int, bits: int) -> tuple[tuple[int, int], ...]:
    """Numbers for each round; the second has no more than 31 bits, so that products of 32 fit into int64."""
    mask = (1 << bits) - 1
    words = [xxhash.xxh32_intdigest(f"{name}/{number}/{word}".encode()) for word in range(2 * ROUNDS)]
    return tuple((flip & mask, odd & mask >> 1 | 1) for flip, odd in zip(words[::2], words[1::2], strict=True))


class Mixture(grain.MapDataset):
    """Samples of all parts in random order, another order each epoch; any index is valid, len is that of an epoch.

    What a position holds depends on parts, lengths of the sources and seed only. A source is gone through in passes of
    its own: within a pass no sample comes twice, and an epoch goes on where the epoch before stopped. So over epochs
    all are seen equally often, whatever repeat and weight are.

    counts: samples of each source in an epoch, by name.
    """

    def __init__(self, sources: Mapping[str, Sequence], parts: Sequence[Part], seed: int):
        super().__init__()
        _check(sources, parts)
        self._sources = [sources[part.source] for part in parts]
        sizes = [min(len(sources[part.source]), part.cap or math.inf) for part in parts]
        self.counts = dict(zip((part.source for part in parts), _counts(parts, sizes), strict=True))
        self._firsts = list(itertools.accumulate(self.counts.values(), initial=0))
        self._order = Order(len(self), f"{seed}/epoch")
        self._passes = [Order(size, f"{seed}/pass of {part.source}") for part, size in zip(parts, sizes, strict=True)]
        self._chosen = [Order(len(sources[part.source]), f"{seed}/cap of {part.source}") for part in parts]

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        part, row = self._place(index)
        return self._sources[part][row]

    def place(self, index: int) -> tuple[str, int]:
        """(name of the source, number of the sample there) at a position."""
        part, row = self._place(index)
        return list(self.counts)[part], row

    def seen(self, position: int) -> dict[str, int]:
        """How many samples of each source come before a position."""
        epochs, rest = divmod(position, len(self))
        parts = np.searchsorted(self._firsts, self._order.first(epochs, rest), side="right") - 1
        partial = np.bincount(parts, minlength=len(self.counts)).tolist()
        pairs = zip(self.counts.items(), partial, strict=True)
        return {name: epochs * count + more for (name, count), more in pairs}

    def _place(self, index: int) -> tuple[int, int]:
        slot = self._order[index]
        part = bisect_right(self._firsts, slot) - 1
        first, after = self._firsts[part : part + 2]
        return part, self._chosen[part][self._passes[part][index // len(self) * (after - first) + slot - first]]


def _counts(parts: Sequence[Part], sizes: Sequence[int]) -> list[int]:
    counts = [max(1, round(size * part.repeat)) for part, size in zip(parts, sizes, strict=True)]
    if parts[0].weight is None:
        return counts
    total, weights = sum(counts), [part.weight for part in parts]
    bounds = [round(total * sum(weights[:k]) / sum(weights)) for k in range(len(parts) + 1)]
    return [after - first for first, after in itertools.pairwise(bounds)]


def _check(sources: Mapping[str, Sequence], parts: Sequence[Part]) -> None:
    names = [part.source for part in parts]
    if not parts:
        raise UserError("the mixture has no parts")
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"the mixture names {min(twice)} twice")
    if len({part.weight is None for part in parts}) > 1:
        bare = next(part.source for part in parts if part.weight is None)
        raise UserError(f"the mixture gives some sources a weight, but not {bare}; give it to all or none")
    for part in parts:
        if part.source not in sources:
            raise UserError(f"{part.source!r} is no source; choose from {', '.join(sources)}")
        if not len(sources[part.source]):
            raise UserError(f"{part.source} has no samples; leave it out of the mixture")
        for name, value in (("repeat", part.repeat), ("cap", part.cap), ("weight", part.weight)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} of {part.source} is {value}, must be more than 0")
