"""Sources joined into one endless, globally shuffled dataset whose every position can be computed."""

import dataclasses
import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

import grain
import xxhash

from trol_jax.errors import UserError


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
        self._order = _order(len(self), seed, "order")
        self._passes = [_order(size, seed, f"pass/{part.source}") for part, size in zip(parts, sizes, strict=True)]
        self._chosen = [_order(len(sources[part.source]), seed, f"cap/{part.source}") for part in parts]

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

    def _place(self, index: int) -> tuple[int, int]:
        epoch = index // len(self)
        slot = self._order[index]
        part = bisect_right(self._firsts, slot) - 1
        first, after = self._firsts[part : part + 2]
        return part, self._chosen[part][self._passes[part][epoch * (after - first) + slot - first]]


def _order(length: int, seed: int, use: str) -> grain.MapDataset:
    """A permutation of range(length) that is computed place by place; beyond its length the next one begins."""
    return grain.MapDataset.range(length).shuffle(seed=xxhash.xxh32_intdigest(f"{seed}/{use}".encode()))


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
