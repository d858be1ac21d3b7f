"""What is trained, frozen, quantised and adapted: a table, and two parts of a model that are the model together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import tiny
from test_step import SCHEDULE, batch
from trol_jax.errors import UserError
from trol_jax.ops import linear, quantization
from trol_jax.ops.linear import Adapted, product
from trol_jax.train import parameters
from trol_jax.train.parameters import LoraOptions
from trol_jax.train.step import init_state, make_train_step

LORA = LoraOptions(rank=4, alpha=8.0)
RECIPE = ((r"projector/.*|decoder/gate_.*", "train"), (r"decoder/layers/block/.*/kernel", "lora nf4"), (".*", "freeze"))


def parts(table, family="internlm2", lora=LORA, dtype=jnp.float32):
    module, params = tiny.model(family)
    found = parameters.treatments(table, list(flatten_dict(params, sep="/")))
    return module, params, *parameters.split(params, found, lora, dtype, jax.random.key(0))


def stepped(module, trained, frozen, lora=LORA, optimizer=None, steps=1):
    optimizer = optimizer or optax.sgd(1.0)
    step = jax.jit(make_train_step(module, optimizer, SCHEDULE, join=parameters.joiner(lora)))
    state = init_state(trained, optimizer)
    for seed in range(steps):
        state, values = step(state, frozen, batch(module, seed=seed))
    return state, values


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_two_parts_together_are_the_model(family):
    table = ((r"projector/.*", "train"), (r"decoder/layers/block/(qkv|out|down)/kernel", "lora"), (".*", "freeze"))
    module, params, trained, frozen = parts(table, family)
    assert all(name.startswith("projector/") or "adapter_" in name for name in trained)
    assert all("projector" not in name and "adapter" not in name for name in frozen)
    data = batch(module)
    run = jax.jit(lambda p: module.apply({"params": p}, data["tokens"], jnp.zeros((8, 1, 16, 16, 3)))[0])
    # The second of each pair is zero: nothing has changed yet.
    np.testing.assert_array_equal(run(parameters.joiner(LORA)(trained, frozen)), run(params))


def test_gradients_over_a_quantised_base_are_those_over_what_it_stands_for():
    module, params, trained, frozen = parts(RECIPE)
    rng = np.random.default_rng(0)
    drawn = {
        k: jnp.asarray(0.1 * rng.standard_normal(v.shape), v.dtype) if "adapter" in k else v for k, v in trained.items()
    }
    quantised = {name: leaf for name, leaf in frozen.items() if isinstance(leaf, quantization.NF4)}
    assert len(quantised) == 5 and set(quantised) == {n for n in frozen if "/block/" in n and n.endswith("/kernel")}
    plain = dict(frozen)
    for name, leaf in quantised.items():
        plain[name] = jax.vmap(lambda q: quantization.dequantize(q, jnp.float32))(leaf)
        assert plain[name].shape == flatten_dict(params, sep="/")[name].shape
    one, other = (stepped(module, drawn, each)[0].params for each in (frozen, plain))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one, drawn)
    for name in drawn:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-5 * max(moved[name], 1e-3), err_msg=name)
        assert moved[name] > 0, name


def test_frozen_parameters_have_no_optimiser_state_and_no_float32_copy():
    _, params, trained, frozen = parts(RECIPE, dtype=jnp.bfloat16)
    state = init_state(trained, optax.adamw(1e-3))
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert size(state.opt_state) < 2 * size(trained) + 10
    wide = {name for name, leaf in frozen.items() if getattr(leaf, "dtype", None) == jnp.float32}
    assert wide == {name for name in wide if "norm" in name or "scale" in name} and wide
    flat = flatten_dict(params, sep="/")
    assert all(leaf.dtype == jnp.float32 and (name not in flat or leaf.shape == flat[name].shape)
               for name, leaf in trained.items())  # fmt: skip


def test_training_moves_only_what_is_trained_and_helps():
    module, _, trained, frozen = parts(RECIPE)
    before = {name: np.asarray(leaf) for name, leaf in trained.items()}
    first = stepped(module, trained, frozen, optimizer=optax.adam(0.0))[1]["loss"]
    state, values = stepped(module, trained, frozen, optimizer=optax.adam(3e-3), steps=12)
    last = stepped(module, state.params, frozen, optimizer=optax.adam(0.0))[1]["loss"]
    assert last < first and np.isfinite(float(values["grad_norm"]))
    assert all((np.asarray(state.params[name]) != before[name]).any() for name in before)


def test_an_adapted_product_is_that_of_the_merged_kernel():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    for base in (
        draw(4, 16, 24),
        quantization.nf4_kernel(draw(4, 16, 24), 2),
        quantization.int8_kernel(draw(4, 16, 24), 2),
    ):
        kernel, x = Adapted(base, draw(4, 16, 3), draw(3, 24), 0.5), draw(2, 5, 4, 16)
        expected = jnp.tensordot(x, linear.merged(kernel, 2), 2)
        np.testing.assert_allclose(jax.jit(product, static_argnums=2)(x, kernel, 2), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (((".*", "train"), ("projector/.*", "freeze")), "'projector/.*' matches nothing that those before it leave"),
        ((("projecter/.*", "train"), (".*", "freeze")), "'projecter/.*' matches nothing"),
        ((("projector/.*", "train"),), "says nothing of decoder/"),
        (((".*", "lora"),), "asks for 'lora' of "),
        (((".*", "nf4"),), "asks for 'nf4' of "),
        (((".*", "freeze"),), "trains nothing"),
        ((("(", "train"),), "'(' is no regular expression"),
        (((".*", "train nf4"),), "'train nf4' is no treatment; choose train, freeze, lora, nf4, int8"),
        (((".*", ""),), "'' is no treatment"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(table, message):
    names = list(flatten_dict(tiny.model("phi3")[1], sep="/"))
    with pytest.raises(UserError) as raised:
        parameters.treatments(table, names)
    assert message in str(raised.value)


def test_the_report_counts_every_parameter_once():
    module, params = tiny.model("phi3")
    shapes = flatten_dict(params, sep="/")
    lines = parameters.report(RECIPE, shapes, LORA).splitlines()
    counts = [int(line.split(" in ")[0].split()[-1].replace(",", "")) for line in lines]
    assert sum(counts) == sum(leaf.size for leaf in shapes.values())
    pairs = sum(leaf.size for name, leaf in parts(RECIPE, "phi3")[2].items() if "adapter" in name)
    assert f"{pairs:,} in pairs of rank 4" in lines[1]
    assert unflatten_dict(shapes, sep="/").keys() == params.keys() and module.config.family == "phi3"
