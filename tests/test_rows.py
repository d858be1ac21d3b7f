"""Arrays are copied as NumPy copies them, whatever their order in memory and however they come in blocks."""

import jax.numpy as jnp
import numpy as np
import pytest

from trol_jax.errors import UserError
from trol_jax.rows import Rows, assign


@pytest.mark.parametrize("shape", [(300, 200), (3, 5, 7), (4,), ()])
def test_assign_equals_assignment(shape):
    source = np.random.default_rng(0).normal(size=shape[::-1]).T
    target = np.empty(shape, np.float32)
    assign(target, source)
    np.testing.assert_array_equal(target, source.astype(np.float32))


@pytest.mark.parametrize("shape", [(), (3,), (300, 200)])
@pytest.mark.parametrize(
    ("number", "old", "new"),
    [(1e5, "bfloat16", "float16"), (1e5, "float32", "float16"), (3.4e38, "float32", "bfloat16")],
)
def test_no_number_becomes_infinite(number, old, new, shape):
    source = np.full(shape, number, jnp.dtype(old)).T
    with pytest.raises(UserError, match=f"numbers of {old} in them are beyond the range of {new}"):
        Rows([source] if shape else iter([source])).read_into(np.empty(shape, jnp.dtype(new)).T)
    target = np.empty(shape, jnp.dtype(new))
    assign(target, np.full(shape, np.inf, jnp.dtype(old)))
    assert np.isinf(target).all()


@pytest.mark.parametrize("sizes", [(10,), (1,) * 10, (3, 0, 6, 1)])
@pytest.mark.parametrize("taken", [(10,), (4, 4, 2), (1, 9)])
def test_rows_are_taken_in_order(sizes, taken):
    whole = np.random.default_rng(0).normal(size=(6, 10)).T
    rows = Rows(np.split(whole, np.cumsum(sizes)[:-1]))
    for expected in np.split(whole, np.cumsum(taken)[:-1]):
        target = np.empty(expected.shape, np.float32)
        rows.read_into(target)
        np.testing.assert_array_equal(target, expected.astype(np.float32))
