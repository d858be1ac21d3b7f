"""The kernels of the decoder's layers, which may be quantised and adapted."""

import dataclasses
import re

import flax.linen as nn

from trol_jax.ops.quantization import Int8, Quantized

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
