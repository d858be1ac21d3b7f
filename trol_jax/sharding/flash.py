"""Flash attention over a mesh: each device runs the kernel of its platform on its own rows and heads."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from trol_jax.errors import UserError
from trol_jax.ops.attention import attention, prompt_mask
from trol_jax.ops.flash import GPUS, PLATFORMS, flash_attention
from trol_jax.sharding.rules import Layout

ATTENTIONS = ("xla", "flash")  # logits in memory; or `Flash`


def attend(name: str, layout: Layout, dtype) -> Callable:
    """What a model takes as its `attend`; name: of ATTENTIONS. UserError for what cuDNN cannot do."""
    if name == "xla":
        return attention
    flash = Flash(layout)
    if flash.platform in GPUS:
        if jnp.dtype(dtype).itemsize != 2:
            raise UserError(f"flash attention on a GPU takes bfloat16, not {jnp.dtype(dtype)}; give attention=xla")
        try:
            jax.eval_shape(flash, *[jax.ShapeDtypeStruct((layout.mesh.size, 64, 1, 64), dtype)] * 3)
        except RuntimeError as error:
            raise UserError(
                f"flash attention on a GPU needs cuDNN ({error}); install jax[cuda13], or give attention=xla"
            ) from None
    return flash


@dataclasses.dataclass(frozen=True)
class Flash:
    """`ops.flash.flash_attention` wherever there is a kernel: on TPUs and GPUs, where tokens are not cut over devices.

    Elsewhere it is plain attention. Hashable, as `Layout`. interpret: run the TPU's kernel on any platform, slowly.
    """

    layout: Layout
    interpret: bool = False

    @property
    def platform(self) -> str:
        return "tpu" if self.interpret else self.layout.mesh.devices.flat[0].platform

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
        """q: [B, T, N, H]; k, v: [B, T, K, H]; segment_ids: int[B, T] of `prompt_mask`, or None: all see all."""
        rows, tokens = ("pictures", None) if segment_ids is None else ("batch", "tokens")
        spec = functools.partial(self.layout.spec, parameter=False)
        if self.platform not in PLATFORMS or spec((tokens,), q.shape[1:2])[0]:
            return attention(q, k, v, None if segment_ids is None else prompt_mask(segment_ids))
        run = functools.partial(flash_attention, platform=self.platform, interpret=self.interpret)
        inputs = (q, k, v) if segment_ids is None else (q, k, v, segment_ids)
        if self.layout.mesh.size == 1:
            return run(*inputs)
        whole = spec((rows, None, "act_heads", None), q.shape)
        keys = spec((rows, None, "act_kv_heads", None), k.shape)
        if keys != whole:  # too few heads of keys to cut as those of queries are
            k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
            keys, inputs = whole, (q, k, v, *inputs[3:])
        specs = (whole, keys, keys, PartitionSpec(whole[0]))[: len(inputs)]
        local = jax.shard_map(run, mesh=self.layout.mesh, in_specs=specs, out_specs=whole, check_vma=False)
        return local(*inputs)
