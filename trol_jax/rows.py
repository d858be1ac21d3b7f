"""Large arrays on the host, some rows at a time: a row is what one index of the first axis selects."""

import functools
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from trol_jax.errors import UserError

_threads = ThreadPoolExecutor(4)  # NumPy copies without the interpreter's lock
BLOCK = 128  # rows that are transposed together: of 64 to 256 the fastest, four times as fast as all at once


class Rows:
    """Blocks of rows, read as one sequence into arrays that the caller owns and may use again.

    New memory is slow, the system fills it with zeros a page at a time: copying into used memory is several times as
    fast.
    """

    def __init__(self, blocks: Iterable[np.ndarray], name: str = "them"):
        """name: of the array, for errors."""
        self._blocks, self._rest, self._name = iter(blocks), None, name

    def read_into(self, target: np.ndarray) -> None:
        """Fills `target` with the next `len(target)` rows, cast to its dtype. A scalar is its only row."""
        if not target.ndim:
            assign(target, next(self._blocks), self._name)
            return
        done = 0
        while done < len(target):
            if self._rest is None or not len(self._rest):
                self._rest = next(self._blocks)
            part, self._rest = np.split(self._rest, [len(target) - done])
            assign(target[done : done + len(part)], part, self._name)
            done += len(part)


def assign(target: np.ndarray, source: np.ndarray, name: str = "them") -> None:
    """target[...] = source, in blocks that stay in the processor's cache where that means to transpose.

    UserError for numbers that the target's dtype cannot hold. name: of the array, for that.
    """
    try:
        _assign(target, source)
    except OverflowError:
        raise UserError(
            f"numbers of {source.dtype} in {name} are beyond the range of {target.dtype}; choose another --dtype"
        ) from None


def _assign(target: np.ndarray, source: np.ndarray) -> None:
    for split in range(1, source.ndim):
        try:
            flat = np.reshape(source, (math.prod(source.shape[:split]), -1), copy=False)
        except ValueError:
            continue  # not without a copy
        if flat.strides[0] < flat.strides[1]:
            starts = range(0, flat.shape[1], BLOCK)
            list(_threads.map(functools.partial(_assign_block, target.reshape(flat.shape), flat), starts))
            return
    _copy(target, source)


def _assign_block(target: np.ndarray, source: np.ndarray, start: int) -> None:
    _copy(target[:, start : start + BLOCK], source[:, start : start + BLOCK])


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        target[...] = source
    if target.dtype != source.dtype and (infinite := np.isinf(target)).any() and np.isfinite(source[infinite]).any():
        raise OverflowError
