"""Numbers in 8 and in 4 bits: weights of a product, and keys and values of a cache.

A quantised array is a pytree whose first leaf has the shape of what it stands for. All is computed in float32 and
rounded to the nearest.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The sixteen numbers of "4-bit NormalFloat": quantiles of a normal distribution in [-1, 1], zero among them (QLoRA,
# arXiv 2305.14314, appendix E).
CODEBOOK = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
BLOCK = 64  # weights that share a scale
GROUP = 256  # scales that share a scale of their own


def _dynamic_table() -> np.ndarray:
    """The 256 numbers of "dynamic" 8 bits (arXiv 2110.02861, section 1.3): in each of seven decades up to 1 the middles
    of equal steps, twice as many as in the decade below, with either sign; zero and one.
    """
    middles = []
    for decade in range(7):
        steps = np.linspace(0.1, 1, 2**decade + 1)
        middles.append((steps[1:] + steps[:-1]) / 2 * 10.0 ** (decade - 6))
    middles = np.concatenate(middles)
    return np.sort(np.concatenate([-middles, [0.0], middles, [1.0]])).astype(np.float32)


DYNAMIC = _dynamic_table()


@functools.partial(jax.tree_util.register_dataclass, data_fields=("values", "scale"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Int8:
    """Weights [*inputs, *outputs] in 8 bits. Unlike the original's library, no inputs of outliers are kept apart."""

    values: Any  # int8[*inputs, *outputs]
    scale: Any  # float32[*outputs]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("values", "codes", "scale", "mean"), meta_fields=("inputs",)
)
@dataclasses.dataclass(frozen=True)
class NF4:
    """Weights [*inputs, *outputs] as QLoRA and bitsandbytes store them, "double quantisation" included.

    The inputs, taken as one axis, are cut into blocks of BLOCK for each output. Where BLOCK divides their number, these
    are the blocks that bitsandbytes makes of a torch weight [out, in], and all numbers are its own; where it does not,
    the last block of each output is smaller here, while theirs run on into the next output. The largest absolute value
    of each block is kept as its difference from their mean, an index into DYNAMIC, with a scale for each GROUP of them.
    """

    values: Any  # uint4[*inputs, *outputs], indices into CODEBOOK; never packed by hand: the compiler packs them better
    codes: Any  # uint8[blocks, *outputs], indices into DYNAMIC
    scale: Any  # float32[groups], over the codes of one output after the other
    mean: Any  # float32[]
    inputs: int = 1  # how many axes are inputs


Quantized = Int8 | NF4


def to_int8(x: jax.Array, axis: int | tuple[int, ...] = -1) -> tuple[jax.Array, jax.Array]:
    """(int8 of the same shape, float32 scales without `axis`): x = values * scale, rounded. Zero stays zero."""
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(axis=axis) / 127
    return jnp.round(x / jnp.expand_dims(_divisor(scale), axis)).astype(jnp.int8), scale


def int8_kernel(kernel: jax.Array, inputs: int) -> Int8:
    """kernel: [*inputs, *outputs], `inputs` axes of the former; a scale for each output."""
    return Int8(*to_int8(kernel, tuple(range(inputs))))


def nf4_kernel(kernel: jax.Array, inputs: int) -> NF4:
    """kernel: [*inputs, *outputs], `inputs` axes of the former."""
    shape = kernel.shape
    flat = kernel.astype(jnp.float32).reshape(math.prod(shape[:inputs]), -1)
    rows, width = flat.shape
    flat = jnp.pad(flat, ((0, -rows % BLOCK), (0, 0))).reshape(-1, BLOCK, width)
    largest = jnp.abs(flat).max(axis=1)
    mean = largest.mean()
    groups = jnp.pad((largest - mean).T.reshape(-1), (0, -largest.size % GROUP)).reshape(-1, GROUP)
    scale = jnp.abs(groups).max(axis=1)
    codes = _nearest(groups / _divisor(scale)[:, None], DYNAMIC).reshape(-1)[: largest.size]
    codes = codes.reshape(width, -1).T.reshape(-1, *shape[inputs:])
    values = _nearest(flat / _divisor(largest)[:, None], CODEBOOK)
    return NF4(values.reshape(-1, width)[:rows].reshape(shape).astype(jnp.uint4), codes, scale, mean, inputs)


def _nearest(x: jax.Array, table: np.ndarray) -> jax.Array:
    """uint8 indices into a table in order."""
    between = ((table[1:].astype(np.float64) + table[:-1]) / 2).astype(np.float32)
    if len(table) > 16:
        return jnp.searchsorted(between, x).astype(jnp.uint8)
    return sum((x > each).astype(jnp.uint8) for each in between)  # one loop over memory


def dequantize(q: Quantized, dtype) -> jax.Array:
    """The weights [*inputs, *outputs] that `q` stands for."""
    if isinstance(q, Int8):
        return (q.values.astype(jnp.float32) * q.scale).astype(dtype)
    shape = q.values.shape
    rows = math.prod(shape[: q.inputs])
    scale = jnp.repeat(_block_scale(q.codes, q.scale, q.mean).reshape(len(q.codes), -1), BLOCK, axis=0)[:rows]
    values = jnp.asarray(CODEBOOK)[q.values.astype(jnp.int32)]
    return (values * scale.reshape(shape)).astype(dtype)


def _divisor(scale: jax.Array) -> jax.Array:
    return jnp.where(scale == 0, 1, scale)


def _block_scale(codes: jax.Array, scale: jax.Array, mean: jax.Array) -> jax.Array:
    """The largest absolute value of each block, as it is kept; never negative by its rounding, or signs would flip."""
    blocks, width = len(codes), math.prod(codes.shape[1:])
    each = jnp.repeat(scale, GROUP)[: codes.size].reshape(width, blocks).T.reshape(codes.shape)
    return jnp.maximum(jnp.asarray(DYNAMIC)[codes.astype(jnp.int32)] * each + mean, 0)
