"""Every rule set over eight devices computes what one device does: training steps, answers, beams."""

import dataclasses
import functools
import json
import math
import re
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

import compile_fast
import fixtures
import programs
import tiny
from programs import Program
from test_server import request
from test_step import SCHEDULE, batch
from test_train import arrays, error_line
from test_weights import save
from trol_jax import checkpoint
from trol_jax.errors import UserError
from trol_jax.infer import weights
from trol_jax.infer.beam import beam_search
from trol_jax.infer.engine import Engine
from trol_jax.infer.server import Server
from trol_jax.models.trol import TroL, abstract_params, init_params
from trol_jax.models.variants import get_variant
from trol_jax.sharding.mesh import make_mesh
from trol_jax.sharding.rules import AXES, Layout, table
from trol_jax.train import parameters
from trol_jax.train.loop import train
from trol_jax.train.parameters import LoraOptions
from trol_jax.train.step import TrainState, init_state, make_train_step

# Rule set -> a mesh on which every axis that it uses has more than one device, as far as eight allow.
MESHES = {
    "replicated": "data=8",
    "data": "data=8",
    "fsdp": "data=2,fsdp=4",
    "tensor": "data=2,tensor=4",
    "fsdp_tensor": "fsdp=4,tensor=2",
    "sequence": "fsdp=2,sequence=2,tensor=2",
}
SIZES = ("even", "odd")
CASES = [(rules, family, sizes) for rules in MESHES for family in tiny.FAMILIES for sizes in SIZES]
# Half of them, in turn: each rule set with both families and both sizes.
HALF = [(r, f, SIZES[(i + j) % 2]) for i, r in enumerate(MESHES) for j, f in enumerate(tiny.FAMILIES)]
LORA = LoraOptions(rank=4, alpha=8.0)


def sized(family: str, sizes: str):
    """even: all that is cut divides by 4. odd: vocabulary, width, heads and hidden units do not, the last not by 2."""
    config = tiny.config(family)
    if sizes == "even":
        return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, kv_heads=4))
    rope = config.decoder.rope
    rope = dataclasses.replace(rope, short=(1.0,) * 3, long=(2.0,) * 3) if family == "phi3" else rope
    odd = dict(vocab=tiny.VOCAB + 1, width=54, heads=9, kv_heads=3, hidden=51, rope=rope)
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, **odd))


def model(family: str, sizes: str, layout=None) -> tuple[TroL, dict]:
    module = TroL(sized(family, sizes))
    return module if layout is None else dataclasses.replace(module, layout=layout), tiny.draw(module)


# With AdamW's usual epsilon, gradients that are zero but for rounding (keys' bias) would move a weight as others do.
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, eps=1e-4))


def steps(family: str, sizes: str, layout: Layout | None = None):
    """Losses of three steps, the parameters after them and, from AdamW's first moments, the first step's gradients."""
    module, params = model(family, sizes, layout)
    boxed = jax.eval_shape(lambda: init_state(init_params(module, jax.random.key(0)), OPTIMIZER))
    state = TrainState(jnp.int32(0), params, OPTIMIZER.init(params))
    batches = [batch(module, seed=seed) for seed in range(3)]
    if layout is None:
        step = jax.jit(make_train_step(module, OPTIMIZER, SCHEDULE))
    else:
        shardings = layout.shardings(boxed)
        state, batches = jax.device_put(state, shardings), jax.device_put(batches, layout.batch(8))
        place = functools.partial(layout.place, boxed=boxed.params)
        step = make_train_step(module, OPTIMIZER, SCHEDULE, place=place)
        step = jax.jit(step, in_shardings=(shardings, None, layout.batch(8)), out_shardings=(shardings, None))
    losses, first = [], None
    for each in batches:
        state, values = step(state, {}, each)
        losses.append(values["loss"])
        first = state.opt_state[1][0].mu if first is None else first
    return jax.device_get((losses, first, state.params))


alone = functools.cache(steps)


def assert_close(one, other, tolerance):
    """Relative to the largest value of each array."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        limit = tolerance * np.abs(b).max()
        assert np.abs(a - b).max() <= limit, (jax.tree_util.keystr(path), np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "family", "sizes"), CASES)
def test_training_equals_one_device(rules, family, sizes):
    losses, grads, params = steps(family, sizes, Layout.make(MESHES[rules], rules))
    expected = alone(family, sizes)
    assert_close(losses, expected[0], 1e-5)
    assert_close(grads, expected[1], 1e-5)
    assert_close(params, expected[2], 1e-5)


def answers(family: str, sizes: str, step_dir, layout: Layout | None = None, weight_kind=None, cache=None):
    """Greedy and drawn tokens of four requests of several shapes, and beams: (tokens, tokens, scores)."""
    module = tiny.separate(model(family, sizes, layout)[0])
    params = weights.load(step_dir, module, weight_kind)
    requests = [request(family, text, tiles, 5, drawn, 0) for text, tiles, drawn in
                ((3, 0, False), (8, 2, True), (6, 2, False), (5, 0, True))]  # fmt: skip
    with Server(Engine(module, params, (), size=8, length=64, chunk=4, cache=cache)) as server:
        said = [each.result() for each in [server.submit(each) for each in requests]]
    prompt = tiny.with_picture(module, tiny.tokens(2, 5))
    beams, out = beam_search(
        module, params, prompt, jnp.ones_like(prompt), tiny.images(2), max_new_tokens=5, stop=(7, 12), beams=3
    )
    return said, np.asarray(beams), np.asarray(out["score"])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Of a family and sizes: (a checkpoint, what one device answers)."""

    @functools.cache
    def make(family, sizes):
        step_dir = save(tmp_path_factory.mktemp("weights"), model(family, sizes)[1])
        return step_dir, answers(family, sizes, step_dir)

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "family", "sizes"), HALF)
def test_answers_equal_one_device(stored, rules, family, sizes):
    step_dir, (said, beams, scores) = stored(family, sizes)
    its = answers(family, sizes, step_dir, Layout.make(MESHES[rules], rules))
    assert its[0] == said and len({tuple(each) for each in said}) > 2
    np.testing.assert_array_equal(its[1], beams)
    np.testing.assert_allclose(its[2], scores, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("weight_kind", "cache"), [("nf4", None), ("int8", "int8")])
def test_answers_in_few_bits_equal_one_device(stored, weight_kind, cache):
    step_dir, _ = stored("phi3", "odd")
    cache = cache and jnp.dtype(cache)
    one = answers("phi3", "odd", step_dir, None, weight_kind, cache)
    several = answers("phi3", "odd", step_dir, Layout.make("fsdp=4,tensor=2", "fsdp_tensor"), weight_kind, cache)
    assert several[0] == one[0]
    np.testing.assert_array_equal(several[1], one[1])


@pytest.mark.slow
def test_adapters_over_a_quantised_base_equal_one_device():
    table = (
        (r"projector/.*|decoder/gate_.*", "train"),
        (r"decoder/layers/block/.*/kernel", "lora nf4"),
        (".*", "freeze"),
    )
    results = []
    for layout in (None, Layout.make("fsdp=4,tensor=2", "fsdp_tensor")):
        module, params = model("internlm2", "even", layout)
        found = parameters.treatments(table, list(flatten_dict(params, sep="/")))
        boxed = jax.eval_shape(lambda m=module, f=found: init(m, f))
        start = lambda m=module, f=found, p=params: nn.unbox(init(m, f, p))  # noqa: E731
        if layout is None:
            state, frozen = jax.jit(start)()
        else:
            state, frozen = jax.jit(start, out_shardings=layout.shardings(boxed))()
            kernel = frozen["decoder/layers/block/up/kernel"]
            assert (
                kernel.values.sharding.spec == P(None, "fsdp", "tensor") and kernel.codes.sharding.spec[2] == "tensor"
            )
        step = jax.jit(make_train_step(module, OPTIMIZER, SCHEDULE, join=parameters.joiner(LORA)))
        losses = []
        for seed in range(3):
            state, values = step(state, frozen, batch(module, seed=seed))
            losses.append(values["loss"])
        results.append(jax.device_get((losses, state.params)))
    assert_close(results[1], results[0], 1e-5)


def init(module, found, params=None):
    """(state, frozen) for LORA; params: else fresh ones."""
    boxed = init_params(module, jax.random.key(0))
    if params is not None:
        boxed = jax.tree.map(lambda box, x: box.replace(value=x), boxed, params, is_leaf=is_box)
    trained, frozen = parameters.split(boxed, found, LORA, jnp.float32, jax.random.key(1))
    return init_state(trained, OPTIMIZER), frozen


def is_box(leaf):
    return isinstance(leaf, nn.Partitioned)


@pytest.mark.slow
def test_programs_answer_over_a_mesh(tmp_path):
    with fixtures.nano_variants():
        run = fixtures.save_run(tmp_path / "run", "internlm2")
    fixtures.save_data(tmp_path / "data")
    picture = next((tmp_path / "data/test/images").iterdir())
    asked = [f"--checkpoint={run}", f"--image={picture}", "--question=what color is the shape?", "--max_new_tokens=6"]
    said, four = [], f"--xla_force_host_platform_device_count=4 {compile_fast.FLAGS}"
    for flags in (
        [],
        ["--mesh=fsdp=2,tensor=2"],
        ["--mesh=sequence=4", "--rules=sequence", "--beams=3"],
        ["--beams=3"],
    ):
        status, out, err = Program(programs.launch("generate"), *asked, *flags, XLA_FLAGS=four).wait()
        assert status == 0 and out.strip(), err
        said.append(out)
    assert said[0] == said[1] and said[2] == said[3]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mesh=fsdp=3"], "mesh 'fsdp=3' is of 3 devices, there are 1; change a size, or make one -1"),
        (["--rules=fsdp"], "--rules does nothing without --mesh"),
        (["--mesh=data=-1", "--rules=zero"], "sharding rules 'zero' are not known; choose one of replicated"),
    ],
)
def test_flags_that_cannot_work_are_named(tmp_path, flags, message):
    result = Program(programs.launch("generate"), f"--checkpoint={tmp_path}", "--question=why?", *flags).wait()
    assert message in error_line(result)


def assert_same_run(one, other):
    """The same but for rounding: every step's loss, and the parameters at the end."""
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    steps, losses = ([[line[key] for line in each] for each in lines] for key in ("step", "loss"))
    assert steps[0] == steps[1] == list(range(1, steps[0][-1] + 1))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    one, other = (arrays(run) for run in (one, other))
    assert one.keys() == other.keys()
    # Not the bias of keys: its gradient is zero but for rounding, of which AdamW makes steps.
    same = [name for name in one if name.startswith("params/") and not name.endswith("qkv/bias")]
    assert_close({name: one[name] for name in same}, {name: other[name] for name in same}, 1e-4)


@pytest.mark.slow
def test_a_run_goes_on_over_another_mesh(tmp_path):
    config = fixtures.run_config(steps=4, checkpoint_every=2)
    with fixtures.nano_variants():
        train(dataclasses.replace(config, mesh="fsdp=4,tensor=2", rules="fsdp_tensor"), tmp_path / "run")
        shutil.copytree(tmp_path / "run", tmp_path / "moved")
        shutil.rmtree(tmp_path / "moved/checkpoints/4")
        train(dataclasses.replace(config, mesh="data=2,sequence=4", rules="sequence"), tmp_path / "moved")
    assert_same_run(tmp_path / "moved", tmp_path / "run")


def test_a_checkpoint_of_one_mesh_is_that_of_another(tmp_path):
    boxed = abstract_params(TroL(sized("phi3", "even")))
    params = tiny.draw(TroL(sized("phi3", "even")))
    written = jax.device_put(params, Layout.make("fsdp=4,tensor=2", "fsdp_tensor").shardings(boxed))
    step_dir = save(tmp_path, written)
    for mesh, rules in (("data=2,tensor=4", "tensor"), ("sequence=8", "sequence"), ("data=8", "replicated")):
        shardings = Layout.make(mesh, rules).shardings(boxed)
        wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings)
        state = checkpoint.restore(step_dir, {"params": wanted}).state
        for (path, leaf), its, first in zip(
            jax.tree_util.tree_leaves_with_path(state["params"]),
            jax.tree.leaves(shardings),
            jax.tree.leaves(params),
            strict=True,
        ):
            assert leaf.sharding == its, jax.tree_util.keystr(path)
            np.testing.assert_array_equal(leaf, first)


# ---------------------------------------------------------------------- what is where
def test_each_device_holds_its_share():
    module = TroL(get_variant("trol_1_8b"))
    boxed = abstract_params(module)
    whole = sum(leaf.size for leaf in jax.tree.leaves(boxed))

    def share(rules):
        layout = Layout.make(MESHES[rules], rules)
        shapes = jax.tree.map(
            lambda leaf, s: math.prod(s.shard_shape(leaf.shape)), nn.unbox(boxed), layout.shardings(boxed)
        )
        return sum(jax.tree.leaves(shapes)) / whole

    assert share("replicated") == share("data") == 1
    # Norms and biases stay whole; heads of the tower and the vocabulary divide.
    for rules, devices in {"fsdp": 4, "tensor": 4, "fsdp_tensor": 8, "sequence": 8}.items():
        assert 1 / devices <= share(rules) < 1.1 / devices, rules


def test_what_does_not_divide_is_whole_on_each_device_and_said_once(caplog):
    layout = Layout.make("fsdp=2,tensor=4", "fsdp_tensor")
    assert layout.spec(("embed", "kv_heads", "head_dim"), (32, 8, 4)) == P("fsdp", "tensor", None)
    for _ in range(2):
        assert layout.spec(("embed", "kv_heads", "head_dim"), (32, 6, 4)) == P("fsdp", None, None)
    assert [record.getMessage() for record in caplog.records] == [
        "sharding: kv_heads of 6 does not divide over tensor=4, and is cut over none: each device holds it whole"
    ]
    # Of two mesh axes the last is given up first.
    assert Layout.make("data=2,fsdp=4", "data").spec(("batch",), (6,), parameter=False) == P("data")


def test_tables_are_total_and_use_an_axis_once():
    layout = Layout.make("fsdp=8", "fsdp")
    with pytest.raises(UserError, match="no sharding rule for the axis 'width' of"):
        layout.spec(("width",), (8,))
    with pytest.raises(UserError, match=r"two dimensions of .* on mesh axis 'fsdp'"):
        layout.spec(("embed", "embed"), (8, 8))
    own = dict.fromkeys(AXES) | {"embed": ["fsdp", "tensor"], "batch": "data"}
    assert table(own)["embed"] == ("fsdp", "tensor") and table(own)["batch"] == ("data",) and table(own)["mlp"] == ()
    for rules, message in [
        ("zero", "sharding rules 'zero' are not known; choose one of replicated, data, fsdp"),
        ({"embed": "fsdp"}, "sharding rules lack layers, vocab, columns"),
        (own | {"width": None}, "'width' is not an axis of any array; known: layers"),
        (own | {"mlp": "model"}, "mlp is on 'model', must be of data, fsdp, sequence, tensor"),
    ]:
        with pytest.raises(UserError, match=message):
            table(rules)
    with pytest.raises(UserError, match="put nothing on the mesh axis tensor=2: its devices would all do the same"):
        Layout.make("fsdp=4,tensor=2", "fsdp")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsdp=3", "mesh 'fsdp=3' is of 3 devices, there are 8; change a size, or make one -1"),
        ("fsdp=3,data=-1", "8 devices do not divide by 3"),
        ("data=-1,fsdp=-1", "only one axis can be -1"),
        ("model=2", "'model' is not an axis; known: data, fsdp, sequence, tensor"),
        ("data=2,data=4", "data stands twice"),
        ("data=two", "data is 'two', must be a number of devices, or -1 for the rest"),
        ("data=0", "data is '0', must be"),
        ("data=²", "data is '²', must be"),
        ("data", "data is '', must be"),
        ("", "'' is not an axis"),
    ],
)  # fmt: skip
def test_meshes_that_cannot_be_are_named(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make_mesh(text)


def test_axes_are_in_the_order_of_the_networks():
    mesh = make_mesh("tensor=2, data=-1")
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "sequence": 1, "tensor": 2}
    assert [[d.id for d in row] for row in mesh.devices[:, 0, 0]] == [[0, 1], [2, 3], [4, 5], [6, 7]]


class Device:
    """As those of a job on two TPU slices of four chips, or on two machines of four GPUs."""

    def __init__(self, number: int, platform: str):
        self.id, self.platform, self.device_kind = number, platform, "imagined"
        self.process_index = number // 4
        if platform == "tpu":
            self.slice_index, self.coords, self.core_on_chip = number // 4, (number % 2, number % 4 // 2, 0), 0

    def __repr__(self):
        return str(self.id)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_outer_axes_go_from_host_to_host(platform):
    devices = [Device(number, platform) for number in range(8)]
    mesh = make_mesh("data=2,fsdp=2,tensor=2", devices)
    hosts = np.vectorize(lambda device: device.process_index)(mesh.devices)
    assert (
        (hosts[0] == hosts[0].flat[0]).all()
        and (hosts[1] == hosts[1].flat[0]).all()
        and hosts[0].flat[0] != hosts[1].flat[0]
    )


def test_one_device_is_as_without_a_layout():
    """No constraint is left in the program."""
    module, params = tiny.model("phi3")
    here = dataclasses.replace(module, layout=Layout.make(make_mesh("data=1", jax.devices()[:1]), "fsdp_tensor"))
    texts = [
        jax.jit(make_train_step(each, OPTIMIZER, SCHEDULE))
        .lower(TrainState(jnp.int32(0), params, OPTIMIZER.init(params)), {}, batch(each)).as_text()
        for each in (module, here)
    ]  # fmt: skip
    assert texts[0] == texts[1] and "sharding" not in texts[0]
