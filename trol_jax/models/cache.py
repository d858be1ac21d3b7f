"""Keys and values of the tokens so far. Traversal keeps those of the first pass only."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Cache:
    """keys, values: a list with [B, S, K, H] for each layer; keys are stored rotated.

    valid: bool[B, S], slots that hold a token (padding does not count).
    lengths: int32[B], tokens so far and so the position of the next one.
    index: int32[], the slot the next token of every row goes to.
    """

    keys: Any
    values: Any
    valid: jax.Array
    lengths: jax.Array
    index: jax.Array

    @classmethod
    def from_prompt(cls, kv, valid: jax.Array, size: int) -> "Cache":
        """kv: (keys, values) of a prompt, [L, B, T, K, H] each; valid: bool[B, T]. `size`: slots in all, T included."""
        grow = size - valid.shape[1]
        keys, values = ([jnp.pad(layer, ((0, 0), (0, grow), (0, 0), (0, 0))) for layer in by_layer] for by_layer in kv)
        return cls(
            keys=keys,
            values=values,
            valid=jnp.pad(valid, ((0, 0), (0, grow))),
            lengths=valid.sum(axis=1, dtype=jnp.int32),
            index=jnp.int32(valid.shape[1]),
        )

    def admit(self, valid: jax.Array) -> "Cache":
        """Mark the next valid.shape[1] slots; their keys and values are written by the layers. valid: bool[B, T]."""
        return self.replace(
            valid=jax.lax.dynamic_update_slice(self.valid, valid, (0, self.index)),
            lengths=self.lengths + valid.sum(axis=1, dtype=jnp.int32),
            index=self.index + valid.shape[1],
        )


def write(slots: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
    """Put new [B, T, K, H] into slots [B, S, K, H] from slot `index` on."""
    return jax.lax.dynamic_update_slice(slots, new.astype(slots.dtype), (0, index, 0, 0))
