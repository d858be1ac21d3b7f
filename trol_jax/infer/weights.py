"""A checkpoint's weights as the device is to hold them: in full, or in fewer bits."""

import collections
import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from trol_jax import checkpoint
from trol_jax.errors import UserError
from trol_jax.models import kernels
from trol_jax.models.layers import anywhere
from trol_jax.models.trol import TroL, abstract_params
from trol_jax.ops.quantization import int8_kernel, nf4_kernel

QUANTIZERS = {"int8": int8_kernel, "nf4": nf4_kernel}
KINDS = ("float32", "bfloat16", *QUANTIZERS)
AHEAD = 2  # arrays that are read while others are worked on

# In fewer bits are the kernels of the decoder's layers (`models.kernels`), all else is in bfloat16 or, where it is few
# numbers, in float32.
#
# That is what the paper says of its language models, and all that pays: of the released models these kernels are 62 to
# 87% of the weights. The original (trol/load_trol.py) does not do it. It has bitsandbytes leave alone what is called
# vit, vision_proj, ffn, output or trol_gating, and in its InternLM2 the kernels of the layers are called "ffn" too, as
# the part of a layer with partial LoRA that is not the low-rank pair: only these pairs are quantised there.


def load(path: str | os.PathLike, model: TroL, kind: str | None = None) -> dict:
    """The parameters for `dataclasses.replace(model, separate=True)`, where `model.layout` has them.

    path: as for `checkpoint.resolve`. kind: one of KINDS, None = as stored. They are read and, where that is asked,
    quantised an array of one layer at a time, so that little is in memory beside the result. UserError as for
    `checkpoint.restore_params`, and for an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"weights {kind!r} are not known; choose one of {', '.join(KINDS)}")
    step_dir = checkpoint.resolve(path)
    boxed = abstract_params(dataclasses.replace(model, separate=False))
    shapes = nn.unbox(boxed)
    checkpoint.stored_params(step_dir, shapes)
    axes = {name: leaf.names for name, leaf in flatten_dict(boxed, sep="/").items()}
    params = {}
    for name, own_name, array in _read_ahead(_reads(step_dir, flatten_dict(shapes, sep="/"))):
        # Waiting here keeps arrays of the host from piling up.
        params[own_name] = jax.block_until_ready(_made(array, maker(name, kind), model.layout, axes[name]))
    return unflatten_dict(params, sep="/")


def _made(array: np.ndarray, make: Callable, layout: Callable, axes: tuple[str | None, ...]):
    """axes: names of the array's, before it that of the layers where it is one layer's."""
    if layout is anywhere:
        return make(array)
    axes = axes[len(axes) - array.ndim :]
    made = make(jax.device_put(array, layout.sharding(axes, array.shape)))
    return jax.device_put(made, layout.like(made, axes))


def named(weight_kind: str | None, cache: str | None, traversal: str | None = None, system: str | None = None) -> str:
    """What is not as by default, for the record of a measurement."""
    changed = {"weights": weight_kind, "cache": cache, "traversal": traversal}
    told = "" if system is None else f", system {system!r}"
    return "".join(f", {name} {value}" for name, value in changed.items() if value) + told


def size(params: Any) -> int:
    """Bytes of parameters (or of a cache) on the device. `nbytes` would count a whole one for each uint4."""
    return sum(math.ceil(leaf.size * jax.dtypes.itemsize_bits(leaf.dtype) / 8) for leaf in jax.tree.leaves(params))


def _reads(step_dir, shapes: dict[str, jax.ShapeDtypeStruct]) -> Iterator[tuple[str, str, Any]]:
    """(name in the checkpoint, name of an array of its own, what is to be read for it)."""
    for name, leaf in shapes.items():
        store = checkpoint.open_array(step_dir, checkpoint.PARAMS + name)
        if "layers" not in name.split("/"):
            yield name, name, store
        else:
            for i in range(leaf.shape[0]):
                yield name, name.replace("layers", f"layers_{i}"), store[i]


def _read_ahead(reads: Iterator[tuple[str, str, Any]]) -> Iterator[tuple[str, str, np.ndarray]]:
    pending = collections.deque()
    for name, own_name, source in reads:
        pending.append((name, own_name, source.read()))
        if len(pending) > AHEAD:
            name, own_name, future = pending.popleft()
            yield name, own_name, future.result()
    for name, own_name, future in pending:
        yield name, own_name, future.result()


@functools.cache
def maker(name: str, kind: str | None) -> Callable[[np.ndarray], Any]:
    """What makes the parameter of an array, of one layer; name: in the checkpoint."""
    if kind is None:
        return jnp.asarray
    if kind in QUANTIZERS and (inputs := kernels.inputs(name)):
        return functools.partial(_quantize, kind=kind, inputs=inputs)
    full = kind == "float32" or re.fullmatch(kernels.PRECISE, name)
    return functools.partial(jnp.asarray, dtype=jnp.float32 if full else jnp.bfloat16)


@functools.partial(jax.jit, static_argnames=("kind", "inputs"))
def _quantize(kernel, kind: str, inputs: int):
    return QUANTIZERS[kind](kernel, inputs)
