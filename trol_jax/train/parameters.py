"""What a run does with each parameter: a table of patterns, and the two parts that it makes of a model.

A table is a list of (regular expression, treatment); the first whose expression matches a parameter's name (as
`decoder/layers/block/qkv/kernel`) counts. Treatments are one word of TREATMENTS, or "lora" and one of KEPT beside it:

    train           as it is, in float32
    freeze          no gradient, no optimiser state, in the dtype of the computation
    nf4, int8       the same, quantised (kernels of the decoder's layers)
    lora [nf4|int8] the same, and a low-rank pair beside it that is trained
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from trol_jax import checkpoint
from trol_jax.errors import UserError
from trol_jax.models import kernels
from trol_jax.ops.linear import Adapted
from trol_jax.ops.quantization import int8_kernel, nf4_kernel
from trol_jax.sharding import hosts

QUANTIZERS = {"nf4": nf4_kernel, "int8": int8_kernel}
TREATMENTS = ("train", "freeze", "lora", *QUANTIZERS)
A, B = "adapter_a", "adapter_b"

Table = Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class LoraOptions:
    rank: int
    alpha: float  # the pair counts alpha / rank times


@dataclasses.dataclass(frozen=True)
class Treatment:
    trained: bool = False
    lora: bool = False
    quantized: str = ""  # a name of QUANTIZERS


def parse(text: str) -> Treatment:
    words = text.split()
    first, rest = (words or [""])[0], words[1:]
    if first not in TREATMENTS or len(rest) > (first == "lora") or not set(rest) <= QUANTIZERS.keys():
        raise UserError(
            f"config.parameters: {text!r} is no treatment; choose {', '.join(TREATMENTS)}, or lora and one of "
            f"{', '.join(QUANTIZERS)}"
        )
    kind = next((word for word in words if word in QUANTIZERS), "")
    return Treatment(trained=first == "train", lora=first == "lora", quantized=kind)


def treatments(table: Table, names: Sequence[str]) -> dict[str, Treatment]:
    """By name. UserError for a pattern that decides nothing, a name that none matches, and what cannot be done."""
    found, used = {}, set()
    for name in names:
        row = next((i for i, (pattern, _) in enumerate(table) if _matches(pattern, name)), None)
        if row is None:
            raise UserError(f"config.parameters says nothing of {name}; end the table with ('.*', 'freeze') or so")
        used.add(row)
        found[name] = treatment = parse(table[row][1])
        if (treatment.lora or treatment.quantized) and kernels.inputs(name) is None:
            raise UserError(
                f"config.parameters: {table[row][0]!r} asks for {table[row][1]!r} of {name}, which is no kernel of the "
                f"decoder's layers; name those alone"
            )
    if idle := [pattern for i, (pattern, _) in enumerate(table) if i not in used]:
        raise UserError(f"config.parameters: the pattern {idle[0]!r} matches nothing that those before it leave")
    if not any(each.trained or each.lora for each in found.values()):
        raise UserError("config.parameters trains nothing; give some parameters 'train' or 'lora'")
    return found


def all_trained(table: Table) -> bool:
    return all(parse(text).trained for _, text in table)


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise UserError(f"config.parameters: {pattern!r} is no regular expression: {error}") from None


def report(table: Table, shapes: Mapping[str, Any], lora: LoraOptions) -> str:
    """What becomes of how many parameters, a line a row of the table."""
    found = treatments(table, list(shapes))
    lines, left = [], dict(shapes)
    for pattern, text in table:
        mine = {name: left.pop(name) for name in list(left) if _matches(pattern, name)}
        count = sum(math.prod(leaf.shape) for leaf in mine.values())
        more = sum(_pair_size(name, leaf.shape, lora.rank) for name, leaf in mine.items() if found[name].lora)
        adds = f", {more:,} in pairs of rank {lora.rank}" if more else ""
        lines.append(f"{text:<10} {count:>15,} in {len(mine):>3} arrays{adds}  {pattern}")
    return "\n".join(lines)


def _pair_size(name: str, shape: Sequence[int], rank: int) -> int:
    layers, *rest = shape
    inputs = kernels.inputs(name)
    return layers * rank * (math.prod(rest[:inputs]) + math.prod(rest[inputs:]))


# ---------------------------------------------------------------------- the two parts
def split(boxed, found: Mapping[str, Treatment], lora: LoraOptions, dtype, rng: jax.Array) -> tuple[dict, dict]:
    """(trained, frozen), flat, by name, of a tree of parameters that may be boxed with logical axis names.

    Each entry of `trained` is float32; a kernel that is adapted has its pair there, the first random, the second zero.
    """
    flat = flatten_dict(boxed, sep="/", is_leaf=lambda _, leaf: not isinstance(leaf, dict))
    trained, frozen = {}, {}
    for number, (name, leaf) in enumerate(flat.items()):
        treatment = found[name]
        if treatment.trained:
            trained[name] = jax.tree.map(lambda x: x.astype(jnp.float32), leaf)
            continue
        frozen[name] = freeze(name, leaf, treatment, dtype)
        if treatment.lora:
            a, b = pair(name, leaf, lora.rank, jax.random.fold_in(rng, number))
            trained[f"{name.removesuffix('kernel')}{A}"], trained[f"{name.removesuffix('kernel')}{B}"] = a, b
    return trained, frozen


def freeze(name: str, leaf, treatment: Treatment, dtype):
    """A parameter, stacked over the layers, as it is kept while it is not trained."""
    if treatment.quantized:
        quantize = QUANTIZERS[treatment.quantized]
        made = jax.lax.map(lambda kernel: quantize(kernel, kernels.inputs(name)), nn.unbox(leaf))
        return kernels.boxed(made, leaf.names) if isinstance(leaf, nn.Partitioned) else made
    wanted = jnp.float32 if re.fullmatch(kernels.PRECISE, name) else dtype
    return jax.tree.map(lambda x: x.astype(wanted), leaf)


def pair(name: str, leaf, rank: int, rng: jax.Array):
    """The low-rank pair of a kernel [L, *inputs, *outputs]: ([L, *inputs, R], [L, R, *outputs])."""
    inputs = kernels.inputs(name)
    layers, *shape = nn.unbox(leaf).shape
    n_in, n_out = shape[:inputs], shape[inputs:]
    a = jax.random.normal(rng, (layers, *n_in, rank)) / math.sqrt(math.prod(n_in))
    b = jnp.zeros((layers, rank, *n_out))
    if isinstance(leaf, nn.Partitioned):
        layer, *axes = leaf.names
        a_axes, b_axes = axes[:inputs], axes[inputs:]
        return (
            nn.Partitioned(a, (layer, *a_axes, kernels.rank_axis(a_axes))),
            nn.Partitioned(b, (layer, kernels.rank_axis(b_axes), *b_axes)),
        )
    return a, b


# ---------------------------------------------------------------------- from a checkpoint, an array at a time
def load(
    step_dir: Path,
    shapes: Mapping[str, Any],
    found: Mapping[str, Treatment],
    lora: LoraOptions,
    wanted: Mapping[str, Any],
    seed: int,
) -> dict:
    """What `split` trains, of a checkpoint, as `wanted` says; pairs are fresh. UserError if it is of another model."""
    checkpoint.stored_params(step_dir, unflatten_dict(dict(shapes), sep="/"))
    trained = {}
    for number, (name, leaf) in enumerate(shapes.items()):
        if found[name].trained:
            trained[name] = _put(_read(step_dir, name).astype(np.float32), wanted[name])
        elif found[name].lora:
            rng = jax.random.fold_in(jax.random.key(seed), number)
            for end, made in zip((A, B), pair(name, leaf, lora.rank, rng), strict=True):
                its = name.removesuffix("kernel") + end
                trained[its] = _put(made, wanted[its])
    return {name: trained[name] for name in wanted}


def load_frozen(step_dir: Path | None, found: Mapping[str, Treatment], wanted: Mapping[str, Any], dtype) -> dict:
    """What `split` freezes, of a checkpoint; a layer at a time is in memory in full."""
    frozen = {}
    for name, leaf in wanted.items():
        if found[name].quantized:
            store = checkpoint.open_array(step_dir, checkpoint.PARAMS + name)
            quantize = jax.jit(functools.partial(freeze, name, treatment=found[name], dtype=dtype))
            layers = [quantize(store[i : i + 1].read().result()) for i in range(store.shape[0])]
            made = jax.tree.map(lambda *parts: jnp.concatenate(parts), *layers)
        else:
            made = _read(step_dir, name).astype(leaf.dtype)
        frozen[name] = jax.tree.map(_put, made, leaf)
    return frozen


def _read(step_dir: Path, name: str) -> np.ndarray:
    return checkpoint.open_array(step_dir, checkpoint.PARAMS + name).read().result()


def _put(array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    return hosts.put(array, wanted.sharding)


# ---------------------------------------------------------------------- together again
def joined(trained: Mapping[str, Any], frozen: Mapping[str, Any], scale: float) -> dict:
    """The parameters of the model, nested. scale: of the pairs."""
    whole = dict(frozen)
    for name, leaf in trained.items():
        if name.endswith(f"/{B}"):
            continue
        if name.endswith(f"/{A}"):
            stem = name.removesuffix(A)
            whole[f"{stem}kernel"] = Adapted(frozen[f"{stem}kernel"], leaf, trained[f"{stem}{B}"], scale)
        else:
            whole[name] = leaf
    return unflatten_dict(whole, sep="/")


def joiner(lora: LoraOptions) -> Callable[[Mapping, Mapping], dict]:
    scale = lora.alpha / lora.rank if lora.rank else 0.0
    return lambda trained, frozen: joined(trained, frozen, scale)
