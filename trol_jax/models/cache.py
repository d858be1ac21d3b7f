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
    index: int32[B], the slot the next token of each row goes to.
    """

    keys: Any
    values: Any
    valid: jax.Array
    lengths: jax.Array
    index: jax.Array

    @classmethod
    def from_prompt(cls, kv, valid: jax.Array, size: int) -> "Cache":
        """kv: (keys, values) of prompts padded on either side, [L, B, T, K, H] each; valid: bool[B, T]. `size`: slots
        in all, T included. Tokens to come go behind the last one, over padding on the right.
        """
        grow = size - valid.shape[1]
        keys, values = ([jnp.pad(layer, ((0, 0), (0, grow), (0, 0), (0, 0))) for layer in by_layer] for by_layer in kv)
        return cls(
            keys=keys,
            values=values,
            valid=jnp.pad(valid, ((0, 0), (0, grow))),
            lengths=valid.sum(axis=1, dtype=jnp.int32),
            index=jnp.max(jnp.arange(1, valid.shape[1] + 1) * valid, axis=1).astype(jnp.int32),
        )

    def admit(self, valid: jax.Array) -> "Cache":
        """Mark the next valid.shape[1] slots; their keys and values are written by the layers. valid: bool[B, T]."""
        return self.replace(
            valid=write(self.valid, valid, self.index),
            lengths=self.lengths + valid.sum(axis=1, dtype=jnp.int32),
            index=self.index + valid.shape[1],
        )


def write(slots: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
    """Put new [B, T, ...] into slots [B, S, ...] from slot `index` [B] of each row on."""

    def write_row(slots, new, index):
        return jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), index, axis=0)

    return jax.vmap(write_row)(slots, new, index)
