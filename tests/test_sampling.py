"""Drawn tokens follow the distribution that the options leave, and depend on a row's own seed alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from trol_jax.infer.generate import generate
from trol_jax.infer.sampling import Sampling, _draw, randoms, sample

ROWS = 4000
LOGITS = jnp.log(jnp.array([0.1, 0.4, 0.05, 0.3, 0.15]))


def options(rows, temperature=1.0, top_k=0, top_p=1.0):
    full = lambda value, dtype: jnp.full(rows, value, dtype)  # noqa: E731
    return Sampling(full(temperature, float), full(top_k, int), full(top_p, float), jnp.arange(rows))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"temperature": 0.5}, np.square([0.1, 0.4, 0.05, 0.3, 0.15]) / 0.285),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.75}, [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85]),
        ({"top_p": 0.0}, [0, 1, 0, 0, 0]),
        ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0, 0]),  # the two left have 4/7 and 3/7
        ({"temperature": 0.0}, [0, 1, 0, 0, 0]),
    ],
)
def test_frequencies(given, expected):
    asked = options(ROWS, **given)
    random = randoms(asked, jnp.zeros(ROWS, jnp.int32), 1)[0]
    drawn = jax.jit(sample)(jnp.tile(LOGITS, (ROWS, 1)), asked, random)
    found = np.bincount(drawn, minlength=5) / ROWS
    assert (found[np.equal(expected, 0)] == 0).all()
    np.testing.assert_allclose(found, expected, atol=4 * 0.5 / ROWS**0.5)


@pytest.mark.parametrize("size", [1, 7, 300, 5000])
def test_the_token_is_where_the_distribution_is_reached(size):
    """As by one cumulative sum, and never a token without probability, whatever the rounding."""
    rng = np.random.default_rng(size)
    p = rng.random((500, size)) * (rng.random((500, size)) < 0.3)
    p[np.arange(500), rng.integers(size, size=500)] += 0.1
    p = (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    random = np.concatenate([[0, np.nextafter(1, 0, dtype=np.float32)], rng.random(498)]).astype(np.float32)
    drawn = np.asarray(jax.jit(_draw)(p, random))
    reached = np.cumsum(p, axis=1, dtype=float)
    rows = np.arange(500)
    assert (p[rows, drawn] > 0).all()
    assert (reached[rows, drawn] >= random - 1e-6).all()
    assert (reached[rows, drawn] - p[rows, drawn] <= random + 1e-6).all()


def test_a_row_depends_on_its_own_seed_alone():
    module, params = tiny.model("phi3")
    prompts = tiny.tokens(3, 5)
    mixed = Sampling(jnp.array([1.0, 0.0, 2.0]), jnp.array([0, 0, 7]), jnp.array([0.9, 1.0, 1.0]), jnp.array([3, 4, 5]))
    run = lambda p, s: generate(module, params, p, jnp.ones_like(p), None, s, max_new_tokens=6, stop=())[0]  # noqa: E731
    together, greedy = run(prompts, mixed), run(prompts, None)
    for i in range(3):
        row = jax.tree.map(lambda a, i=i: a[i : i + 1], mixed)
        np.testing.assert_array_equal(run(prompts[i : i + 1], row)[0], together[i])
    np.testing.assert_array_equal(together[1], greedy[1])
    assert (together[0] != greedy[0]).any() and (together[2] != greedy[2]).any()
    other = mixed.replace(seed=mixed.seed + 10)
    assert (run(prompts, other)[2] != together[2]).any()
