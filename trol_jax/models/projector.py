"""From patches to tokens of the language model."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from trol_jax.models.layers import LayerNorm, Linear, anywhere
from trol_jax.models.vit import ACTIVATIONS
from trol_jax.ops.image import pixel_shuffle


class Projector(nn.Module):
    """Two layers with an exact GELU between; with pixel shuffle, a norm before them (`vision_proj` of the original)."""

    width: int
    shuffle: int = 1
    dtype: Any = jnp.float32
    layout: Callable = anywhere

    @nn.compact
    def __call__(self, x):
        """x: [B, P, D of the tower] -> [B, P / shuffle^2, D of the decoder]."""
        if self.shuffle > 1:
            x = LayerNorm(1e-5, name="norm")(pixel_shuffle(x, self.shuffle))
        axes = ("embed", "mlp")
        x = Linear((x.shape[-1],), (self.width,), axes, bias=True, dtype=self.dtype, name="up")(x)
        x = self.layout(ACTIVATIONS["gelu"](x), "pictures", None, "act_mlp")
        x = Linear((self.width,), (self.width,), axes[::-1], bias=True, dtype=self.dtype, name="down")(x)
        return self.layout(x, "pictures", None, "act_embed")
