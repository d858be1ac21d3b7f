"""Which axis of an array lies along which axes of the mesh, as tables. A table is total: a name without a rule raises.

An axis that does not divide among its devices stays whole on each of them, for that array alone (key/value heads fewer
than the tensor axis, an odd vocabulary). Of several mesh axes the last ones are given up first. It is logged once.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from types import MappingProxyType

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec

from trol_jax.errors import UserError
from trol_jax.models import kernels
from trol_jax.ops.quantization import Quantized
from trol_jax.sharding import mesh as meshes

# vocab: of the head. columns: of the embedding table, which is cut across its rows: InternLM2 has 92,545 of them. rank:
# of those halves of low-rank pairs that lack the width.
PARAMETERS = ("layers", "vocab", "columns", "embed", "rank", "norm", "heads", "kv_heads", "head_dim", "mlp")
# Of what is computed. batch: rows; pictures: all of a batch, one after the other; tokens: of a prompt or a training
# row; slots: of a cache. Beams are tokens of their row and share its cache.
ACTIVATIONS = (
    "batch", "pictures", "tokens", "slots", "act_embed", "act_heads", "act_kv_heads", "act_mlp", "act_vocab"
)  # fmt: skip
AXES = PARAMETERS + ACTIVATIONS

_BATCH = dict.fromkeys(("batch", "pictures"), ("data", "fsdp"))
_FSDP = dict.fromkeys(("embed", "rank", "columns"), ("fsdp",))
_TENSOR = dict.fromkeys(
    ("vocab", "columns", "heads", "kv_heads", "mlp", "act_vocab", "act_heads", "act_kv_heads", "act_mlp"), ("tensor",)
)
_BOTH = {"columns": ("fsdp", "tensor")}
_SEQUENCE = {
    "embed": ("fsdp", "sequence"), "rank": ("fsdp", "sequence"), "columns": ("fsdp", "sequence", "tensor"),
    "pictures": ("data", "fsdp", "sequence"), "tokens": ("sequence",), "slots": ("sequence",),
}  # fmt: skip


def _table(*parts: Mapping) -> Mapping[str, tuple[str, ...]]:
    return MappingProxyType(functools.reduce(lambda table, part: table | part, parts, dict.fromkeys(AXES, ())))


RULES = MappingProxyType(
    {
        "replicated": _table(),  # every device holds and computes everything
        "data": _table(_BATCH),  # the batch is cut, the parameters are not
        "fsdp": _table(_BATCH, _FSDP),  # parameters are cut too, and gathered layer by layer
        "tensor": _table(_BATCH, _TENSOR),  # Megatron: every layer's heads, hidden units and the vocabulary are cut
        "fsdp_tensor": _table(_BATCH, _FSDP, _TENSOR, _BOTH),
        "sequence": _table(_BATCH, _FSDP, _TENSOR, _SEQUENCE),  # tokens are cut too: long prompts, many pictures
    }
)


def table(rules: str | Mapping) -> Mapping[str, tuple[str, ...]]:
    """A rule set by its name, or one's own: each of AXES -> a mesh axis, a list of them, or None."""
    if isinstance(rules, str):
        if rules not in RULES:
            raise UserError(f"sharding rules {rules!r} are not known; choose one of {', '.join(RULES)}")
        return RULES[rules]
    if unknown := [name for name in rules if name not in AXES]:
        raise UserError(f"sharding rules: {unknown[0]!r} is not an axis of any array; known: {', '.join(AXES)}")
    if missing := [name for name in AXES if name not in rules]:
        raise UserError(f"sharding rules lack {', '.join(missing)}; give each a mesh axis, or None")
    own = {name: (axes,) if isinstance(axes, str) else tuple(axes or ()) for name, axes in rules.items()}
    for name, axes in own.items():
        if wrong := [axis for axis in axes if axis not in meshes.AXES]:
            raise UserError(f"sharding rules: {name} is on {wrong[0]!r}, must be of {', '.join(meshes.AXES)}")
    return MappingProxyType(own)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays lie: a mesh and a rule table. Hashable, so that it can be an attribute of a model that is compiled.

    Called inside a model as `layout(x, "batch", "tokens", "act_embed")`, it keeps x there; with one device it does
    nothing.
    """

    mesh: jax.sharding.Mesh
    rules: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def make(cls, mesh: str | jax.sharding.Mesh, rules: str | Mapping) -> "Layout":
        """UserError for a mesh that is not that of the devices, and for rules that leave some of its devices idle."""
        mesh = meshes.make_mesh(mesh) if isinstance(mesh, str) else mesh
        entries = tuple(table(rules).items())
        used = {axis for _, axes in entries for axis in axes}
        idle = [f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1 and axis not in used]
        if used and idle:
            raise UserError(
                f"sharding rules {rules if isinstance(rules, str) else 'of the config'!r} put nothing on the mesh axis "
                f"{', '.join(idle)}: its devices would all do the same; choose other rules or another mesh"
            )
        return cls(mesh, entries)

    @property
    def everywhere(self) -> NamedSharding:
        """Of arrays that each device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def spec(self, names: tuple[str | None, ...], shape: tuple[int, ...], parameter: bool = True) -> PartitionSpec:
        """Of an array whose axes have these names; UserError for a name without a rule or one mesh axis used twice."""
        if len(names) != len(shape):
            raise ValueError(f"an array of shape {shape} whose axes are {names}")
        return _spec(self, names, shape, parameter)

    def __call__(self, x: jax.Array, *names: str | None) -> jax.Array:
        if self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding(names, x.shape, parameter=False))

    @property
    def copies(self):
        """What makes, of a parameter whose axes have these names, a copy for each part of a batch that is cut:
        copies(x, *names) -> [parts, *x.shape]. None for a batch that is not cut. See `ops.linear.Copies`.
        """
        return self._copies if self._parts > 1 else None

    @property
    def _parts(self) -> int:
        return _count(self.mesh, dict(self.rules)["batch"])

    def _copies(self, x: jax.Array, *names: str | None) -> jax.Array:
        rules = dict(self.rules)
        gathered = {*rules["batch"], *rules["tokens"]}
        own = ((axes,) if isinstance(axes, str) else axes or () for axes in self.spec(names, x.shape))
        kept = (tuple(axis for axis in axes if axis not in gathered) or None for axes in own)
        copies = jax.numpy.broadcast_to(x, (self._parts, *x.shape))
        return jax.lax.with_sharding_constraint(copies, NamedSharding(self.mesh, PartitionSpec(rules["batch"], *kept)))

    def sharding(self, names: tuple[str | None, ...], shape: tuple[int, ...], parameter: bool = True) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(names, shape, parameter))

    def shardings(self, boxed):
        """Of a tree whose arrays carry logical axis names (Linen boxes); arrays without a box are on every device.

        Returns the tree that `flax.linen.unbox` would give, with a NamedSharding in the place of each array.
        """

        def sharding(leaf):
            if isinstance(leaf, nn.Partitioned):
                return self.sharding(leaf.names, leaf.value.shape)
            return self.everywhere

        return jax.tree.map(sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))

    def place(self, tree, boxed):
        """The arrays of a tree, kept where those of `boxed` lie; for use while compiling."""
        return tree if self.mesh.size == 1 else jax.lax.with_sharding_constraint(tree, self.shardings(boxed))

    def like(self, made, names: tuple[str | None, ...]):
        """Shardings of what `ops.quantization` makes of a kernel whose axes have these names; of an array its own."""
        if isinstance(made, Quantized):
            return self.shardings(kernels.boxed(made, names))
        return self.sharding(names, made.shape)

    def batch(self, rows: int) -> NamedSharding:
        """Of arrays whose first axis are the rows of a batch; UserError when these do not divide."""
        axes = dict(self.rules)["batch"]
        count = math.prod(self.mesh.shape[axis] for axis in axes)
        if rows % count:
            raise UserError(
                f"a batch of {rows} (batch_size / accumulation) is not divisible by the {count} devices of the "
                f"{' and '.join(axes)} axes; make it {rows // count * count or count} or another multiple of {count}"
            )
        return NamedSharding(self.mesh, PartitionSpec(axes or None))


@functools.lru_cache(4096)
def _spec(layout: Layout, names, shape, parameter: bool) -> PartitionSpec:
    rules, mesh = dict(layout.rules), layout.mesh
    if unknown := [name for name in names if name is not None and name not in rules]:
        raise UserError(f"no sharding rule for the axis {unknown[0]!r} of {names}")
    wanted = [() if name is None else rules[name] for name in names]
    used = [axis for axes in wanted for axis in axes]
    if twice := [axis for axis in used if used.count(axis) > 1]:
        raise UserError(f"sharding rules put two dimensions of {names} on mesh axis {twice[0]!r}; change one")
    spec = []
    for name, size, axes in zip(names, shape, wanted, strict=True):
        axes = kept = tuple(axis for axis in axes if mesh.shape[axis] > 1)
        while size % _count(mesh, kept):
            kept = kept[:-1]
        # A single row or token is nothing to be told of.
        if kept != axes and (parameter or size > _count(mesh, axes)):
            _say(name, size, axes, tuple(mesh.shape[axis] for axis in axes), kept)
        spec.append(kept[0] if len(kept) == 1 else kept or None)
    return PartitionSpec(*spec)


def _count(mesh, axes) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


@functools.cache
def _say(name: str, size: int, axes: tuple[str, ...], counts: tuple[int, ...], kept: tuple[str, ...]) -> None:
    asked = ", ".join(f"{axis}={count}" for axis, count in zip(axes, counts, strict=True))
    where = f"only over {', '.join(kept)}" if kept else "over none: each device holds it whole"
    logging.getLogger(__name__).warning(
        "sharding: %s of %d does not divide over %s, and is cut %s", name, size, asked, where
    )
