"""Attention that never writes its [T, S] logits to memory, by the kernels that come with JAX.

On a TPU splash attention (`jax.experimental.pallas.ops.tpu`), on a GPU cuDNN's. The result is that of
`ops.attention.attention`, within the rounding of another order of sums.
"""

import jax
import jax.numpy as jnp

from trol_jax.ops.attention import prompt_mask

GPUS = ("gpu", "cuda")
PLATFORMS = ("tpu", *GPUS)
LANES = 128  # splash attention takes lengths that are multiples of it
BLOCKS = (512, 384, 256, LANES)  # tokens of a block, the first that divides the length


def flash_attention(q, k, v, segment_ids=None, *, platform: str, interpret: bool = False) -> jax.Array:
    """`ops.attention.attention` with the mask `prompt_mask(segment_ids)`, on one device of `platform`, of PLATFORMS.

    q: [B, T, N, H]; k, v: [B, T, K, H]; segment_ids: int[B, T]; None = all see all. What tokens of padding (segment 0)
    get is finite and meaningless. On a GPU 16-bit numbers only.
    interpret: run the TPU's kernel on any platform, slowly.
    """
    if platform in GPUS:
        return _cudnn(q, k, v, segment_ids)
    return _splash(q, k, v, segment_ids, interpret)


def _cudnn(q, k, v, segment_ids) -> jax.Array:
    batch, length = q.shape[:2]
    odd, how = length % 2, {}  # with a gradient cuDNN takes even lengths only
    q, k, v = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (q, k, v))
    if segment_ids is not None:
        how = dict(mask=prompt_mask(jnp.pad(segment_ids, ((0, 0), (0, odd))))[:, None], is_causal=True)
    elif odd:
        how = dict.fromkeys(("query_seq_lengths", "key_value_seq_lengths"), jnp.full(batch, length))
    return jax.nn.dot_product_attention(q, k, v, **how, implementation="cudnn")[:, :length]


def _splash(q, k, v, segment_ids, interpret: bool) -> jax.Array:
    # Here, for it takes a fifth of a second that most programs need not wait for.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (batch, length, heads, size), padding = q.shape, -q.shape[1] % LANES
    padded = length + padding
    causal = segment_ids is not None
    segments = jnp.pad(segment_ids if causal else jnp.ones((batch, length), jnp.int32), ((0, 0), (0, padding)))
    q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q * size**-0.5, k, v))
    block = next(each for each in BLOCKS if padded % each == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    mask = (masks.CausalMask if causal else masks.FullMask)((padded, padded))
    blocks = splash.BlockSizes(**{f"block_{name}": block for name in names})
    how = dict(block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret)
    kernel = splash.make_splash_mha(masks.MultiHeadMask([mask] * heads), **how)
    return jax.vmap(kernel)(q, k, v, splash.SegmentIds(segments, segments)).swapaxes(1, 2)[:, :length]
