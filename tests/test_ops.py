"""The pure functions of trol_jax.ops against straightforward references."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trol_jax.models.variants import INTERNLM2_1_8B, PHI3_MINI
from trol_jax.ops.attention import attention, cache_mask, prompt_mask
from trol_jax.ops.image import grow_position_table, normalize, patchify, pixel_shuffle
from trol_jax.ops.losses import bag_of_words_loss, next_token_loss
from trol_jax.ops.norms import layer_norm, rms_norm
from trol_jax.ops.rotary import DynamicNTK, rotary_table, rotate

RNG = np.random.default_rng(0)


def draw(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.standard_normal(shape), dtype)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=tolerance)


def test_grouped_attention_is_softmax_over_repeated_heads():
    q, k, v = draw(2, 5, 6, 4), draw(2, 7, 2, 4), draw(2, 7, 2, 4)
    mask = jnp.asarray(RNG.random((2, 5, 7)) < 0.6).at[:, :, 0].set(True)
    keys, values = (np.repeat(x, 3, axis=2) for x in (k, v))
    logits = np.einsum("btnh,bsnh->bnts", q, keys) / 2
    weights = np.exp(np.where(np.asarray(mask)[:, None], logits, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    close(attention(q, k, v, mask), np.einsum("bnts,bsnh->btnh", weights, values))


def test_attention_softmax_is_float32_and_finite_where_nothing_is_seen():
    q, k, v = (30 * draw(1, 4, 2, 8) for _ in range(3))
    mask = jnp.tril(jnp.ones((1, 4, 4), bool)).at[0, 1].set(False)
    half = attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)), mask)
    assert half.dtype == jnp.bfloat16 and bool(jnp.isfinite(half).all())
    exact = attention(*(x.astype(jnp.bfloat16).astype(jnp.float32) for x in (q, k, v)), mask)
    close(half[:, [0, 2, 3]].astype(jnp.float32), exact[:, [0, 2, 3]], 0.02 * float(jnp.abs(exact).max()))


def test_prompt_mask():
    segments = jnp.array([[0, 1, 1, 1, 2, 2, 0]])
    turns = jnp.array([[0, 0, 1, 2, 0, 1, 0]])
    mask = prompt_mask(segments, turns)[0]
    seen = {int(q): np.flatnonzero(mask[q]).tolist() for q in range(7)}
    assert seen == {0: [], 1: [1], 2: [1, 2], 3: [1, 3], 4: [4], 5: [4, 5], 6: []}


def test_cache_mask():
    valid = jnp.array([[False, True, True, True, False], [True, True, True, True, False]])
    mask = cache_mask(valid, jnp.full(len(valid), 2), 2)
    assert [[np.flatnonzero(row).tolist() for row in sample] for sample in mask] == [
        [[1, 2], [1, 2, 3]],
        [[0, 1, 2], [0, 1, 2, 3]],
    ]


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    rope = DynamicNTK(theta=1e4, factor=1.0, max_positions=64)
    q, k = draw(1, 1, 1, 8), draw(1, 1, 1, 8)

    def dot(a, b):
        tables = [rotary_table(rope, jnp.array([[p]]), jnp.array([[20]]), 8) for p in (a, b)]
        return (rotate(q, *tables[0]) * rotate(k, *tables[1])).sum()

    close(dot(3, 1), dot(12, 10))
    cos, sin = rotary_table(rope, jnp.array([[5]]), jnp.array([[20]]), 8)
    close(jnp.linalg.norm(rotate(q, cos, sin)), jnp.linalg.norm(q))
    assert abs(float(dot(3, 1) - dot(3, 2))) > 1e-3


def test_dynamic_ntk_grows_its_base_beyond_the_trained_length():
    rope, h = INTERNLM2_1_8B.rope, 128
    short, long = 1000, 2 * rope.max_positions
    cos, _ = rotary_table(rope, jnp.array([[7], [7]]), jnp.array([[short], [long]]), h)
    base = rope.theta * (rope.factor * long / rope.max_positions - (rope.factor - 1)) ** (h / (h - 2))
    for row, theta in enumerate((rope.theta, base)):
        close(cos[row, 0], np.cos(7 * theta ** -(np.arange(0, h, 2) / h)), 1e-4)
    assert np.abs(cos[0] - cos[1]).max() > 0.1


def test_su_factors_change_with_the_length_of_each_row():
    rope, h = PHI3_MINI.rope, PHI3_MINI.head_dim
    cos, sin = rotary_table(rope, jnp.array([[9], [9]]), jnp.array([[4096], [4097]]), h)
    close(jnp.sqrt(cos**2 + sin**2), np.full((2, 1, h // 2), 1.190), 1e-3)
    assert math.isclose(rope.amplitude, math.sqrt(1 + math.log(32) / math.log(4096)))
    for row, factors in enumerate((rope.short, rope.long)):
        angles = 9 / (np.array(factors) * rope.theta ** (np.arange(0, h, 2) / h))
        close(cos[row, 0] / rope.amplitude, np.cos(angles), 1e-4)
    with pytest.raises(ValueError, match="48 short"):
        rotary_table(rope, jnp.array([[9]]), jnp.array([[9]]), 64)


def test_norms():
    x, scale, bias = 3 + draw(2, 3, 8), draw(8), draw(8)
    close(rms_norm(x, scale, 1e-5), x / np.sqrt((np.asarray(x) ** 2).mean(-1, keepdims=True) + 1e-5) * scale)
    centred = np.asarray(x) - np.asarray(x).mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias
    close(layer_norm(x, scale, bias, 1e-6), expected, 1e-4)
    assert rms_norm(x.astype(jnp.bfloat16), scale, 1e-5).dtype == jnp.bfloat16


def test_patches_are_a_strided_convolution():
    images, kernel = draw(2, 12, 8, 3), draw(4, 4, 3, 5)
    conv = jax.lax.conv_general_dilated(images, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    close(patchify(images, 4) @ kernel.reshape(-1, 5), conv.reshape(2, -1, 5), 1e-4)
    with pytest.raises(ValueError, match="12 x 8 pixels does not divide into patches of 5"):
        patchify(images, 5)


def test_pixel_shuffle_merges_neighbours_in_reading_order():
    x = jnp.arange(16.0).reshape(1, 16, 1)
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    np.testing.assert_array_equal(pixel_shuffle(x)[0], expected)
    with pytest.raises(ValueError, match="9 patches"):
        pixel_shuffle(draw(1, 9, 2))


def test_normalize():
    pixels = np.array([[[[0, 128, 255]]]], np.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    close(normalize(pixels, mean, std), (pixels / 255 - np.array(mean)) / np.array(std))


def test_a_position_table_of_the_same_size_stays_and_the_released_growth_has_its_shape():
    table = draw(17, 8)
    close(grow_position_table(table, 4), table)
    assert grow_position_table(draw(1 + 24 * 24, 4), 35).shape == (1226, 4)


@pytest.mark.parametrize("chunk", [3, 4, 7, 100])
def test_chunked_loss_equals_the_plain_one(chunk):
    x, head = draw(2, 9, 8), draw(8, 11)
    tokens, mask = jnp.asarray(RNG.integers(0, 11, (2, 9))), jnp.asarray(RNG.random((2, 9)) < 0.5)
    tokens = tokens.at[0, 3].set(11)  # an image token, beyond the vocabulary
    mask = mask.at[0, 3].set(False)

    def plain(x, head):
        logs = jax.nn.log_softmax(x[:, :-1] @ head)
        picked = jnp.take_along_axis(logs, jnp.minimum(tokens[:, 1:], 10)[..., None], -1)[..., 0]
        return -(picked * mask[:, 1:]).sum()

    chunked = lambda x, head: next_token_loss(x, head, tokens, mask, chunk)[0]  # noqa: E731
    loss, grads = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(x, head)
    expected, expected_grads = jax.value_and_grad(plain, argnums=(0, 1))(x, head)
    close(loss, expected)
    for mine, other in zip(grads, expected_grads, strict=True):
        close(mine, other)
    _, count, right = next_token_loss(x, head, tokens, mask, chunk)
    best = (x[:, :-1] @ head).argmax(-1) == tokens[:, 1:]
    assert count == mask[:, 1:].sum() and right == (best & mask[:, 1:]).sum()


def test_bag_of_words_counts_every_word_of_a_row_once():
    x, table = draw(3, 8), draw(11, 8)
    tokens = jnp.asarray([[2, 5, 2, 7], [1, 1, 1, 1], [3, 4, 0, 0]])
    mask = jnp.asarray([[True, True, True, False], [True] * 4, [False] * 4])
    words = [{2, 5}, {1}, set()]
    logits = np.asarray(x @ table.T, np.float64)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss, count, right = jax.jit(bag_of_words_loss)(x, table, tokens, mask)
    close(loss, -sum(logp[row, word] for row in range(3) for word in words[row]))
    best = [set(np.argsort(-logits[row])[: len(words[row])].tolist()) for row in range(3)]
    assert count == 3 and right == sum(len(best[row] & words[row]) for row in range(3))


def test_chunked_loss_never_holds_all_logits():
    vocabulary, length, chunk = 5000, 256, 16
    shapes = [jax.ShapeDtypeStruct(s, d) for s, d in
              (((1, length, 8), jnp.bfloat16), ((8, vocabulary), jnp.bfloat16), ((1, length), jnp.int32),
               ((1, length), jnp.bool_))]  # fmt: skip
    grad = jax.jit(jax.grad(lambda *a: next_token_loss(*a, chunk=chunk)[0]))
    temporary = grad.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert temporary < length * vocabulary * 4 / 2
