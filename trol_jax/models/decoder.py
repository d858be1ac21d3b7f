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
from trol_jax.ops import traversal
from trol_jax.ops.attention import attention, cached_attention
from trol_jax.ops.rotary import rotate
from trol_jax.ops.traversal import RELEASED, Traversal, traverse


@struct.dataclass
class Context:
    """What every layer and both passes share."""

    mask: jax.Array  # bool[B, T, S], or of flash attention segments, int[B, T]
    cos: jax.Array  # float32[B, T, H / 2]
    sin: jax.Array
    image_mask: jax.Array  # bool[B, T], where partial LoRA applies
    index: jax.Array | None = None  # int32[B], cache slot of the first token
    traversed: jax.Array | None = None  # bool[B, T], tokens that are traversed; None = all
    positions: jax.Array | None = None  # int32[B, T], where scores are drawn


class Pass(nn.Module):
    """One pass through one layer: attention, then the gated MLP."""

    config: DecoderConfig
    dtype: Any
    deterministic: bool
    layout: Callable
    attend: Callable

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
            y = self.attend(query, *kv, ctx.mask)
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
    traversal: Traversal
    passes: int
    dtype: Any
    deterministic: bool
    layout: Callable
    attend: Callable

    @nn.compact
    def __call__(self, x, gate, number, cached, context):
        """gate: see `ops.traversal.score`. number: int32[] or int, that of the layer, where it matters.

        Returns (x, (keys and values of the first pass, or with `decode` of each, scores)).
        """
        self.sow("intermediates", "hidden", x)  # what enters the layer, for callers that ask for intermediates
        block = Pass(self.config, self.dtype, self.deterministic, self.layout, self.attend, name="block")
        kept = self.passes if self.traversal.decode else 1
        draw = self.draw(number, context)
        where, here = context.traversed, True
        if self.traversal.layers != "all":
            chosen = traversal.traversed(self.traversal.layers, self.config.layers)
            here = chosen[number] if isinstance(number, int) else jnp.array(chosen)[number]
        if here is not True:
            where = jnp.array(here)[None, None] if where is None else here & where

        kvs = []

        def one_pass(h, n):
            size, slot = cached and len(cached) // kept, min(n, kept - 1)
            run = lambda block, h: block(h, cached and cached[slot * size : (slot + 1) * size], context)  # noqa: E731
            skip = lambda block, h: (h, kvs[0])  # noqa: E731
            if n == 0 or isinstance(here, bool):
                h, kv = (run if n == 0 or here else skip)(block, h)
            else:  # one program for all layers
                h, kv = nn.cond(here, run, skip, block, h)
            kvs.append(kv)
            return h

        score = lambda h, n: traversal.score(self.traversal, gate, h, n, draw)  # noqa: E731
        x, scores = traverse(one_pass, score, x, self.passes, self.traversal.mix, where)
        return x, (sum(kvs[1:kept], kvs[0]), scores)

    def draw(self, number, context):
        if self.traversal.mix != "random" or self.passes == 1:
            return None
        places = context.positions
        if self.deterministic:
            return jax.random.fold_in(jax.random.key(0), number), places
        return self.make_rng("dropout"), jnp.arange(places.size).reshape(places.shape)


class Decoder(nn.Module):
    config: DecoderConfig
    shared_gate: bool
    traversal: Traversal = RELEASED
    dtype: Any = jnp.float32
    scan: bool = True
    remat: str = "none"
    separate: bool = False
    layout: Callable = anywhere
    attend: Callable = attention

    def setup(self):
        c = self.config
        embed = nn.with_logical_partitioning(nn.initializers.normal(c.width**-0.5), (None, "columns"))
        self.embedding = self.param("embedding", embed, (c.vocab + c.extra_rows, c.width))
        zeros = nn.initializers.zeros_init()
        self.gate = self.gate_param("kernel", zeros, norm=c.width), self.gate_param("bias", zeros)
        if self.traversal.gate == "two_linear":
            fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1)
            self.gate += (
                self.gate_param("hidden_kernel", fan_in, embed=c.width, norm=c.width),
                self.gate_param("hidden_bias", zeros, norm=c.width),
            )
        self.norm = RMSNorm(c.eps)
        self.head = Linear((c.width,), (c.vocab,), ("embed", "vocab"), dtype=self.dtype)

    def gate_param(self, name, init, **axes):
        """axes: sizes of one gate's. Before them are those of layers and of gates, where there are several."""
        layers = {} if self.shared_gate else {"layers": self.config.layers}
        gates = (self.traversal.gates,) if self.traversal.gates > 1 else ()
        names = (*layers, *[None for _ in gates], *axes)
        shape = (*layers.values(), *gates, *axes.values())
        return self.param(f"gate_{name}", nn.with_logical_partitioning(init, names), shape)

    def embed(self, tokens):
        """int[B, T] -> [B, T, D]."""
        return jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)

    @nn.compact
    def __call__(self, x, context, cache=None, *, passes, deterministic=True):
        """x: [B, T, D] embedded tokens. Returns (states after the final norm [B, T, D], out).

        out["kv"]: keys and values [B, T, K, H] by layer (with `traversal.decode` those of each pass), or where a cache
        is given what it is to hold;
        out["gate"]: scores float32[L, passes - 1, B, T].
        """
        gate_axis = nn.broadcast if self.shared_gate else 0
        layer = TraversedLayer
        if passes > 1 and not deterministic and getattr(self.layout, "copies", None):
            copied = lambda tree: {"params": kernels.copied(tree["params"], self.layout, self.dtype)}  # noqa: E731
            layer = nn.map_variables(TraversedLayer, "params", copied)
        run = stack(
            layer, self.config.layers, in_axes=(gate_axis, 0, 0, nn.broadcast),
            scan=self.scan, remat=self.remat, separate=self.separate, copies=layer is not TraversedLayer,
            config=self.config, traversal=self.traversal, passes=passes,
            dtype=self.dtype, deterministic=deterministic, layout=self.layout, attend=self.attend,
        )  # fmt: skip
        cached = None if cache is None else cache.kv
        if cache is not None and not self.separate:
            cached = jax.tree.map(jnp.stack, cached, is_leaf=lambda leaf: isinstance(leaf, list))
        numbered = self.traversal.layers != "all" or self.traversal.mix == "random"
        numbers = range(self.config.layers)
        numbers = None if not numbered else [*numbers] if self.separate else jnp.array(numbers)
        x, (kv, scores) = run(x, self.gate, numbers, cached, context)
        return self.norm(x), {"kv": kv, "gate": jnp.stack(scores) if isinstance(scores, list) else scores}
