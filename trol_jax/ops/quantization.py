"""Numbers in 8 bits."""

import jax
import jax.numpy as jnp


def to_int8(x: jax.Array, axis: int | tuple[int, ...] = -1) -> tuple[jax.Array, jax.Array]:
    """(int8 of the same shape, float32 scales without `axis`) with x = values * scale, rounded; zero stays zero."""
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(axis=axis) / 127
    divisor = jnp.expand_dims(jnp.where(scale == 0, 1, scale), axis)
    return jnp.rint(x / divisor).astype(jnp.int8), scale
