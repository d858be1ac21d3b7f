"""Keys and values of the tokens so far. Traversal keeps those of the first pass only, unless it decodes too."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from trol_jax.ops.quantization import to_int8


@struct.dataclass
class Cache:
    """kv: (keys, values), each a list with [B, K, S, H] for each layer; keys are stored rotated. In int8 two more lists
    follow, of their scales, float32[B, K, S]. Of further passes that are kept the same follows.
    valid: bool[B, S], slots that hold a token (padding does not count).
    lengths: int32[B], tokens so far and so the position of the next one.
    index: int32[B], the slot the next token of each row goes to.
    """

    kv: Any
    valid: jax.Array
    lengths: jax.Array
    index: jax.Array

    @classmethod
    def from_prompt(cls, kv, valid: jax.Array, size: int, dtype=None) -> "Cache":
        """kv: (keys, values) of prompts padded on either side, [L, B, T, K, H] each; valid: bool[B, T]. `size`: slots
        in all, T included. Tokens to come go behind the last one, over padding on the right. dtype: by default that of
        kv.
        """
        new = size - valid.shape[1]
        layers = [stored(layer, dtype or layer[0].dtype) for layer in zip(*kv, strict=True)]
        pad = lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, new), *[(0, 0)] * (a.ndim - 3)))  # noqa: E731
        return cls(
            kv=jax.tree.map(lambda *by_layer: [pad(a) for a in by_layer], *layers),
            valid=jnp.pad(valid, ((0, 0), (0, new))),
            lengths=valid.sum(axis=1, dtype=jnp.int32),
            index=jnp.max(jnp.arange(1, valid.shape[1] + 1) * valid, axis=1).astype(jnp.int32),
        )

    def admit(self, valid: jax.Array) -> "Cache":
        """Mark the next valid.shape[1] slots; their keys and values are written by the layers. valid: bool[B, T]."""
        return self.replace(
            valid=write(self.valid, valid, self.index, axis=1),
            lengths=self.lengths + valid.sum(axis=1, dtype=jnp.int32),
            index=self.index + valid.shape[1],
        )


def stored(kv, dtype) -> tuple[jax.Array, ...]:
    """(keys, values) of some tokens, [B, T, K, H], of a pass or more, as a cache of that dtype holds them."""
    if len(kv) > 2:
        return *stored(kv[:2], dtype), *stored(kv[2:], dtype)
    kv = [a.swapaxes(1, 2) for a in kv]
    if jnp.dtype(dtype) == jnp.int8:  # also of its name
        values, scales = zip(*map(to_int8, kv), strict=True)
        return *values, *scales
    return tuple(a.astype(dtype) for a in kv)


def placed(kv, layout):
    """Arrays that a cache holds, [B, K, S] or [B, K, S, H], kept where `layout` has them."""
    names = "batch", "act_kv_heads", "slots", None
    return jax.tree.map(lambda a: layout(a, *names[: a.ndim]), kv)


def write(slots: jax.Array, new: jax.Array, index: jax.Array, axis: int = 2) -> jax.Array:
    """Put new [B, ..., T, ...] into slots [B, ..., S, ...] from slot `index` [B] of each row on."""
    put = lambda row, new, i: jax.lax.dynamic_update_slice_in_dim(row, new, i, axis=axis - 1)  # noqa: E731
    return jax.vmap(put)(slots, new, index)
