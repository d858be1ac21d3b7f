"""Logical axis -> mesh axis, as tables. A table is total: an axis name without an entry raises."""

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from trol_jax.errors import UserError

AXES = ("layers", "vocab", "embed", "heads", "kv_heads", "head_dim", "mlp")

RULES = {
    "replicated": dict.fromkeys(AXES),  # every device holds all parameters; the batch is split
}


def data_mesh() -> jax.sharding.Mesh:
    """All devices along one axis, `data`."""
    devices = np.array(jax.devices())
    # Linen's logical partitioning needs Auto axes; jax.make_mesh defaults to Explicit ones.
    return jax.sharding.Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def partition_spec(names: tuple[str | None, ...], rules: dict[str, str | None]) -> PartitionSpec:
    unknown = [name for name in names if name is not None and name not in rules]
    if unknown:
        raise KeyError(f"no sharding rule for the logical axes {unknown} of {names}")
    spec = [None if name is None else rules[name] for name in names]
    used = [axis for axis in spec if axis is not None]
    if len(used) != len(set(used)):
        raise ValueError(f"axes {names} put two dimensions on one mesh axis: {spec}")
    return PartitionSpec(*spec)


def shardings(boxed, mesh: jax.sharding.Mesh, rules: dict[str, str | None]):
    """Shardings of a tree whose arrays carry logical axis names (Linen boxes); arrays without a box are replicated.

    Returns the tree that `flax.linen.unbox` would give, with a NamedSharding in the place of each array.
    """

    def sharding(leaf):
        names = leaf.names if isinstance(leaf, nn.Partitioned) else ()
        return NamedSharding(mesh, partition_spec(names, rules))

    return jax.tree.map(sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))


def batch_sharding(mesh: jax.sharding.Mesh, batch_size: int) -> NamedSharding:
    """The first axis over `data`; UserError when it does not divide."""
    devices = mesh.shape["data"]
    if batch_size % devices:
        raise UserError(
            f"a batch of {batch_size} (batch_size / accumulation) is not divisible by the {devices} devices of the "
            f"data axis; make it {batch_size // devices * devices or devices} or another multiple of {devices}"
        )
    return NamedSharding(mesh, PartitionSpec("data"))
