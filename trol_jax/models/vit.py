"""Vision transformer: CLIP ViT-L/14 and InternViT-300M, one module by options."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from trol_jax.models.layers import LayerNorm, Linear, anywhere, stack
from trol_jax.models.variants import VisionConfig
from trol_jax.ops.attention import attention
from trol_jax.ops.image import patchify

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class VisionLayer(nn.Module):
    config: VisionConfig
    dtype: Any
    layout: Callable
    attend: Callable

    @nn.compact
    def __call__(self, x):
        c, d, n = self.config, self.config.width, self.config.heads
        h = LayerNorm(c.eps, name="norm1")(x)
        qkv_axes = ("embed", None, "heads", "head_dim")
        qkv = Linear((d,), (3, n, d // n), qkv_axes, bias=True, dtype=self.dtype, name="qkv")(h)
        qkv = self.layout(qkv, "pictures", None, None, "act_heads", None)
        h = self.attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        h = Linear((n, d // n), (d,), ("heads", "head_dim", "embed"), bias=True, dtype=self.dtype, name="out")(h)
        x += self.scale("scale1", h)
        h = LayerNorm(c.eps, name="norm2")(x)
        h = Linear((d,), (c.hidden,), ("embed", "mlp"), bias=True, dtype=self.dtype, name="up")(h)
        h = self.layout(ACTIVATIONS[c.activation](h), "pictures", None, "act_mlp")
        h = Linear((c.hidden,), (d,), ("mlp", "embed"), bias=True, dtype=self.dtype, name="down")(h)
        return self.layout(x + self.scale("scale2", h), "pictures", None, "act_embed"), None

    def scale(self, name, h):
        """InternViT's LayerScale. It starts at one: these towers are shallow when they are trained from nothing."""
        if not self.config.layer_scale:
            return h
        init = nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",))
        return h * self.param(name, init, (self.config.width,)).astype(h.dtype)


class VisionTransformer(nn.Module):
    config: VisionConfig
    dtype: Any = jnp.float32
    scan: bool = True
    remat: str = "none"
    separate: bool = False
    layout: Callable = anywhere
    attend: Callable = attention

    @nn.compact
    def __call__(self, images):
        """images: float[B, height, width, C], normalised. Returns (patches [B, P, D], out).

        `patches` is the output of the last layer, without the class token and before any final norm, as TroL takes it
        (trol/arch_internlm2/build_module.py). out["class"]: [B, D], the class token as CLIP would give it.
        """
        c = self.config
        if images.shape[1:3] != (c.image_size, c.image_size):
            raise ValueError(f"pictures of {images.shape[1:3]} pixels, the vision tower takes {c.image_size}")
        x = patchify(images.astype(self.dtype), c.patch_size)
        x = Linear((x.shape[-1],), (c.width,), (None, "embed"), bias=c.patch_bias, dtype=self.dtype, name="patch")(x)
        small = nn.initializers.normal(0.02)
        class_token = self.param("class", nn.with_logical_partitioning(small, ("norm",)), (c.width,))
        positions = nn.with_logical_partitioning(small, (None, "embed"))
        table = self.param("positions", positions, (1 + c.patches, c.width))
        x = jnp.concatenate([jnp.broadcast_to(class_token.astype(x.dtype), (len(x), 1, c.width)), x], axis=1)
        x += table.astype(x.dtype)
        if c.outer_norms:
            x = LayerNorm(c.eps, name="pre_norm")(x)
        how = dict(scan=self.scan, remat=self.remat, separate=self.separate)
        x = self.layout(x, "pictures", None, "act_embed")
        how |= dict(config=c, dtype=self.dtype, layout=self.layout, attend=self.attend)
        x, _ = stack(VisionLayer, c.layers, in_axes=(), **how)(x)
        last = LayerNorm(c.eps, name="post_norm")(x[:, 0]) if c.outer_norms else x[:, 0]
        return x[:, 1:], {"class": last}
