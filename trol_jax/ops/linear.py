"""x times a kernel, whatever the kernel is made of: an array, quantised, or with a low-rank pair beside it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from trol_jax.ops.quantization import NF4, Quantized, dequantize


@functools.partial(jax.tree_util.register_dataclass, data_fields=("base", "a", "b"), meta_fields=("scale",))
@dataclasses.dataclass(frozen=True)
class Adapted:
    """LoRA (arXiv 2106.09685): base + scale * a b, kept apart. The base has the shape of the kernel."""

    base: Any  # [*inputs, *outputs], an array or quantised
    a: jax.Array  # [*inputs, R]
    b: jax.Array  # [R, *outputs]
    scale: float  # alpha / R


@functools.partial(jax.tree_util.register_dataclass, data_fields=("kernel", "copies"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Copies:
    """A kernel, and a copy of it for each part of a batch that is cut over devices.

    What several uses of a copy add to its gradient is summed where the part is; one sum over the parts follows. Without
    copies, the compiler sums over the devices once for each use: twice a layer that is traversed.
    """

    kernel: jax.Array  # [*inputs, *outputs], which says the shape; it is not used
    copies: jax.Array  # [N, *inputs, *outputs]


Kernel = jax.Array | Quantized | Adapted | Copies


def product(x: jax.Array, kernel: Kernel, inputs: int, dtype=None) -> jax.Array:
    """x [..., *inputs] times kernel [*inputs, *outputs] -> [..., *outputs], computed in the dtype of x.

    dtype: of the result, where another than that of x is wanted of an array or its copies.
    """
    if isinstance(kernel, Adapted):
        low = product(product(x, kernel.a, inputs), kernel.b, 1)
        return product(x, kernel.base, inputs) + (kernel.scale * low).astype(x.dtype)
    if isinstance(kernel, Quantized):
        return _quantized(x, kernel, inputs)
    if isinstance(kernel, Copies):
        parts = x.reshape(len(kernel.copies), -1, *x.shape[1:])
        y = jax.vmap(lambda part, copy: product(part, copy, inputs, dtype))(parts, kernel.copies)
        return y.reshape(len(x), *y.shape[2:])
    return jnp.tensordot(x, kernel.astype(x.dtype), inputs, preferred_element_type=dtype)


@functools.partial(jax.checkpoint, static_argnums=2)  # else the backward pass would keep every kernel in full
def _quantized(x: jax.Array, kernel: Quantized, inputs: int) -> jax.Array:
    if isinstance(kernel, NF4):
        return jnp.tensordot(x, dequantize(kernel, x.dtype), inputs)
    y = jnp.tensordot(x, kernel.values.astype(x.dtype), inputs, preferred_element_type=jnp.float32)
    return (y * kernel.scale).astype(x.dtype)


def merged(kernel: Kernel, inputs: int) -> jax.Array:
    """The one array float32[*inputs, *outputs] that it stands for."""
    if isinstance(kernel, Adapted):
        return merged(kernel.base, inputs) + kernel.scale * jnp.tensordot(kernel.a, kernel.b, 1)
    return dequantize(kernel, jnp.float32) if isinstance(kernel, Quantized) else kernel.astype(jnp.float32)
