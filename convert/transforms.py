"""How arrays of the released layout and ours turn into each other: pure functions on NumPy views, exact both ways.

A transform takes the released arrays of one rule to ours (`to_jax`, which is told our shapes) and back (`to_torch`).
Released matrices are [out, in], ours [*in, *out] with the axes of heads apart.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

Arrays = Sequence[np.ndarray]
Shapes = Sequence[tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Transform:
    name: str
    to_jax: Callable[[Arrays, Shapes], Arrays]
    to_torch: Callable[[Arrays], Arrays]


def same(leading: int = 0) -> Transform:
    """The same values in the same order; released ones may have `leading` axes of length one."""
    return Transform(
        "same",
        lambda a, shapes: [a[0].reshape(shapes[0])],
        lambda a: [a[0].reshape((1,) * leading + a[0].shape)],
    )


def _with_row(arrays: Arrays, shapes: Shapes) -> Arrays:
    ((rows, *_),) = shapes
    return [np.concatenate([arrays[0], np.zeros((rows - len(arrays[0]), arrays[0].shape[1]), arrays[0].dtype)])]


# An embedding table without and with the row of the image token, whose values picture features take the place of.
one_more_row = Transform("add a row of zeros", _with_row, lambda a: [a[0][:-1]])

flat = Transform("flat", lambda a, shapes: [a[0].reshape(shapes[0])], lambda a: [a[0].reshape(-1)])


def linear(inputs: int = 1) -> Transform:
    """[out, in] <-> [*in, *out], `inputs` of our axes being those of the input."""
    return Transform(
        "transpose",
        lambda a, shapes: [a[0].T.reshape(shapes[0])],
        lambda a: [_matrix(a[0], inputs).T],
    )


def _matrix(x: np.ndarray, inputs: int) -> np.ndarray:
    return x.reshape(math.prod(x.shape[:inputs]), -1)


def _split_rows(w: np.ndarray, parts: int) -> list[np.ndarray]:
    return [half.T for half in np.split(w, parts)]


# [gate; up], each [F, D] <-> two of [D, F].
halves = Transform(
    "split in two, transpose",
    lambda a, shapes: _split_rows(a[0], 2),
    lambda a: [np.concatenate([x.T for x in a])],
)


def _group_qkv(arrays: Arrays, shapes: Shapes) -> Arrays:
    (w,), ((d, k, g2, h),) = arrays, shapes
    query, key, value = np.split(w, [k * (g2 - 2) * h, k * (g2 - 1) * h])
    parts = [part.reshape(k, -1, h, d) for part in (query, key, value)]
    return [np.concatenate(parts, axis=1).transpose(3, 0, 1, 2)]


def _fuse_qkv(arrays: Arrays) -> Arrays:
    (x,) = arrays
    d, _, g2, _ = x.shape
    parts = np.split(x.transpose(1, 2, 3, 0), [g2 - 2, g2 - 1], axis=1)
    return [np.concatenate([part.reshape(-1, d) for part in parts])]


# [all queries; all keys; all values] <-> grouped by key/value head, [D, K, G + 2, H].
group_qkv = Transform("group by key/value head, transpose", _group_qkv, _fuse_qkv)

# Three of [D, D] (and biases [D]) <-> [D, 3, N, H] (and [3, N, H]).
join_qkv = Transform(
    "join three, transpose",
    lambda a, shapes: [np.stack([w.T for w in a], axis=1).reshape(shapes[0])],
    lambda a: [_matrix(w, 1).T for w in np.moveaxis(a[0], 1, 0)],
)
join_qkv_bias = Transform(
    "join three",
    lambda a, shapes: [np.stack(a).reshape(shapes[0])],
    lambda a: [b.reshape(-1) for b in a[0]],
)


def _unpatch(arrays: Arrays) -> Arrays:
    (x,) = arrays
    side = math.isqrt(len(x) // 3)
    return [x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)]


# A convolution [D, 3, height, width] over patches <-> a matrix [height * width * 3, D].
patch = Transform("flatten patch", lambda a, shapes: [a[0].transpose(2, 3, 1, 0).reshape(shapes[0])], _unpatch)
