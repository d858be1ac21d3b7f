"""Flash attention is plain attention: alone, over a mesh, in a model; by the TPU's kernel, interpreted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from configs import quickstart
from test_step import batch
from trol_jax.errors import UserError
from trol_jax.ops.attention import attention, prompt_mask
from trol_jax.ops.flash import flash_attention
from trol_jax.sharding.flash import Flash, attend
from trol_jax.sharding.mesh import make_mesh
from trol_jax.sharding.rules import Layout
from trol_jax.train import config as config_lib
from trol_jax.train.step import answer_sums

LENGTH = 140  # not a multiple of the kernel's blocks
SEGMENTS = jnp.array([[1] * 60 + [2] * 70 + [0] * 10, [0] * 5 + [1] * 135])


def drawn(heads: int, kv_heads: int):
    heads = heads, kv_heads, kv_heads, heads
    return [jax.random.normal(jax.random.key(seed), (2, LENGTH, n, 8)) for seed, n in enumerate(heads)]


def result(function, last, segment_ids=SEGMENTS, heads=4, kv_heads=2):
    """(result, gradients) of function(q, k, v, last), padding apart."""
    q, k, v, weights = drawn(heads, kv_heads)
    if segment_ids is not None:
        weights *= (segment_ids != 0)[..., None, None]

    def loss(*qkv):
        out = function(*qkv, last)
        return (out * weights).sum(), out * (weights != 0)

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *grads


def both(flash, segment_ids=SEGMENTS, **heads):
    """`result` of plain attention and of `flash`."""
    mask = None if segment_ids is None else prompt_mask(segment_ids)
    return result(attention, mask, segment_ids, **heads), result(flash, segment_ids, segment_ids, **heads)


def assert_equal(plain, flash):
    for a, b in zip(plain, flash, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


@pytest.mark.parametrize("segment_ids", [SEGMENTS, None], ids=["packed", "all"])
def test_the_kernel_is_attention(segment_ids):
    assert_equal(*both(lambda *args: flash_attention(*args, platform="tpu", interpret=True), segment_ids=segment_ids))


@pytest.mark.parametrize("segment_ids", [SEGMENTS, None], ids=["packed", "all"])
def test_cudnn_is_given_even_lengths(segment_ids, monkeypatch):
    """What fills an odd length up changes nothing; cuDNN itself needs a GPU, so that plain attention stands for it."""
    plain, lengths = jax.nn.dot_product_attention, []

    def cudnn(q, *others, implementation, **how):
        lengths.append(q.shape[1])
        return plain(q, *others, **how)

    def odd(function, last):
        def cut(q, k, v, last):
            out = function(q[:, :-1], k[:, :-1], v[:, :-1], last)
            return jnp.pad(out, ((0, 0), (0, 1), (0, 0), (0, 0)))

        return result(cut, last, segment_ids)

    segments = None if segment_ids is None else segment_ids[:, :-1]
    expected = odd(attention, None if segments is None else prompt_mask(segments))
    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    assert_equal(expected, odd(lambda *args: flash_attention(*args, platform="gpu"), segments))
    assert set(lengths) == {LENGTH}


@pytest.mark.parametrize(
    ("mesh", "rules", "kv_heads"),
    [
        ("data=2,tensor=4", "tensor", 4),
        pytest.param("data=2,tensor=4", "tensor", 2, marks=pytest.mark.slow),  # too few heads of keys for the axis
        ("data=2,sequence=4", "sequence", 2),  # tokens are cut: plain attention
    ],
)
def test_over_a_mesh(mesh, rules, kv_heads):
    flash = Flash(Layout.make(mesh, rules), interpret=True)
    assert_equal(*both(flash, kv_heads=kv_heads))


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_model_learns_the_same(family):
    module, params = tiny.model(family, remat="layer")
    rows = batch(module, rows=4)
    layout = Layout.make("fsdp=4,tensor=2", "fsdp_tensor")
    fused = dataclasses.replace(module, layout=layout, attend=Flash(layout, interpret=True))

    def grads(module):
        return jax.jit(jax.grad(lambda p: answer_sums(module, p, rows, jax.random.key(0))["loss"][0]))(params)

    for a, b in zip(jax.tree.leaves(grads(module)), jax.tree.leaves(grads(fused)), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


def test_where_there_is_no_kernel_it_is_plain_attention():
    one = Layout.make(make_mesh("data=1", jax.devices()[:1]), "replicated")
    assert attend("xla", one, "bfloat16") is attention and attend("flash", one, "float32") == Flash(one)
    plain, flash = (
        jax.jit(function).lower(*drawn(4, 2)[:3], SEGMENTS).as_text().partition("\n")[2]
        for function in (lambda q, k, v, segments: attention(q, k, v, prompt_mask(segments)), Flash(one))
    )
    assert plain == flash


def test_what_it_cannot_do_is_told(monkeypatch):
    monkeypatch.setattr(Flash, "platform", "gpu")
    layout = Layout.make("data=8", "data")
    with pytest.raises(UserError, match=r"a GPU needs cuDNN \(.*\); install jax\[cuda13\], or give attention=xla"):
        attend("flash", layout, "bfloat16")
    with pytest.raises(UserError, match="flash attention on a GPU takes bfloat16, not float32; give attention=xla"):
        attend("flash", layout, "float32")
    raw = quickstart.get_config().to_dict() | {"attention": "flash"}
    with pytest.raises(UserError, match=r"keeps no turns apart; set config\.data\.isolate_turns=False"):
        config_lib.from_dict(raw)
