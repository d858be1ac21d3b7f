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


def randoms(sampling: Sampling, step: jax.Array, count: int) -> jax.Array:
    """Numbers in [0, 1) for `count` tokens of each answer from `step`, int32[B], on: float32[count, B].

    For many tokens at a time, because on a CPU a few numbers take as long as many.
    """

    def number(seed, step):
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), step))

    steps = step + jnp.arange(count)[:, None]
    return jax.lax.cond(
        (sampling.temperature > 0).any(),
        lambda: jax.vmap(jax.vmap(number), in_axes=(None, 0))(sampling.seed, steps),
        lambda: jnp.zeros(steps.shape, jnp.float32),
    )


def sample(logits: jax.Array, sampling: Sampling | None = None, random: jax.Array | None = None) -> jax.Array:
    """logits: float32[B, V]; random: float32[B], of `randoms`. Returns int32[B]; without `sampling` the most likely."""
    best = logits.argmax(axis=-1).astype(jnp.int32)
    if sampling is None:
        return best
    draws, some = sampling.temperature > 0, (sampling.temperature > 0).any()
    filtered = (draws & ((sampling.top_k > 0) | (sampling.top_p < 1))).any()
    scaled = logits / jnp.where(draws, sampling.temperature, 1)[:, None]
    # Sorting a vocabulary takes long: only where someone asks for it.
    scaled = jax.lax.cond(filtered, lambda: _filter(scaled, sampling.top_k, sampling.top_p), lambda: scaled)
    drawn = jax.lax.cond(some, lambda: _draw(jax.nn.softmax(scaled), random), lambda: best)
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
def _draw(p: jax.Array, random: jax.Array) -> jax.Array:
    """Inverts the cumulative distribution: of blocks of tokens, then of those of one. A sum over all is slow."""
    block = 1 << len(p).bit_length() // 2
    blocks = jnp.pad(p, (0, -len(p) % block)).reshape(-1, block)
    mass = blocks.sum(axis=-1)
    row, rest = _reach(mass, random * mass.sum())
    column, _ = _reach(blocks[row], rest)
    return row * block + column


def _reach(mass: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the first whose cumulative sum exceeds what is wanted, what is then left). Never one without mass, where a sum
    that is taken in parallel may yet rise.
    """
    reached = jnp.cumsum(mass)
    last = len(mass) - 1 - (mass > 0)[::-1].argmax()
    beyond = (reached > wanted) & (mass > 0)
    i = jnp.where(beyond.any(), beyond.argmax(), last).astype(jnp.int32)
    return i, jnp.maximum(wanted - (reached[i] - mass[i]), 0)
