"""Chips and how they are joined, as their makers publish them: what a plan is reckoned with.

Peaks, not what programs reach: a step never takes less time than they say.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np
from jax.experimental import mesh_utils

from trol_jax.errors import UserError

GIB = 2**30
H100_BYTES = 84_942_979_072  # of "NVIDIA H100 80GB HBM3"
GPU_MEMORY = 0.95 * H100_BYTES


@dataclasses.dataclass(frozen=True)
class Chip:
    """flops: bfloat16 a second, dense. memory: bytes that a program may have; bandwidth, link and network: bytes a
    second.

    link: of a TPU both directions of one axis of the torus; of a GPU what it sends over NVLink. network: what each GPU
    sends to other hosts. wraps: axes of the torus from this length on are closed to rings.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float = 0.0
    wraps: int = 0
    workspace: int = 0  # bytes that XLA gives cuBLAS
    kind: str = ""  # JAX's name of a TPU


CHIPS = {
    # https://docs.cloud.google.com/tpu/docs/v5e, v5p, v6e: peak compute and bandwidth of HBM; links and torus:
    # https://jax-ml.github.io/scaling-book/hardware (links 45, 90 and 90 GB/s each way; v5e and v6e close rings of 16);
    # memory: "available HBM" of libtpu 0.0.42.1
    "v5e": Chip(197e12, 15.75 * GIB, 819e9, 2 * 45e9, wraps=16, kind="TPU v5 lite"),
    "v5p": Chip(459e12, 95.74 * GIB, 2765e9, 2 * 90e9, wraps=4, kind="TPU v5"),
    "v6e": Chip(918e12, 31.25 * GIB, 1638e9, 2 * 90e9, wraps=16, kind="TPU v6 lite"),
    # Memory of GPUs: what an H100 tells of itself; the runtime keeps some. An A100 of 80 GB is taken to have as much.
    # NVIDIA A100 datasheet (SXM 80 GB): 312 TFLOP/s, 2,039 GB/s, NVLink 600 GB/s both ways; DGX A100: 8 HDR 200 Gb/s
    "a100": Chip(312e12, GPU_MEMORY, 2039e9, 300e9, network=25e9, workspace=4 * 2**20),
    # NVIDIA H100 datasheet (SXM): 1,979 TFLOP/s with sparsity, 3.35 TB/s, NVLink 900 GB/s; DGX H100: 8 NDR 400 Gb/s
    "h100": Chip(989e12, GPU_MEMORY, 3350e9, 450e9, network=50e9, workspace=32 * 2**20),
}
# Slices that can be had, by chips: sides of the torus. https://docs.cloud.google.com/tpu/docs/v5e, v5p, v6e
SQUARES = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
CUBES = {
    4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8),
    512: (8, 8, 8), 1024: (8, 8, 16),
}  # fmt: skip
HOST = 8  # GPUs that NVLink joins
EXAMPLES = "v5e-16, v6e-256, v5p-128 (64 chips), h100x8, a100x8"


@dataclasses.dataclass(frozen=True)
class Target:
    name: str
    chip: Chip
    devices: int
    torus: tuple[int, ...] = ()  # of a TPU

    def loads(self, wire: float, axes: tuple[str, ...], mesh: Mapping[str, int]) -> dict[str, float]:
        """Seconds that links are busy while a device sends so many bytes along these axes together, whose links send at
        once. A link is named by the axes that are laid over it and share it.
        """
        axes = tuple(axis for axis in (axes if axes != ("?",) else mesh) if mesh[axis] > 1)
        return self._of_torus(wire, axes, mesh) if self.torus else self._of_hosts(wire, axes, mesh)

    def seconds(self, wire: float, axes: tuple[str, ...], mesh: Mapping[str, int]) -> float:
        """To send so many bytes along these axes together."""
        return max(self.loads(wire, axes, mesh).values())

    def _of_torus(self, wire: float, axes: tuple[str, ...], mesh: Mapping[str, int]) -> dict[str, float]:
        sides = self._sides(mesh)
        seconds = wire / sum(rate for axis in axes for rate in sides[axis].values())
        over = {side for axis in axes for side in sides[axis]}
        return {_named(axis for axis in mesh if side in sides[axis]): seconds for side in over}

    def _sides(self, mesh: Mapping[str, int]) -> dict[str, dict[int, float]]:
        """Of each axis of a mesh: the sides of the torus that it goes along, and what a device sends along each."""
        grid, found = _laid(self.chip.kind, self.torus, tuple(mesh.values())), {}
        for number, name in enumerate(mesh):
            line = np.moveaxis(grid, number, 0).reshape(mesh[name], -1)[:, 0]
            lengths = [len({chip.coords[side] for chip in line}) for side in range(len(self.torus))]
            # A ring needs the whole side, and one that is closed; else data goes one way at a time.
            found[name] = {
                side: self.chip.link / (1 if length == whole and length % self.chip.wraps == 0 else 2)
                for side, (length, whole) in enumerate(zip(lengths, self.torus, strict=True))
                if length > 1
            }
        return found

    def _of_hosts(self, wire: float, axes: tuple[str, ...], mesh: Mapping[str, int]) -> dict[str, float]:
        within, inner = {}, 1  # of each axis, how many of its devices a host has
        for name, size in reversed(mesh.items()):
            within[name] = math.gcd(size, max(1, HOST // inner))
            inner *= size
        crossing = [axis for axis in mesh if within[axis] < mesh[axis]]
        inside = [axis for axis in mesh if within[axis] > 1]
        loads = {_named(inside): wire / self.chip.link} if set(axes) & set(inside) else {}
        if set(axes) & set(crossing):
            # A ring for each NIC: those of all devices that a group has in a host are at work for it.
            seconds = wire / (self.chip.network * math.prod(within[axis] for axis in axes))
            loads[_named(crossing)] = max(seconds, loads.get(_named(crossing), 0.0))
        return loads


@dataclasses.dataclass(frozen=True)
class _Device:
    """What JAX asks of a TPU to lay a mesh over it."""

    id: int
    coords: tuple[int, ...]
    device_kind: str
    platform: str = "tpu"
    process_index: int = 0
    slice_index: int = 0
    core_on_chip: int = 0


@functools.lru_cache(256)
def _laid(kind: str, torus: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """The devices of a slice as `mesh.make_mesh` puts them into a grid."""
    places = itertools.product(*map(range, (*torus, 1, 1)[:3]))
    devices = [_Device(number, place, kind) for number, place in enumerate(places)]
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _named(axes: Iterable[str]) -> str:
    return " and ".join(axes)


def get_target(name: str) -> Target:
    """Of a name like `v5e-256` (chips), `v5p-128` (cores, two a chip) or `h100x8`; UserError with what is known."""
    if not (found := re.fullmatch(r"(v5e|v5p|v6e)-(\d+)|(a100|h100)x(\d+)", name)):
        raise UserError(f"target {name!r} is not known; give one like {EXAMPLES}")
    if found[3]:
        count = int(found[4])
        if count < 1 or (count > HOST and count % HOST):
            raise UserError(f"target {name!r}: {count} GPUs are not up to {HOST}, or hosts of {HOST}")
        return Target(name, CHIPS[found[3]], count)
    count, sides = int(found[2]), SQUARES
    if found[1] == "v5p":
        count, sides = count / 2, CUBES
    if count not in sides:
        sizes = ", ".join(str(size * (2 if found[1] == "v5p" else 1)) for size in sides)
        raise UserError(f"target {name!r}: there is no such slice; {found[1]} comes in {sizes}")
    return Target(name, CHIPS[found[1]], int(count), sides[count])
