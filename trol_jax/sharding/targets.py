"""Chips and how they are joined, as their makers publish them: what a plan is reckoned with.

Peaks, not what programs reach: a step never takes less time than they say.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

from trol_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """flops: bfloat16 a second, dense. memory: bytes; bandwidth, link and network: bytes a second.

    link: of a TPU both directions of one axis of the torus; of a GPU what it sends over NVLink. network: what each GPU
    sends to other hosts. wraps: axes of the torus from this length on are closed to rings.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float = 0.0
    wraps: int = 0


CHIPS = {
    # https://docs.cloud.google.com/tpu/docs/v5e, v5p, v6e: peak compute, HBM capacity and bandwidth; links and torus:
    # https://jax-ml.github.io/scaling-book/hardware (links 45, 90 and 90 GB/s each way; v5e and v6e close rings of 16)
    "v5e": Chip(197e12, 16e9, 819e9, 2 * 45e9, wraps=16),
    "v5p": Chip(459e12, 95e9, 2765e9, 2 * 90e9, wraps=4),
    "v6e": Chip(918e12, 32e9, 1638e9, 2 * 90e9, wraps=16),
    # NVIDIA A100 datasheet (SXM 80 GB): 312 TFLOP/s, 2,039 GB/s, NVLink 600 GB/s both ways; DGX A100: 8 HDR 200 Gb/s
    "a100": Chip(312e12, 80e9, 2039e9, 300e9, network=25e9),
    # NVIDIA H100 datasheet (SXM): 1,979 TFLOP/s with sparsity, 3.35 TB/s, NVLink 900 GB/s; DGX H100: 8 NDR 400 Gb/s
    "h100": Chip(989e12, 80e9, 3350e9, 450e9, network=50e9),
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

    def bandwidths(self, mesh: Mapping[str, int]) -> dict[str, float]:
        """Bytes a second that a device sends along each axis of a mesh; the inner axes are laid out first."""
        return self._on_torus(mesh) if self.torus else self._on_hosts(mesh)

    def _on_torus(self, mesh: Mapping[str, int]) -> dict[str, float]:
        left, found = [[side, side] for side in self.torus], {}  # what is free of each side, and the side
        for name, size in reversed(mesh.items()):
            rate = 0.0
            for side in sorted(left, reverse=True):
                part = math.gcd(size, side[0])
                if part > 1:
                    # A ring needs the whole side, and one that is closed; else data goes one way at a time.
                    closed = part == side[1] and part % self.chip.wraps == 0
                    rate += self.chip.link if closed else self.chip.link / 2
                    size, side[0] = size // part, side[0] // part
            found[name] = rate or self.chip.link / 2
        return found

    def _on_hosts(self, mesh: Mapping[str, int]) -> dict[str, float]:
        inner, found = 1, {}
        for name, size in reversed(mesh.items()):
            inner *= size
            found[name] = self.chip.link if inner <= HOST else self.chip.network
        return found

    def seconds(self, wire: float, axes: tuple[str, ...], mesh: Mapping[str, int]) -> float:
        """To send so many bytes along these axes together: over all their links, or over the slowest network."""
        rates = self.bandwidths(mesh)
        mine = [rates[axis] for axis in (axes if axes != ("?",) else mesh) if mesh[axis] > 1] or [self.chip.link]
        return wire / (sum(mine) if self.torus and axes != ("?",) else min(mine))


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
