"""8 and 4 bits against float32, and against what QLoRA says of them."""

import dataclasses
import functools
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trol_jax.ops import quantization
from trol_jax.ops.linear import product
from trol_jax.ops.quantization import BLOCK, CODEBOOK, GROUP, to_int8

# Compiled as a whole: that is how they are used, and faster than one operation after the other.
int8_kernel = jax.jit(quantization.int8_kernel, static_argnums=1)
nf4_kernel = jax.jit(quantization.nf4_kernel, static_argnums=1)
dequantize = functools.partial(jax.jit(quantization.dequantize, static_argnames="dtype"), dtype=jnp.float32)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


DATA = Path(__file__).parent / "data"
SHAPES = {  # kernel, axes that are inputs, blocks
    "qkv": ((128, 2, 3, 4), 1, 2),
    "out": ((4, 32, 24), 2, 2),
    "smaller": ((48, 5), 1, 1),
    "ragged": ((10, 10, 3), 2, 2),
}


def test_the_codebook_follows_from_its_definition():
    """Half of the means of neighbouring quantiles, cut so that no tail is infinite; zero is in both halves once."""
    normal = statistics.NormalDist()
    tail = 1 - (1 / (2 * 15) + 1 / (2 * 16)) / 2
    positive = [normal.inv_cdf(p) for p in np.linspace(tail, 0.5, 9)[:-1]]
    negative = [-normal.inv_cdf(p) for p in np.linspace(tail, 0.5, 8)[:-1]]
    expected = np.sort([*positive, 0.0, *negative]) / max(positive)
    np.testing.assert_allclose(CODEBOOK, expected, atol=1e-4)
    assert CODEBOOK[0] == -1 and CODEBOOK[7] == 0 and CODEBOOK[-1] == 1


@pytest.mark.parametrize(("shape", "inputs", "blocks"), SHAPES.values(), ids=SHAPES)
def test_shapes_and_error_bounds(shape, inputs, blocks):
    kernel = draw(*shape)
    outputs = shape[inputs:]
    flat = np.abs(kernel.reshape(-1, *outputs))

    q = int8_kernel(kernel, inputs)
    assert q.values.shape == shape and q.values.dtype == jnp.int8
    assert q.scale.shape == outputs and q.scale.dtype == jnp.float32
    error = np.abs(dequantize(q) - kernel).reshape(flat.shape)
    assert (error <= flat.max(axis=0) / 127 * 0.5001).all()

    q = nf4_kernel(kernel, inputs)
    assert q.values.shape == shape and q.values.dtype == jnp.uint4
    assert q.codes.shape == (blocks, *outputs) and q.codes.dtype == jnp.uint8
    assert q.scale.shape == (-(-q.codes.size // GROUP),) and q.mean.shape == ()
    assert jax.tree.leaves(q)[0].shape == shape  # Flax compares it with the shape that a module asks for
    largest = np.stack([flat[i : i + BLOCK].max(axis=0) for i in range(0, len(flat), BLOCK)])
    each = np.repeat(largest, BLOCK, axis=0)[: len(flat)]
    error = np.abs(dequantize(q) - kernel).reshape(flat.shape)
    # Half of the widest gap of the codebook, and of the table of the blocks' scales.
    gap = np.abs(largest - largest.mean()).max() * np.diff(quantization.DYNAMIC).max() / 2
    assert (error <= each * np.diff(CODEBOOK).max() / 2 + gap * 1.001).all()


def test_nf4_and_int8_are_those_of_bitsandbytes():
    """tests/data/bitsandbytes.npz: what bitsandbytes 0.50.2 makes of this weight, a torch one [out, in], on a CPU."""
    weight = draw(140, 128) * np.geomspace(1e-3, 10, 140)[:, None]
    weight = weight.astype(np.float32)
    theirs = np.load(DATA / "bitsandbytes.npz")
    np.testing.assert_allclose(quantization.DYNAMIC, theirs["table"], rtol=2e-7)
    q = nf4_kernel(weight.T, 1)
    np.testing.assert_allclose(q.mean, theirs["mean"], rtol=1e-6)
    np.testing.assert_allclose(q.scale, theirs["scale"], rtol=1e-6)
    differences = np.asarray(q.codes).T.reshape(-1).astype(int) - theirs["codes"]
    assert np.abs(differences).sum() <= 1  # the last bit of the mean may decide between two neighbours
    codes = np.stack([theirs["packed"] >> 4, theirs["packed"] & 15], axis=1).reshape(weight.shape)
    np.testing.assert_array_equal(np.asarray(q.values).astype(np.uint8).T, codes)
    np.testing.assert_allclose(np.asarray(dequantize(q)).T[::7], theirs["dequantized"], rtol=1e-5, atol=1e-6)

    q = int8_kernel(weight.T.astype(np.float16), 1)
    np.testing.assert_allclose(np.asarray(q.scale) * 127, theirs["int8_max"], rtol=1e-6)
    differences = np.asarray(q.values).T.astype(int) - theirs["int8"]
    assert np.abs(differences).sum() < 1e-3 * weight.size and np.abs(differences).max() <= 1  # ties


def test_double_quantisation_costs_little():
    """The scales of blocks, in 8 bits, against themselves in 32 bits; 4.127 bits a weight in all."""
    kernel = draw(16 * BLOCK, 256)
    q = nf4_kernel(kernel, 1)
    largest = np.abs(kernel).reshape(16, BLOCK, 256).max(axis=1)
    kept = quantization._block_scale(q.codes, q.scale, q.mean)
    assert (np.abs(kept - largest) / largest).max() < 0.03
    once = CODEBOOK[np.asarray(q.values).astype(int)].reshape(16, BLOCK, 256) * largest[:, None]
    rms = lambda x: float(np.sqrt(np.mean(np.square(x))))  # noqa: E731
    twice, once = rms(dequantize(q) - kernel), rms(once.reshape(kernel.shape) - kernel)
    assert 0.05 < once < 0.12 and twice < once * 1.01
    bits = 4 * q.values.size + 8 * q.codes.size + 32 * (q.scale.size + 1)
    assert bits / kernel.size == pytest.approx(4.127, abs=2e-3)


def test_zero_stays_zero_and_no_sign_is_lost():
    kernel = draw(4 * BLOCK, 8) * np.geomspace(1e-8, 100, 8, dtype=np.float32)  # blocks far below their mean
    kernel[::3] = 0
    kernel[:, 3] = 0
    for quantise in (int8_kernel, nf4_kernel):
        weights = np.asarray(dequantize(quantise(kernel, 1)))
        assert (weights[kernel == 0] == 0).all()
        assert (weights * kernel >= 0).all() and np.isfinite(weights).all()
    everywhere = np.zeros((BLOCK, 2), np.float32)
    assert not np.asarray(dequantize(nf4_kernel(everywhere, 1))).any()
    assert not np.asarray(dequantize(int8_kernel(everywhere, 1))).any()


def test_what_can_be_represented_is_exact():
    levels = np.random.default_rng(0).integers(-127, 128, (40, 6)).astype(np.float32)
    levels[0] = 127
    kernel = levels * 2.0 ** np.arange(-3, 3, dtype=np.float32)
    q = int8_kernel(kernel, 1)
    np.testing.assert_array_equal(q.values, levels)
    np.testing.assert_array_equal(dequantize(q), kernel)
    values, scale = to_int8(kernel.T, axis=-1)
    np.testing.assert_array_equal(values * scale[:, None], kernel.T)

    codes = np.random.default_rng(0).integers(0, 16, (BLOCK, 4))
    codes[0] = 15
    q = nf4_kernel(3 * CODEBOOK[codes], 1)  # one largest value everywhere: the mean alone keeps it
    np.testing.assert_array_equal(np.asarray(q.values).astype(int), codes)
    np.testing.assert_array_equal(dequantize(q), 3 * CODEBOOK[codes])


@pytest.mark.parametrize("quantise", [int8_kernel, nf4_kernel])
@pytest.mark.parametrize(
    ("name", "dtype", "atol"), [("qkv", jnp.bfloat16, 0.3), ("out", jnp.float32, 1e-4), ("ragged", jnp.float32, 1e-4)]
)
def test_a_product_is_that_of_the_weights_it_stands_for(quantise, name, dtype, atol):
    shape, inputs, _ = SHAPES[name]
    q = quantise(draw(*shape), inputs)
    x = jnp.asarray(draw(2, 3, *shape[:inputs], seed=1), dtype)
    expected = jnp.tensordot(x.astype(jnp.float32), dequantize(q), inputs)
    y = jax.jit(product, static_argnums=2)(x, q, inputs)
    assert y.dtype == dtype and y.shape == (2, 3, *shape[inputs:])
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=atol)


def test_they_are_trees():
    q = nf4_kernel(draw(64, 4), 1)
    assert len(jax.tree.leaves(q)) == 4 and jax.tree.map(lambda a: a, q).inputs == 1
    assert dataclasses.replace(q, inputs=2).inputs == 2
