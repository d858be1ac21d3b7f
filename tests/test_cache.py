"""Keys and values in fewer bits, against those in full."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import tiny
from trol_jax.infer.generate import decoder, prefill
from trol_jax.models.cache import Cache
from trol_jax.models.layers import unstack_layers


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_int8_slots():
    """Layouts: rows first in everything, so that a row can be put into another cache; errors; nothing in free slots."""
    kv, valid = (random(2, 3, 4, 2, 8), random(2, 3, 4, 2, 8, seed=1)), jnp.array([[1, 1, 1, 1], [0, 1, 1, 1], [1] * 4])
    cache = Cache.from_prompt(kv, valid != 0, 6, jnp.int8)
    assert all(len(leaf) == 3 for leaf in jax.tree.leaves(cache)) and [len(part) for part in cache.kv] == [2] * 4
    for given, slots, scales in zip(kv, cache.kv[:2], cache.kv[2:], strict=True):
        for layer in range(2):
            assert slots[layer].shape == (3, 2, 6, 8) and slots[layer].dtype == jnp.int8
            assert scales[layer].shape == (3, 2, 6) and scales[layer].dtype == jnp.float32
            meant, exact = slots[layer] * scales[layer][..., None], given[layer].swapaxes(1, 2)
            assert (np.abs(meant[:, :, :4] - exact) <= np.abs(exact).max(axis=-1, keepdims=True) / 127 * 0.501).all()
            assert not meant[:, :, 4:].any()


@functools.partial(jax.jit, static_argnums=(0, 4))
def follow(module, params, prompt, said, dtype):
    """Logits [1 + N, B, V] of what follows prompts and, one after the other, tokens said [B, N]; the cache."""
    new, valid = said.shape[1], (prompt >= 0).astype(int)
    first, cache, _ = prefill(module, params, jnp.maximum(prompt, 0), valid, None, new, dtype)
    step = decoder(module, params)
    cache, logits = jax.lax.scan(lambda cache, token: step(token, cache)[::-1], cache, said.T[..., None])
    return jnp.concatenate([first[None], logits[:, :, 0]]), cache


def test_answers_hardly_change():
    """The prompt's not at all: it attends to its own keys and values before they are stored."""
    module, params = tiny.model("phi3")
    run = functools.partial(follow, tiny.separate(module), unstack_layers(params))
    prompt, said = tiny.tokens(3, 6).at[1, :2].set(-1).at[2, -1].set(-1), tiny.tokens(3, 4, seed=1)
    full, cache = run(prompt, said, None)
    for dtype, error in (("bfloat16", 0.01), ("int8", 0.03)):
        fewer, small = run(prompt, said, dtype)
        np.testing.assert_array_equal(fewer[0], full[0])
        assert 0 < np.sqrt(np.mean((fewer - full)[1:] ** 2) / np.var(full[1:])) < error
        assert {leaf.dtype for leaf in jax.tree.leaves(small.kv[:2])} == {jnp.dtype(dtype)}
        for name in ("valid", "lengths", "index"):
            np.testing.assert_array_equal(getattr(small, name), getattr(cache, name))
    others, _ = run(prompt.at[:2].set(9), said.at[:2].set(5), "int8")
    np.testing.assert_array_equal(others[:, 2], fewer[:, 2])


def test_stacked_layers_share_the_cache_of_separate_ones():
    module, params = tiny.model("phi3")
    tokens, valid = tiny.tokens(2, 4), jnp.ones((2, 5), bool)
    c = module.config.decoder
    kv = [random(c.layers, 2, 5, c.kv_heads, c.head_dim, seed=seed) for seed in range(2)]

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def run(module, params, passes):
        cache = Cache.from_prompt(kv, valid, 9, jnp.int8)
        return module.apply({"params": params}, tokens, cache=cache, passes=passes)

    one, two = run(module, params, 1), run(module, params, 2)
    x, out = run(tiny.separate(module), unstack_layers(params), 2)
    np.testing.assert_allclose(two[0], x, atol=1e-4)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), two[1]["cache"].kv[2:], out["cache"].kv[2:])
    # What the second pass makes is not kept: in the first layer the cache is that of a single pass.
    for after_one, after_two in zip(one[1]["cache"].kv, two[1]["cache"].kv, strict=True):
        np.testing.assert_array_equal(after_one[0], after_two[0])
        assert (np.asarray(after_one[1]) != after_two[1]).any()
