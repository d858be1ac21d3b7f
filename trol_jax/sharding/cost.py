"""What a program computes and its arrays take, before it is compiled: FLOPs as traced, the closed formula, bytes."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

from trol_jax.models.variants import ModelConfig, VisionConfig


# ---------------------------------------------------------------------- FLOPs of a traced program
def traced(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> int:
    """FLOPs of matrix products and convolutions; a scan's body counts its length times, a `cond` its longest branch.

    A `while` whose count is not known counts once.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // out_features
        inner = [traced(each) for each in _inside(eqn.params)]
        if eqn.primitive.name == "cond":
            total += max(inner, default=0)
        else:
            total += sum(inner) * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
    return total


def _inside(params: dict[str, Any]) -> Iterator[core.Jaxpr | core.ClosedJaxpr]:
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.Jaxpr | core.ClosedJaxpr):
                yield each


# ---------------------------------------------------------------------- the closed formula
@dataclasses.dataclass(frozen=True)
class Forward:
    """FLOPs of one row, forward, by part. decoder: of one pass over all layers."""

    vision: int  # tower and projector, of all pictures
    decoder: int
    gate: int  # of all passes
    head: int

    def total(self, passes: int) -> int:
        return self.vision + passes * self.decoder + self.gate + self.head


def forward(config: ModelConfig, tokens: int, pictures: int, slots: int, passes: int, head_tokens: int) -> Forward:
    """tokens: of a row, those of its pictures included; slots: what each of them may look at (all of the row, or of the
    cache: what lies behind a token is masked, and computed all the same); head_tokens: that go through the head.

    A map of N numbers costs 2 N a token, attention 4 slots * width. Training costs three times this, for the backward
    pass makes two products of each, towards the input and towards the weights; and see `loss_again`.
    """
    c, v = config.decoder, config.vision
    heads = c.heads * c.head_dim
    maps = ((c.width, (c.heads + 2 * c.kv_heads) * c.head_dim), (heads, c.width), (c.width, c.hidden))
    maps += ((c.width, c.hidden), (c.hidden, c.width))
    numbers = sum(a * b + c.lora_rank * (a + b) for a, b in maps)
    layer = 2 * tokens * numbers + 4 * tokens * slots * heads
    tall = v.width * config.shuffle**2
    image_tokens = pictures * config.image_tokens
    vision = pictures * _tower(v) + 2 * image_tokens * (tall * c.width + c.width**2)
    gate = 2 * tokens * c.width * (passes - 1) * c.layers
    return Forward(vision, c.layers * layer, gate, 2 * head_tokens * c.width * c.vocab)


def loss_again(config: ModelConfig, tokens: int, chunk: int = 512) -> int:
    """FLOPs of a row of training beside three times `forward`: the loss computes its pieces again in the backward pass
    (`ops.losses.next_token_loss`), unless there is but one.
    """
    pieces = -(-(tokens - 1) // chunk)
    if pieces <= 1:
        return 0
    return 2 * pieces * -(-(tokens - 1) // pieces) * config.decoder.width * config.decoder.vocab


def _tower(v: VisionConfig) -> int:
    tokens = 1 + v.patches
    layer = 2 * tokens * (4 * v.width**2 + 2 * v.width * v.hidden) + 4 * tokens**2 * v.width
    return v.layers * layer + 2 * v.patches * 3 * v.patch_size**2 * v.width


# ---------------------------------------------------------------------- bytes
def device_bytes(tree: Any) -> int:
    """Of arrays, or of their shapes with shardings, on the device that holds most of them; exactly."""

    def size(leaf) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        return math.ceil(math.prod(shape) * jax.dtypes.itemsize_bits(leaf.dtype) / 8)

    return sum(map(size, jax.tree.leaves(tree)))


def peak_bytes(memory: Any) -> int:
    """On one device while a program runs, of what the compiler says (`memory_analysis()`)."""
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + made


def whole_bytes(tree: Any) -> int:
    """Of the same arrays, each held once."""
    bits = (math.prod(leaf.shape) * jax.dtypes.itemsize_bits(leaf.dtype) for leaf in jax.tree.leaves(tree))
    return sum(math.ceil(each / 8) for each in bits)


def replicated(tree: Any, least: int = 100 * 2**20) -> list[tuple[str, int]]:
    """(name, bytes) of the arrays of at least so many bytes that more than one device holds whole."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if leaf.sharding is None or leaf.sharding.num_devices == 1 or not leaf.sharding.is_fully_replicated:
            continue
        if (size := whole_bytes(leaf)) >= least:
            found.append((jax.tree_util.keystr(path, simple=True, separator="/"), size))
    return found
