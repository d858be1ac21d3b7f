"""The language model: InternLM2 and Phi-3 by options, every layer traversed."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from trol_jax.models import kernels
from trol_jax.models.cache import placed, stored, write
from trol_jax.models.layers import Linear, RMSNorm, anywhere, stack
from trol_jax.models.variants import DecoderConfig
from trol_jax.ops.attention import attention, cached_attention
from trol_jax.ops.rotary import rotate
from trol_jax.ops.traversal import gate_score, traverse


@struct.dataclass
class Context:
    """What every layer and both passes share."""

    mask: jax.Array  # bool[B, T, S]
    cos: jax.Array  # float32[B, T, H / 2]
    sin: jax.Array
    image_mask: jax.Array  # bool[B, T], where partial LoRA applies
    index: jax.Array | None = None  # int32[B], cache slot of the first token


class Pass(nn.Module):
    """One pass through one layer: attention, then the gated MLP."""

    config: DecoderConfig
    dtype: Any
    deterministic: bool
    layout: Callable

    @nn.compact
    def __call__(self, x, cached, context):
        """x: [B, T, D]; cached: what a `Cache` holds of the layer, or None. Returns (x, that, or (keys, values))."""
        c, ctx, layout = self.config, context, self.layout
        d, k, g, h = c.width, c.kv_heads, c.heads // c.kv_heads, c.head_dim

        def linear(name, x, inputs, outputs):
            rank = dict(lora_rank=c.lora_rank, lora_dropout=c.lora_dropout)
            module = Linear(inputs, outputs, kernels.AXES[name], **rank, dtype=self.dtype, name=name)
            return module(x, ctx.image_mask, self.deterministic)

        y = RMSNorm(c.eps, name="attention_norm")(x)
        qkv = linear("qkv", y, (d,), (k, g + 2, h))
        query = qkv[..., :g, :].reshape(*x.shape[:2], c.heads, h)
        query, key = rotate(query, ctx.cos, ctx.sin), rotate(qkv[..., g, :], ctx.cos, ctx.sin)
        query = layout(query, "batch", "tokens", "act_heads", None)
        # Each token sees keys of all others: they are gathered where tokens are cut.
        kv = tuple(layout(each, "batch", None, "act_kv_heads", None) for each in (key, qkv[..., g + 1, :]))
        if cached is None:
            y = attention(query, *kv, ctx.mask)
        else:
            new = stored(kv, cached[0].dtype)
            kv = tuple(write(slots, each, ctx.index) for slots, each in zip(cached, new, strict=True))
            kv = placed(kv, layout)
            y = cached_attention(query, ctx.mask, *kv)
        y = layout(y, "batch", "tokens", "act_heads", None)
        x += linear("out", y, (c.heads, h), (d,))
        x = layout(x, "batch", "tokens", "act_embed")

        y = RMSNorm(c.eps, name="mlp_norm")(x)
        gate = linear("gate", y, (d,), (c.hidden,))
        up = linear("up", y, (d,), (c.hidden,))
        y = layout(jax.nn.silu(gate) * up, "batch", "tokens", "act_mlp")
        x += linear("down", y, (c.hidden,), (d,))
        return layout(x, "batch", "tokens", "act_embed"), kv


class TraversedLayer(nn.Module):
    config: DecoderConfig
    passes: int
    dtype: Any
    deterministic: bool
    layout: Callable

    @nn.compact
    def __call__(self, x, gate, cached, context):
        """gate: (kernel [D], bias []). Returns (x, (first-pass keys and values, scores))."""
        self.sow("intermediates", "hidden", x)  # what enters the layer, for callers that ask for intermediates
        one_pass = Pass(self.config, self.dtype, self.deterministic, self.layout, name="block")
        x, kv, scores = traverse(lambda h: one_pass(h, cached, context), lambda h: gate_score(h, *gate), x, self.passes)
        return x, (kv, scores)


class Decoder(nn.Module):
    config: DecoderConfig
    shared_gate: bool
    dtype: Any = jnp.float32
    scan: bool = True
    remat: str = "none"
    separate: bool = False
    layout: Callable = anywhere

    def setup(self):
        c = self.config
        embed = nn.with_logical_partitioning(nn.initializers.normal(c.width**-0.5), (None, "columns"))
        self.embedding = self.param("embedding", embed, (c.vocab + c.extra_rows, c.width))
        layers = () if self.shared_gate else (c.layers,)
        names = () if self.shared_gate else ("layers",)
        zeros = nn.initializers.zeros_init()
        self.gate = (
            self.param("gate_kernel", nn.with_logical_partitioning(zeros, (*names, "norm")), (*layers, c.width)),
            self.param("gate_bias", nn.with_logical_partitioning(zeros, names), layers),
        )
        self.norm = RMSNorm(c.eps)
        self.head = Linear((c.width,), (c.vocab,), ("embed", "vocab"), dtype=self.dtype)

    def embed(self, tokens):
        """int[B, T] -> [B, T, D]."""
        return jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)

    @nn.compact
    def __call__(self, x, context, cache=None, *, passes, deterministic=True):
        """x: [B, T, D] embedded tokens. Returns (states after the final norm [B, T, D], out).

        out["kv"]: keys and values [B, T, K, H] by layer, or where a cache is given what it is to hold;
        out["gate"]: scores float32[L, passes - 1, B, T].
        """
        gate_axis = nn.broadcast if self.shared_gate else 0
        layer = TraversedLayer
        if passes > 1 and not deterministic and (copies := getattr(self.layout, "copies", None)):
            copied = lambda tree: {"params": kernels.copied(tree["params"], copies, self.dtype)}  # noqa: E731
            layer = nn.map_variables(TraversedLayer, "params", copied)
        run = stack(
            layer, self.config.layers, in_axes=(gate_axis, 0, nn.broadcast),
            scan=self.scan, remat=self.remat, separate=self.separate, copies=layer is not TraversedLayer,
            config=self.config, passes=passes, dtype=self.dtype, deterministic=deterministic, layout=self.layout,
        )  # fmt: skip
        cached = None if cache is None else cache.kv
        if cache is not None and not self.separate:
            cached = jax.tree.map(jnp.stack, cached, is_leaf=lambda leaf: isinstance(leaf, list))
        x, (kv, scores) = run(x, self.gate, cached, context)
        return self.norm(x), {"kv": kv, "gate": jnp.stack(scores) if isinstance(scores, list) else scores}
