"""The kernels of the decoder's layers, which may be quantised and adapted."""

import dataclasses
import re
from collections.abc import Callable

import flax.linen as nn
import jax

from trol_jax.ops.linear import Adapted, Copies
from trol_jax.ops.quantization import Int8, Quantized

# Logical names of their axes.
AXES = {
    # Grouped by key/value head, as InternLM2 stores it: tensor parallelism then cuts along these alone.
    "qkv": ("embed", "kv_heads", None, "head_dim"),
    "out": ("heads", "head_dim", "embed"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}
# How many axes of a kernel (of one layer) are inputs, by its name.
INPUTS = (
    (r"decoder/layers/block/(qkv|gate|up|down)/kernel", 1),
    (r"decoder/layers/block/out/kernel", 2),
)
# Few numbers, and each of them weighs on many: always in float32.
PRECISE = r".*norm[12]?/(scale|bias)|.*/scale[12]|decoder/gate_(kernel|bias)"


def inputs(name: str) -> int | None:
    """None for a parameter that is no kernel of a layer."""
    return next((count for expression, count in INPUTS if re.fullmatch(expression, name)), None)


def rank_axis(axes: tuple[str | None, ...]) -> str | None:
    """The logical name of the inner axis of one half of a low-rank pair; axes: of its others.

    A half without the width, along which parameters are cut, is cut along the rank instead.
    """
    return None if "embed" in axes else "rank"


def copied(params: dict, copies: Callable, dtype) -> dict:
    """A layer's parameters with `ops.linear.Copies` of its kernels and low-rank pairs, in `dtype`.

    copies(x, *names) makes those of an array whose axes have these names; `sharding.rules.Layout.copies`.
    """

    def copy(x, names):
        return Copies(x, copies(x.astype(dtype), *names))

    block = dict(params["block"])
    for name, axes in AXES.items():
        count = inputs(f"decoder/layers/block/{name}/kernel")
        a_axes, b_axes = axes[:count], axes[count:]
        names = {
            "kernel": axes,
            "lora_a": (*a_axes, rank_axis(a_axes)), "lora_b": (rank_axis(b_axes), *b_axes),
        }  # fmt: skip
        block[name] = made = dict(block[name])
        for leaf, its in names.items():
            if isinstance(each := made.get(leaf), Adapted):
                pair = {"a": copy(each.a, names["lora_a"]), "b": copy(each.b, names["lora_b"])}
                made[leaf] = dataclasses.replace(each, **pair)
            elif isinstance(each, jax.Array):
                made[leaf] = copy(each, its)
    return params | {"block": block}


def boxed(kernel: Quantized, names: tuple[str | None, ...]) -> Quantized:
    """A quantised kernel whose arrays carry the logical axis names that those of the kernel give them.

    names: of the kernel's axes, with that of the layers in front where it is stacked over them.
    """
    layers, own = (names[:1], names[1:]) if names[0] == "layers" else ((), names)
    if isinstance(kernel, Int8):
        outputs = own[len(own) - kernel.scale.ndim + len(layers) :]
        axes = {"values": names, "scale": layers + outputs}
    else:
        outputs = own[kernel.inputs :]
        axes = {"values": names, "codes": (*layers, None, *outputs), "scale": (*layers, None), "mean": layers}
    return dataclasses.replace(
        kernel, **{field: nn.Partitioned(getattr(kernel, field), each) for field, each in axes.items()}
    )
