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
    drawn = jax.lax.cond(
        (sampling.temperature > 0).any(),
        lambda: jax.vmap(_draw)(logits, jnp.broadcast_to(step, best.shape), sampling),
        lambda: best,
    )
    return jnp.where(sampling.temperature > 0, drawn, best)


def _draw(logits: jax.Array, step: jax.Array, options: Sampling) -> jax.Array:
    """One row, logits [V]. The order of the filters is that of transformers: temperature, top_k, top_p."""
    order = jnp.argsort(-logits)
    rank = jnp.arange(len(logits))
    scaled = logits[order] / jnp.where(options.temperature > 0, options.temperature, 1)
    scaled = jnp.where((options.top_k == 0) | (rank < options.top_k), scaled, -jnp.inf)
    p = jax.nn.softmax(scaled)
    before = jnp.cumsum(p) - p
    scaled = jnp.where((before < options.top_p) | (rank == 0), scaled, -jnp.inf)
    key = jax.random.fold_in(jax.random.key(options.seed), step)
    return order[jax.random.categorical(key, scaled)].astype(jnp.int32)
