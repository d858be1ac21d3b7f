"""Geometry of pictures and patches."""

import jax
import jax.numpy as jnp


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8[..., C] in 0..255 -> float32[..., C] with the given mean and deviation (both in 0..1)."""
    mean, std = jnp.float32(mean) * 255, jnp.float32(std) * 255
    return (images.astype(jnp.float32) - mean) / std


def patchify(images: jax.Array, patch: int) -> jax.Array:
    """[B, height, width, C] -> [B, P, patch * patch * C], patches in reading order, pixels in reading order inside.

    A matrix product over the last axis is then a convolution with stride `patch`.
    """
    b, height, width, c = images.shape
    if height % patch or width % patch:
        raise ValueError(f"picture of {height} x {width} pixels does not divide into patches of {patch} pixels")
    grid = images.reshape(b, height // patch, patch, width // patch, patch, c)
    return grid.swapaxes(2, 3).reshape(b, -1, patch * patch * c)


def pixel_shuffle(x: jax.Array, factor: int = 2) -> jax.Array:
    """Merge factor x factor neighbours into channels: [B, P, D] -> [B, P / factor^2, D * factor^2].

    Version "v2" of InternVL (trol/arch_phi3/modeling_trol.py, pixel_shuffle): tokens stay in reading order.
    """
    b, p, d = x.shape
    side = round(p**0.5)
    if side * side != p or side % factor:
        raise ValueError(f"{p} patches are not a square grid whose side is divisible by {factor}")
    x = x.reshape(b, side // factor, factor, side // factor, factor, d)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, p // factor**2, d * factor**2)


def grow_position_table(table: jax.Array, side: int) -> jax.Array:
    """Bicubic growth of a table of learned positions: [1 + p * p, D] -> [1 + side * side, D]; row 0 (class) stays.

    As torch.nn.functional.interpolate does it (bicubic, align_corners=False): a = -0.75, no antialiasing, borders
    repeated. Source: trol/arch_internlm2/build_module.py, which grows CLIP's 24 x 24 to 35 x 35.
    """
    class_row, grid = table[:1], table[1:]
    old = round(grid.shape[0] ** 0.5)
    grid = grid.reshape(old, old, -1)
    grown = jax.image.resize(grid, (side, side, grid.shape[-1]), method="cubic-pytorch", antialias=False)
    return jnp.concatenate([class_row, grown.reshape(side * side, -1)])
