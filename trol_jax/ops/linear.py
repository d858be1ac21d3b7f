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


Kernel = jax.Array | Quantized | Adapted


def product(x: jax.Array, kernel: Kernel, inputs: int) -> jax.Array:
    """x [..., *inputs] times kernel [*inputs, *outputs] -> [..., *outputs], computed in the dtype of x."""
    if isinstance(kernel, Adapted):
        low = product(product(x, kernel.a, inputs), kernel.b, 1)
        return product(x, kernel.base, inputs) + (kernel.scale * low).astype(x.dtype)
    if isinstance(kernel, Quantized):
        return _quantized(x, kernel, inputs)
    return jnp.tensordot(x, kernel.astype(x.dtype), inputs)


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
