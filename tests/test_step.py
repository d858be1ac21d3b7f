"""The training step and the optimiser, by property."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from trol_jax.errors import UserError
from trol_jax.models.trol import TroL, abstract_params
from trol_jax.sharding.rules import Layout
from trol_jax.train.optimizer import OptimizerOptions, make_optimizer, make_schedule
from trol_jax.train.step import TrainState, init_state, make_train_step

OPTIONS = OptimizerOptions(lr=1e-2, lr_end=1e-4, warmup=2, weight_decay=0.1, clip=1.0, b1=0.9, b2=0.98)
SCHEDULE = make_schedule(OPTIONS, 10)


def batch(module, rows=8, seed=0):
    """Rows whose answers are of very different lengths."""
    text = tiny.tokens(rows, 6, seed)
    tokens = tiny.with_picture(module, text)
    length = tokens.shape[1]
    mask = np.zeros((rows, length), bool)
    for i in range(rows):
        mask[i, length - 1 - i % 4 :] = True
    pixels = np.random.default_rng(seed).integers(0, 255, (rows, 1, 16, 16, 3)).astype(np.uint8)
    return {
        "images": jnp.asarray(pixels), "tokens": tokens, "loss_mask": jnp.asarray(mask),
        "positions": jnp.broadcast_to(jnp.arange(length), tokens.shape),
        "segment_ids": jnp.ones_like(tokens), "turn_ids": jnp.zeros_like(tokens),
    }  # fmt: skip


def one_step(accumulation=1, sharding=None, family="phi3", objective="answers"):
    module, params = tiny.model(family)
    optimizer = optax.sgd(0.1)
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    data = batch(module)
    if sharding is not None:
        data = jax.device_put(data, sharding)
    step = make_train_step(module, optimizer, SCHEDULE, objective=objective, accumulation=accumulation)
    return jax.jit(step)(state, {}, data)


@pytest.fixture(scope="module")
def plain():
    return one_step()


def assert_same(one, other):
    for name, value in one[1].items():
        np.testing.assert_allclose(value, other[1][name], rtol=2e-5, atol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one[0].params, other[0].params)


def test_accumulation_equals_the_whole_batch(plain):
    assert_same(plain, one_step(accumulation=4))


def test_the_words_train_the_tower_and_the_embeddings_alone():
    _, params = tiny.model("phi3")
    whole, parts = (one_step(accumulation, objective="words") for accumulation in (1, 4))
    assert_same(whole, parts)
    moved = {jax.tree_util.keystr(path, simple=True, separator="/"): bool(change)
             for path, change in jax.tree_util.tree_leaves_with_path(
                 jax.tree.map(lambda a, b: (np.asarray(a) != b).any(), params, whole[0].params))}  # fmt: skip
    for name, change in moved.items():
        if name.startswith("decoder/"):
            assert change == (name == "decoder/embedding"), name
    assert moved["vision/patch/kernel"] and moved["projector/down/kernel"]


def test_eight_devices_equal_one(plain):
    layout = Layout.make("data=-1", "data")
    assert layout.mesh.shape["data"] == 8
    assert_same(plain, one_step(sharding=layout.batch(8)))


def test_a_batch_that_does_not_divide_is_named():
    with pytest.raises(
        UserError, match=r"a batch of 12 .* is not divisible by the 8 devices of the data and fsdp axes; make it 8"
    ):
        Layout.make("data=2,fsdp=4", "data").batch(12)


def test_padding_takes_no_part(plain):
    module, params = tiny.model("phi3")
    data = batch(module)
    wide = {k: jnp.pad(v, ((0, 0), (0, 3))) if v.ndim == 2 else v for k, v in data.items()}
    optimizer = optax.sgd(0.1)
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    assert_same(plain, jax.jit(make_train_step(module, optimizer, SCHEDULE))(state, {}, wide))


def test_schedule_warms_up_and_ends_where_it_should():
    assert SCHEDULE(0) == 0
    np.testing.assert_allclose([SCHEDULE(2), SCHEDULE(10)], [OPTIONS.lr, OPTIONS.lr_end], rtol=1e-5)


def test_only_matrices_decay():
    _, params = tiny.model("internlm2")
    optimizer = make_optimizer(dataclasses.replace(OPTIONS, warmup=0), make_schedule(OPTIONS, 10))
    zero = jax.tree.map(np.zeros_like, params)
    state = jax.eval_shape(optimizer.init, params)
    later = lambda x: np.full(x.shape, 5 if x.dtype == jnp.int32 else 0, x.dtype)  # noqa: E731
    state = jax.tree.map(later, state)  # past the first steps, whose rate is small
    updates, _ = jax.jit(optimizer.update)(zero, state, params)
    decayed = {jax.tree_util.keystr(path): bool(np.abs(leaf).max() > 0)
               for path, leaf in jax.tree_util.tree_leaves_with_path(updates)}  # fmt: skip
    assert any(decayed.values())
    for path, moved in decayed.items():
        assert moved == any(f"'{name}'" in path for name in ("kernel", "embedding", "lora_a", "lora_b")), path


def test_moments_carry_the_axis_names_of_their_parameters():
    module = TroL(tiny.config("phi3"))
    boxed = jax.eval_shape(lambda: init_state(abstract_params(module), make_optimizer(OPTIONS, SCHEDULE)))

    def names(tree):
        leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
        return [leaf.names for leaf in leaves if isinstance(leaf, nn.Partitioned)]

    adam = boxed.opt_state[1][0]
    assert names(adam.mu) == names(adam.nu) == names(boxed.params) and len(names(boxed.params)) > 20


def test_metrics_tell_of_gates_by_layer_and_of_norms_by_group():
    module, params = tiny.model("phi3")
    data = batch(module)
    data["segment_ids"] = data["segment_ids"].at[:, -2:].set(0)
    data["loss_mask"] = data["loss_mask"].at[:, -4].set(True)
    optimizer = optax.sgd(0.1)
    step = jax.jit(make_train_step(module, optimizer, SCHEDULE))
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    new, values = step(state, {}, data)
    mean, std = jnp.array(module.config.vision.mean), jnp.array(module.config.vision.std)
    images = (data["images"] / 255 - mean) / std
    gate = module.apply({"params": params}, data["tokens"], images, segment_ids=data["segment_ids"])[1]["gate"]
    gate = np.asarray(gate)[:, 0, :, :-2].reshape(2, -1)
    np.testing.assert_allclose(values["gate"], gate.mean(), rtol=1e-4)
    expected = {
        "gate_mean": gate.mean(1), "gate_spread": gate.std(1),
        "gate_open": (gate > 0.9).mean(1), "gate_closed": (gate < 0.1).mean(1),
    }  # fmt: skip
    for name, each in expected.items():
        np.testing.assert_allclose(values[name], each, atol=2e-4, err_msg=name)
    by_group = {name.partition("/")[2]: float(each) for name, each in values.items() if name.startswith("grad_norm/")}
    assert set(by_group) == {"vision", "projector", "embedding", "layers", "gate", "norm", "head"}
    np.testing.assert_allclose(np.sqrt(sum(each**2 for each in by_group.values())), values["grad_norm"], rtol=1e-5)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, new.params["vision"], params["vision"]))
    np.testing.assert_allclose(values["update_norm/vision"], moved, rtol=1e-2)
