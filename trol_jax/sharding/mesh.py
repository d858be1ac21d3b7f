"""Devices as a grid of four axes, from the slowest network to the fastest."""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from trol_jax.errors import UserError

# data: copies of the parameters; fsdp: parameters and batch cut together; sequence: tokens of a row; tensor: heads and
# hidden units of a layer, which talk most.
AXES = ("data", "fsdp", "sequence", "tensor")


def make_mesh(text: str, devices=None) -> Mesh:
    """A mesh with all of AXES from a text like `data=2,fsdp=4`; axes that it leaves out have size 1, -1 = the rest.

    devices: by default all of this job. Over several TPU slices, or several hosts of other machines, the outer axes go
    from one to the other and the inner ones stay within. UserError where the sizes are not those of the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _complete(parse(text), len(devices), text)
    shape, groups, by_host = tuple(sizes.values()), *_groups(devices)
    outer = _spread(shape, groups)
    inner = [size // out for size, out in zip(shape, outer, strict=True)]
    try:
        if groups > 1:
            grid = mesh_utils.create_hybrid_device_mesh(
                inner, outer, devices, process_is_granule=by_host, allow_split_physical_axes=True
            )
        else:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (ValueError, NotImplementedError) as error:  # a shape that the network of the chips does not have
        raise UserError(f"mesh {text!r} cannot be laid over {len(devices)} devices: {error}") from error
    # Linen's logical partitioning needs Auto axes; jax.make_mesh defaults to Explicit ones.
    return Mesh(np.asarray(grid), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def parse(text: str) -> dict[str, int]:
    """`data=2,fsdp=-1` -> sizes by axis, in the order of AXES."""
    sizes = {}
    for part in text.split(","):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in AXES:
            raise UserError(f"mesh {text!r}: {name!r} is not an axis; known: {', '.join(AXES)} (data=2,fsdp=4)")
        if name in sizes:
            raise UserError(f"mesh {text!r}: {name} stands twice")
        if not size.removeprefix("-").isdecimal() or (int(size) < 1 and int(size) != -1):
            raise UserError(f"mesh {text!r}: {name} is {size!r}, must be a number of devices, or -1 for the rest")
        sizes[name] = int(size)
    if list(sizes.values()).count(-1) > 1:
        raise UserError(f"mesh {text!r}: only one axis can be -1, the rest of the devices")
    return {name: sizes.get(name, 1) for name in AXES}


def _complete(sizes: dict[str, int], devices: int, text: str) -> dict[str, int]:
    known = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values():
        if devices % known:
            raise UserError(f"mesh {text!r}: {devices} devices do not divide by {known}; change the sizes")
        return {name: devices // known if size == -1 else size for name, size in sizes.items()}
    if known != devices:
        raise UserError(f"mesh {text!r} is of {known} devices, there are {devices}; change a size, or make one -1")
    return sizes


def _groups(devices) -> tuple[int, bool]:
    """(number of groups of devices that a slow network joins, whether each is a process)."""
    slices = {getattr(device, "slice_index", 0) for device in devices}
    hosts = {device.process_index for device in devices}
    # A TPU slice has one fast network however many hosts drive it.
    by_host = len(slices) == 1 and devices[0].platform != "tpu"
    return (len(hosts), True) if by_host else (len(slices), False)


def _spread(shape: tuple[int, ...], groups: int) -> list[int]:
    """How often each axis crosses from group to group: the outermost as often as it can."""
    outer = []
    for size in shape:
        outer.append(math.gcd(size, groups))
        groups //= outer[-1]
    return outer
