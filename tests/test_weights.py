"""Weights read for inference against those that training restores, and what fewer bits do to the model."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import tiny
from trol_jax import checkpoint
from trol_jax.errors import UserError
from trol_jax.infer import weights
from trol_jax.infer.generate import decoder, prefill
from trol_jax.models import variants
from trol_jax.models.layers import unstack_layers
from trol_jax.models.trol import TroL, abstract_params
from trol_jax.ops import quantization
from trol_jax.ops.quantization import NF4, Int8


def save(directory, params):
    with checkpoint.Checkpoints(directory) as checkpoints:
        checkpoints.save(1, {"params": params}, data_state=None, config=None)
    return directory / "1"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Of a family, or of "gates" (phi3 in float16, with a gate a layer): (model, its step directory)."""

    @functools.cache
    def make(name):
        gates = name == "gates"
        module = TroL(tiny.config("phi3", shared_gate=False) if gates else tiny.config(name))
        params = tiny.draw(module)
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float16)), params) if gates else params
        return module, save(tmp_path_factory.mktemp("weights"), params)

    return make


def restored(module, step, **options):
    return unstack_layers(checkpoint.restore_params(step, nn.unbox(abstract_params(module)), **options))


def assert_same_bits(params, expected):
    params, expected = flatten_dict(params, sep="/"), flatten_dict(expected, sep="/")
    assert params.keys() == expected.keys()
    for name, leaf in expected.items():
        assert params[name].dtype == leaf.dtype, name
        np.testing.assert_array_equal(params[name], leaf, err_msg=name)


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, prompt, token):
    """(logits after a prompt, logits of one more token)."""
    logits, cache, _ = prefill(module, params, prompt, jnp.ones_like(prompt), None, 1)
    return logits, decoder(module, params)(token, cache)[0][:, 0]


@pytest.mark.parametrize("name", ["internlm2", "gates"])
def test_in_full_they_are_what_training_restores(stored, name):
    module, step = stored(name)
    assert_same_bits(weights.load(step, module), restored(module, step, as_stored=True))
    assert_same_bits(weights.load(step.parent, tiny.separate(module), "float32"), restored(module, step))


def test_bfloat16_but_for_norms_and_gates(stored):
    module, step = stored("phi3")
    params, expected = weights.load(step, module, "bfloat16"), restored(module, step)
    params, expected = flatten_dict(params, sep="/"), flatten_dict(expected, sep="/")
    assert params.keys() == expected.keys()
    for name, leaf in params.items():
        full = re.search(r"norm|decoder/gate_|layers_\d/scale\d", name)
        assert leaf.dtype == (jnp.float32 if full else jnp.bfloat16), name
        np.testing.assert_array_equal(leaf, expected[name].astype(leaf.dtype))


@pytest.mark.parametrize(
    ("name", "kind", "leaf_type", "error", "alike"),
    [("internlm2", "int8", Int8, 0.01, 0.999), ("phi3", "nf4", NF4, 0.12, 0.9)],
)
def test_fewer_bits(stored, name, kind, leaf_type, error, alike):
    """Which are in fewer bits; how far the model then is from itself in full, over a prompt and over a token more."""
    module, step = stored(name)
    params, full = weights.load(step, module, kind), restored(module, step)
    flat, exact = flatten_dict(params, sep="/"), jax.tree.map(np.asarray, flatten_dict(full, sep="/"))
    fewer = {name for name, leaf in flat.items() if isinstance(leaf, leaf_type)}
    layers, names = range(module.config.decoder.layers), ("qkv", "out", "gate", "up", "down")
    assert fewer == {f"decoder/layers_{i}/block/{name}/kernel" for i in layers for name in names}
    dequantize = jax.jit(quantization.dequantize, static_argnums=1)  # faster than one operation after the other
    meant = {name: dequantize(leaf, jnp.float32) if name in fewer else leaf for name, leaf in flat.items()}
    meant = {name: np.asarray(leaf, np.float32) for name, leaf in meant.items()}
    for name in fewer:
        rms = np.sqrt(np.mean((meant[name] - exact[name]) ** 2) / np.mean(exact[name] ** 2))
        assert error / 4 < rms < error, name

    inputs = tiny.tokens(2, 6), tiny.tokens(2, 1, seed=1)
    trees = (params, unflatten_dict(meant, sep="/"), full)
    for ours, same, before in zip(*(run(tiny.separate(module), tree, *inputs) for tree in trees), strict=True):
        np.testing.assert_allclose(ours, same, atol=1e-4 * np.abs(same).max())
        assert np.corrcoef(ours.ravel(), before.ravel())[0, 1] > alike


def test_little_is_in_memory_beside_the_result(stored, monkeypatch):
    """Arrays are read a layer at a time, and few of them before they are asked for."""
    module, step = stored("phi3")
    opened, shapes, made = checkpoint.open_array, [], []

    class Watched:
        def __init__(self, store):
            self.store = store

        def __getitem__(self, index):
            return Watched(self.store[index])

        def read(self):
            shapes.append(self.store.shape)
            return self.store.read()

    def maker(*_):
        def make(array):
            assert len(shapes) - len(made) <= 1 + weights.AHEAD
            made.append(array.shape)
            return jnp.asarray(array)

        return make

    monkeypatch.setattr(weights, "maker", maker)
    monkeypatch.setattr(checkpoint, "open_array", lambda *where: Watched(opened(*where)))
    leaves = jax.tree.leaves(weights.load(step, module))
    assert shapes == made and sorted(shapes) == sorted(leaf.shape for leaf in leaves)


def test_what_is_missing_or_of_another_shape_is_named(tmp_path):
    module = TroL(tiny.config("phi3"))
    params = tiny.draw(module)
    params["decoder"]["head"]["kernel"] = params["decoder"]["head"]["kernel"][:-1]
    del params["decoder"]["layers"]["block"]["qkv"]
    step = save(tmp_path, params)
    with pytest.raises(UserError) as ours:
        weights.load(step, module, "int8")
    with pytest.raises(UserError) as theirs:
        restored(module, step)
    assert str(ours.value) == str(theirs.value)
    assert "params/decoder/head/kernel is float32[31,40] in the checkpoint and float32[32,40]" in str(ours.value)
    assert "params/decoder/layers/block/qkv/kernel is absent in the checkpoint" in str(ours.value)


def test_damage_is_found_before_anything_is_read(tmp_path):
    module = TroL(tiny.config("phi3"))
    step = save(tmp_path, tiny.draw(module))
    victim = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(UserError, match=f"damaged: {victim.relative_to(step)} differs from its checksum"):
        weights.load(step, module, "nf4")


def test_an_unknown_kind(tmp_path):
    with pytest.raises(UserError, match="weights 'fp4' are not known; choose one of float32, bfloat16, int8, nf4"):
        weights.load(tmp_path, TroL(tiny.config("phi3")), "fp4")


def test_bytes_on_the_device():
    shapes = {"a": jax.ShapeDtypeStruct((3, 3), jnp.uint4), "b": jnp.zeros(2, bool), "c": jnp.zeros(3, jnp.bfloat16)}
    assert weights.size(shapes) == 5 + 2 + 6


@pytest.mark.parametrize(
    ("variant", "gigabytes"),
    [("trol_1_8b", (9.8, 4.9, 3.4, 2.7)), ("trol_3_8b", (16.6, 8.3, 4.7, 2.9)), ("trol_7b", (34.7, 17.3, 10.4, 7.0))],
)
def test_sizes_of_the_released_models(variant, gigabytes):
    """By shapes alone. The table must cover every parameter, and the number of input axes be right."""
    module = TroL(variants.get_variant(variant))
    shapes = flatten_dict(nn.unbox(abstract_params(module)), sep="/")
    for kind, expected in zip(weights.KINDS, gigabytes, strict=True):
        total = 0
        for name, leaf in shapes.items():
            copies, shape = (leaf.shape[0], leaf.shape[1:]) if "layers" in name.split("/") else (1, leaf.shape)
            made = jax.eval_shape(weights.maker(name, kind), jax.ShapeDtypeStruct(shape, jnp.float16))
            total += copies * weights.size(made)
        assert total / 1e9 == pytest.approx(expected, abs=0.05), kind
