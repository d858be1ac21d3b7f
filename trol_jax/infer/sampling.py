"""Which token comes next."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Sampling:
    """One entry a row, [B] each, so that rows of a batch may differ; a row's answer depends on its own seed alone.

    temperature: 0 = the most likely token. top_k: 0 = all. top_p: 1 = all; the smallest set of the most likely tokens,
    after top_k, whose probabilities sum to it.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    seed: jax.Array


def sample(logits: jax.Array, step: jax.Array, sampling: Sampling | None) -> jax.Array:
    """logits: float32[B, V]; step: int[] or int[B], number of the token in its answer. Returns int32[B]."""
    best = logits.argmax(axis=-1).astype(jnp.int32)
    if sampling is None:
        return best
    draws, some = sampling.temperature > 0, (sampling.temperature > 0).any()
    filtered = (draws & ((sampling.top_k > 0) | (sampling.top_p < 1))).any()
    scaled = logits / jnp.where(draws, sampling.temperature, 1)[:, None]
    # Sorting a vocabulary takes long: only where someone asks for it.
    scaled = jax.lax.cond(filtered, lambda: _filter(scaled, sampling.top_k, sampling.top_p), lambda: scaled)
    drawn = jax.lax.cond(some, lambda: _draw(scaled, sampling.seed, jnp.broadcast_to(step, best.shape)), lambda: best)
    return jnp.where(draws, drawn, best)


@jax.vmap
def _filter(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """-inf for what is not drawn from; top_k first, as in transformers."""
    order, rank = jnp.argsort(-logits), jnp.arange(len(logits))
    few = jnp.where((top_k == 0) | (rank < top_k), logits[order], -jnp.inf)
    p = jax.nn.softmax(few)
    kept = jnp.where((jnp.cumsum(p) - p < top_p) | (rank == 0), few, -jnp.inf)
    return jnp.zeros_like(logits).at[order].set(kept)


@jax.vmap
def _draw(logits: jax.Array, seed: jax.Array, step: jax.Array) -> jax.Array:
    # By one random number, where `jax.random.categorical` takes one for each entry of the vocabulary.
    reached = jnp.cumsum(jax.nn.softmax(logits))
    random = jax.random.uniform(jax.random.fold_in(jax.random.key(seed), step))
    return (reached <= random * reached[-1]).sum(dtype=jnp.int32)
