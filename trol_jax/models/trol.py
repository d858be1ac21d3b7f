"""TroL: vision tower, projector and traversed language model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from trol_jax.models.decoder import Context, Decoder
from trol_jax.models.layers import anywhere
from trol_jax.models.projector import Projector
from trol_jax.models.variants import ModelConfig
from trol_jax.models.vit import VisionTransformer
from trol_jax.ops.attention import attention, cache_mask, prompt_mask
from trol_jax.ops.rotary import rotary_table
from trol_jax.ops.traversal import TOKENS


class TroL(nn.Module):
    """dtype: of the computation; parameters are float32 unless cast. layout: see `models.layers.anywhere`. attend: what
    is computed without a cache, `ops.attention.attention` or `sharding.flash.Flash`, which does not tell turns apart.
    For the rest see `models.layers.stack`.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    scan: bool = True
    remat: str = "none"
    separate: bool = False
    layout: Callable = anywhere
    attend: Callable = attention

    def setup(self):
        c = self.config
        how = dict(
            dtype=self.dtype, scan=self.scan, remat=self.remat, separate=self.separate,
            layout=self.layout, attend=self.attend,
        )  # fmt: skip
        self.vision = VisionTransformer(c.vision, **how)
        self.projector = Projector(c.decoder.width, c.shuffle, self.dtype, self.layout)
        self.decoder = Decoder(c.decoder, c.shared_gate, c.traversal, **how)

    def patches(self, images):
        """float[I, height, width, C], normalised -> what the tower makes of each patch, [I, P, D of the tower]."""
        return self.vision(self.layout(images, "pictures", None, None, None))[0]

    def encode_images(self, images):
        """float[I, height, width, C], normalised -> image tokens [I, P, D]."""
        return self.projector(self.patches(images))

    def __call__(
        self, tokens, images=None, *, segment_ids=None, turn_ids=None, positions=None, cache=None, mask=None,
        passes=None, loss_mask=None, deterministic=True,
    ):  # fmt: skip
        """Run the tokens of a prompt, a training row or a generation step.

        tokens: int[B, T]; the config's image token stands where image tokens go, in order.
        images: float[B, M, height, width, C], normalised, the M pictures (or tiles) of each row; None = no pictures.
        segment_ids, turn_ids: see `ops.attention.prompt_mask`; by default every token counts. With a cache,
        segment_ids tells tokens (nonzero) from padding (0).
        positions: int[B, T]; by default the running count of tokens that are not padding.
        mask: bool[B, T, S], which slots of the cache each token sees; by default those before it and its own.
        passes: by default the config's for more than one token, 1 for a single one, as the original.
        loss_mask: bool[B, T], tokens of answers, which may be left out of traversal; by default all are of the prompt.
        Returns (states [B, T, D] after the final norm, out) with out["gate"] scores [L, passes - 1, B, T] and
        out["kv"] the first pass's keys and values by layer, or out["cache"] the new cache if one was given.
        """
        c = self.config
        if passes is None:
            several = c.prompt_passes if deterministic else c.passes
            passes = several if tokens.shape[1] > 1 else c.token_passes
        segment_ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
        valid = segment_ids != 0
        if positions is None:
            start = 0 if cache is None else cache.lengths[:, None]
            positions = jnp.maximum(start + jnp.cumsum(valid, axis=1) - 1, 0)
        if cache is None:
            mask, index = prompt_mask(segment_ids, turn_ids) if self.attend is attention else segment_ids, None
            same = segment_ids[:, :, None] == segment_ids[:, None, :]
            lengths = jnp.max(positions[:, None, :], axis=2, where=same, initial=0) + 1
        else:
            lengths = jnp.broadcast_to(positions.max(axis=1, keepdims=True) + 1, positions.shape)
            index, cache = cache.index, cache.admit(valid)
            mask = cache_mask(cache.valid, index, tokens.shape[1]) if mask is None else mask
        cos, sin = rotary_table(c.decoder.rope, positions, lengths, c.decoder.head_dim)
        image_mask = tokens == c.image_token
        x = self.decoder.embed(tokens)
        if images is not None:
            features = self.encode_images(images.reshape(-1, *images.shape[2:]))
            x = place(x, features.reshape(len(tokens), -1, x.shape[-1]), image_mask)
        x = self.layout(x, "batch", "tokens", "act_embed")
        traversed = TOKENS[c.traversal.tokens](image_mask, loss_mask)
        context = Context(
            mask, cos, sin, image_mask, index, traversed, positions if c.traversal.mix == "random" else None
        )
        x, out = self.decoder(x, context, cache, passes=passes, deterministic=deterministic)
        if cache is not None:
            out["cache"] = cache.replace(kv=tuple(map(list, out.pop("kv"))))
        return x, out

    def logits(self, x):
        """States [B, T, D] -> float32[B, T, V]."""
        return self.layout(self.decoder.head(x), "batch", "tokens", "act_vocab").astype(jnp.float32)


def place(x: jax.Array, features: jax.Array, image_mask: jax.Array) -> jax.Array:
    """Put the image tokens of each row, features [B, M * P, D], in order where image_mask [B, T] is True."""
    order = jnp.clip(jnp.cumsum(image_mask, axis=1) - 1, 0, features.shape[1] - 1)
    placed = jnp.take_along_axis(features, order[..., None], axis=1)
    return jnp.where(image_mask[..., None], placed.astype(x.dtype), x)


def init_params(model: TroL, rng: jax.Array):
    """Fresh parameters, boxed with their logical axis names (`flax.linen.unbox` takes the boxes off)."""
    # The layout is that of the parameters themselves; nothing else is computed.
    model = dataclasses.replace(model, layout=anywhere, attend=attention)
    size = model.config.vision.image_size
    tokens, images = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 1, size, size, 3))
    everything = lambda m, *inputs: m.logits(m(*inputs)[0])  # noqa: E731
    # Compiled as a whole, the forward pass that finds the shapes is never run.
    return jax.jit(lambda rng: model.init(rng, tokens, images, method=everything)["params"])(rng)


def abstract_params(model: TroL):
    """Shapes, dtypes and logical axis names of the parameters, without making an array."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
