"""Rotary position tables of the two backbones.

`lengths` is, for each token, the length of its own sample (the largest position there + 1), not of the batch: what it
is batched or packed with never changes its angles. For one sample this is what the original computes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class DynamicNTK:
    """InternLM2: the base grows with the length of the row once that exceeds `max_positions`.

    Source: trol/arch_internlm2/modeling_internlm2.py, InternLM2DynamicNTKScalingRotaryEmbedding.
    """

    theta: float
    factor: float
    max_positions: int


@dataclasses.dataclass(frozen=True)
class Su:
    """Phi-3 "su": one divisor a frequency, from the short list up to `original_max_positions` and the long one beyond.

    Source: trol/arch_phi3/modeling_phi3.py, Phi3SuScaledRotaryEmbedding.
    """

    theta: float
    short: tuple[float, ...]
    long: tuple[float, ...]
    max_positions: int
    original_max_positions: int

    @property
    def amplitude(self) -> float:
        """Factor on cosine and sine; 1.190 for 128k positions over 4k."""
        growth = self.max_positions / self.original_max_positions
        return 1.0 if growth <= 1 else math.sqrt(1 + math.log(growth) / math.log(self.original_max_positions))


def rotary_table(rope: DynamicNTK | Su, positions: jax.Array, lengths: jax.Array, head_dim: int):
    """Cosines and sines, float32[B, T, H / 2] each.

    positions, lengths: int[B, T].
    """
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    if isinstance(rope, Su):
        if not len(rope.short) == len(rope.long) == head_dim // 2:
            raise ValueError(f"su factors: {len(rope.short)} short, {len(rope.long)} long, need {head_dim // 2}")
        long = (lengths > rope.original_max_positions)[..., None]
        factors = jnp.where(long, jnp.float32(rope.long), jnp.float32(rope.short))
        frequencies, amplitude = 1 / (factors * rope.theta**exponents), rope.amplitude
    else:
        grown = jnp.maximum(lengths, rope.max_positions).astype(jnp.float32) / rope.max_positions
        scale = jnp.where(lengths > rope.max_positions, rope.factor * grown - (rope.factor - 1), 1.0)
        base = rope.theta * scale ** (head_dim / (head_dim - 2))
        frequencies, amplitude = base[..., None] ** -exponents, 1.0
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * amplitude, jnp.sin(angles) * amplitude


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x: [B, T, N, H]; channel i is paired with channel i + H / 2. Angles in float32, result in the dtype of x."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
