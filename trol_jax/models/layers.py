"""The two modules that hold parameters of every other one: a linear map and a norm.

Each parameter carries logical axis names; `trol_jax.sharding` maps them to mesh axes, and so it does those by which
modules call their `layout` on what they compute.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from trol_jax.models.kernels import rank_axis
from trol_jax.ops import norms
from trol_jax.ops.linear import product

Axes = tuple[str | None, ...]


def anywhere(x: jax.Array, *names: str | None) -> jax.Array:
    """Where what is computed lies, told by the names of its axes: here, wherever the compiler puts it.

    `trol_jax.sharding.rules.Layout` is what takes its place over several devices.
    """
    return x


class Linear(nn.Module):
    """x [..., *inputs] -> [..., *outputs]. With `lora_rank`, a low-rank pair is added where `lora_mask` is True."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: Axes  # logical names of inputs + outputs
    bias: bool = False
    lora_rank: int = 0
    lora_dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, lora_mask=None, deterministic=True):
        """lora_mask: bool[...] over the leading axes of x."""
        n_in = len(self.inputs)
        in_axes, out_axes = self.axes[:n_in], self.axes[n_in:]

        def kernel(name, inputs, outputs, axes, scale=1.0):
            init = nn.initializers.variance_scaling(
                scale, "fan_in", "truncated_normal", in_axis=tuple(range(len(inputs))),
                out_axis=tuple(range(len(inputs), len(inputs) + len(outputs))),
            )  # fmt: skip
            init = init if scale else nn.initializers.zeros_init()
            init = nn.with_logical_partitioning(init, axes)
            return self.param(name, init, (*inputs, *outputs))  # or another kernel of `ops.linear`

        w = kernel("kernel", self.inputs, self.outputs, self.axes)
        x = x.astype(self.dtype)
        y = checkpoint_name(product(x, w, n_in), "product")
        if self.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), out_axes)
            y += self.param("bias", zeros, self.outputs).astype(self.dtype)
        if self.lora_rank:
            a = kernel("lora_a", self.inputs, (self.lora_rank,), (*in_axes, rank_axis(in_axes)))
            b = kernel("lora_b", (self.lora_rank,), self.outputs, (rank_axis(out_axes), *out_axes), scale=0.0)
            if lora_mask is not None:
                low = x * lora_mask.reshape(lora_mask.shape + (1,) * n_in).astype(self.dtype)
                low = nn.Dropout(self.lora_dropout)(low, deterministic=deterministic)
                y += product(product(low, a, n_in), b, 1)
        return y


class RMSNorm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x):
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",))
        return norms.rms_norm(x, self.param("scale", ones, x.shape[-1:]), self.eps)


class LayerNorm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x):
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("norm",))
        scale, bias = self.param("scale", ones, x.shape[-1:]), self.param("bias", zeros, x.shape[-1:])
        return norms.layer_norm(x, scale, bias, self.eps)


def _all_but_copies(primitive, *_, **__) -> bool:
    # Copies of weights for the parts of a batch are made by these two, which cost nothing to do again.
    return primitive.name not in ("broadcast_in_dim", "sharding_constraint")


REMAT_POLICIES = {
    "none": _all_but_copies,  # keep every intermediate
    "layer": jax.checkpoint_policies.nothing_saveable,  # recompute a whole layer, both passes
    "dots": jax.checkpoint_policies.save_only_these_names("product"),  # keep the products with weights
    # keep them in the host's memory, where the platform has one of its own; on a CPU the same as "dots"
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=(),
        names_which_can_be_offloaded=("product",),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def stack(
    layer_cls, length: int, *, in_axes, scan: bool, separate: bool, remat: str, copies: bool = False, **attributes
):  # fmt: skip
    """`length` layers, called as `run(x, *args) -> (x, outs)`.

    scan: compile one layer, or unroll the layers: longer to compile, faster on a CPU. The parameters are the same, each
    stacked over the layers along a leading axis (module `layers`).
    separate: a Python loop over `layers_0`, `layers_1`, ..., the parameters that `unstack_layers` makes of the stacked
    ones. Each weight is an array of its own, which single-token decoding streams from memory more than twice as fast.
    remat: what the backward pass recomputes, a name of REMAT_POLICIES. copies: whether a layer makes copies of its
    weights for the parts of a batch; they are made again in any case.
    in_axes: for each of `args` nn.broadcast, or 0 for values by layer. Those, and `outs`, are stacked along a leading
    axis; with `separate` they may be lists with an entry a layer, and `outs` are.
    """
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat {remat!r} is not one of {', '.join(REMAT_POLICIES)}")
    if remat != "none" or copies:
        layer_cls = nn.remat(layer_cls, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
    if not separate:
        return nn.scan(
            layer_cls,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=in_axes,
            length=length,
            unroll=1 if scan else length,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(name="layers", **attributes)
    layers = [layer_cls(name=f"layers_{i}", **attributes) for i in range(length)]

    def run(x, *args):
        outs = []
        for i, layer in enumerate(layers):
            mine = (a if axis is nn.broadcast else pick(a, i) for a, axis in zip(args, in_axes, strict=True))
            x, out = layer(x, *mine)
            outs.append(out)
        return x, jax.tree.map(lambda *leaves: list(leaves), *outs)

    def pick(tree, i):
        return jax.tree.map(lambda leaf: leaf[i], tree, is_leaf=lambda leaf: isinstance(leaf, list))

    return run


def unstack_layers(params):
    """Parameters stacked over the layers -> an array of each layer's own (`layers` -> `layers_0`, `layers_1`, ...)."""
    if not isinstance(params, dict):
        return params
    flat = {}
    for name, value in params.items():
        if name == "layers":
            for i in range(len(jax.tree.leaves(value)[0])):
                flat[f"layers_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], value)
        else:
            flat[name] = unstack_layers(value)
    return flat
