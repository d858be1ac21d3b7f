import functools
import itertools
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore
from flax import struct
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import programs
from programs import Program
from trol_jax import checkpoint
from trol_jax.checkpoint import Checkpoints, read_config, read_file, resolve, restore, restore_params, verify
from trol_jax.errors import UserError
from trol_jax.lazy import Lazy

DATA, CONFIG = {"next": 12}, {"variant": "tiny", "rate": 1e-3}


@struct.dataclass
class TrainState:
    step: jax.Array
    params: dict
    opt_state: tuple
    key: jax.Array


def make_state(step=5, width=16):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    kernel = jax.random.normal(jax.random.key(step), (8, width)).at[0, 0].set(-0.0).at[0, 1].set(jnp.nan)
    params = {
        "head": {"bias": jnp.linspace(0, 3, 7, dtype=jnp.bfloat16), "kernel": kernel},
        "scale": jnp.float32(1.5),
    }
    moments = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mu_dtype=jnp.bfloat16)).init(params)
    state = TrainState(jnp.int32(step), params, moments, jax.random.key_data(jax.random.key(3)))
    specs = jax.tree.map(lambda x: P("data", "model") if x.ndim == 2 else P(), state)
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), state, specs)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same_bits(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def fill(directory, steps, keep=3):
    with Checkpoints(directory, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), data_state=DATA, config=CONFIG, files={"tokenizer.json": b"{}"})


@pytest.fixture(scope="module")
def _filled(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    fill(directory, [100, 200, 300])
    return directory


@pytest.fixture
def filled(_filled, tmp_path):
    """A checkpoints directory with the steps 100, 200 and 300, free to be damaged."""
    return Path(shutil.copytree(_filled, tmp_path / "run" / "checkpoints"))


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_everything_comes_back_bit_for_bit_in_its_sharding(filled):
    state = make_state(300)
    with Checkpoints(filled) as checkpoints:
        restored = checkpoints.restore(abstract(state))
        assert checkpoints.restore(abstract(state), 100).step == 100
    assert (restored.step, restored.data_state, restored.config) == (300, DATA, CONFIG)
    assert_same_bits(restored.state, state)
    assert all(a.sharding == b.sharding for a, b in zip(*map(jax.tree.leaves, (restored.state, state)), strict=True))
    assert read_config(filled / "300") == CONFIG
    assert read_file(filled / "300", "tokenizer.json") == b"{}"


def test_restores_into_another_sharding_and_onto_one_device(filled):
    state = make_state(300)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    other = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, P(None, "x") if x.ndim == 2 else P())
        ),
        state,
    )
    assert_same_bits(restore(filled, other).state, state)
    plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    assert_same_bits(restore(filled / "300", plain).state, state)


def test_only_the_parameters(filled):
    state = make_state(300)
    for path in (filled.parent, filled, filled / "300"):
        assert_same_bits(restore_params(path, abstract(state.params)), state.params)


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
    state, expected = make_state(), make_state()
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - x.dtype.type(3), tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state, data_state=DATA, config=CONFIG)
        for _ in range(5):
            state = advance(state)
        assert_same_bits(checkpoints.restore(abstract(expected)).state, expected)


def test_save_returns_before_the_write_is_done(tmp_path, monkeypatch):
    write = checkpoint.manifest.write

    def slow(*arguments, **named):
        time.sleep(0.3)
        write(*arguments, **named)

    monkeypatch.setattr(checkpoint.manifest, "write", slow)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), data_state=DATA, config=CONFIG)
        assert checkpoints.latest_step() is None
        assert [path.name[:6] for path in tmp_path.iterdir()] == ["1.tmp-"]
        checkpoints.wait()
        assert checkpoints.latest_step() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_old_steps_are_deleted_and_leftovers_removed_at_the_start(tmp_path):
    (tmp_path / "7.tmp-0123abcd" / "state").mkdir(parents=True)
    (tmp_path / "notes.tmp-mine").mkdir()
    fill(tmp_path, [1, 2, 3, 4], keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4", "notes.tmp-mine"]


def test_after_a_return_to_an_earlier_step_the_new_one_stays(filled):
    fill(filled, [150], keep=2)
    with Checkpoints(filled) as checkpoints:
        assert checkpoints.all_steps() == [150, 300]


def test_damaged_steps_do_not_count_among_those_that_stay(tmp_path):
    fill(tmp_path, [1, 2, 6], keep=3)
    with Checkpoints(tmp_path, keep=2, damaged=[6]) as checkpoints:
        for step, stay in ((3, [2, 3, 6]), (5, [3, 5, 6]), (6, [5, 6]), (7, [6, 7])):
            checkpoints.save(step, make_state(), data_state=DATA, config=CONFIG)
            checkpoints.wait()
            assert checkpoints.all_steps() == stay


def test_a_step_saved_again_replaces_the_old_one(filled):
    state = make_state(1)
    with Checkpoints(filled) as checkpoints:
        checkpoints.save(300, state, data_state={"next": 0}, config=CONFIG)
        restored = checkpoints.restore(abstract(state))
    assert restored.data_state == {"next": 0} and verify(filled / "300") == []
    assert_same_bits(restored.state, state)


def test_files_may_lie_in_a_folder(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, make_state(), data_state=DATA, config=CONFIG, files={"a/v.txt": b"words"})
    assert read_file(tmp_path / "c" / "1", "a/v.txt") == b"words"


def test_arrays_may_be_made_when_they_are_written(tmp_path, monkeypatch):
    """One after the other, in pieces; read back by rows, sharded and cast."""
    monkeypatch.setattr("trol_jax.lazy.PIECE", 40)
    folder = tmp_path / "c ü%41#?"  # no part of a URL
    shapes = {"a": (8, 6), "bb": (), "ccc": (3, 4), "dddd": (8,), "e": (7, 2, 5)}
    arrays = {n: np.random.default_rng(0).normal(size=s).astype(np.float16) for n, s in shapes.items()}
    made = []

    def blocks(name):
        array = np.asfortranarray(arrays[name]).astype(np.float64)  # cast, and put in order, when it is written
        for start in range(0, len(array), 3) if array.ndim else [...]:
            made.append(name)
            yield array[start : start + 3] if array.ndim else array

    lazy = {n: Lazy(s, np.dtype(np.float16), functools.partial(blocks, n)) for n, s in shapes.items()}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(0, {"params": lazy}, data_state=None, config=None)
    assert sorted(made) == [*"aaa", "bb", "ccc", *["dddd"] * 3, *"eee"]
    assert len(list(itertools.groupby(made))) == len(shapes)
    step = folder / "0"
    stored = checkpoint.arrays_in(step, "params/")
    assert {n: (tuple(a.shape), a.dtype) for n, a in stored.items()} == {n: (s, np.float16) for n, s in shapes.items()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(lazy[name].make(), array)
        stored = checkpoint.open_array(step, f"params/{name}")
        np.testing.assert_array_equal(stored.read().result(), array)
    assert stored.chunk_layout.read_chunk.shape == (2, 2, 5)
    np.testing.assert_array_equal(stored[3:7].read().result(), array[3:7])
    rows = NamedSharding(jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)), P("x"))
    wanted = {
        n: jax.ShapeDtypeStruct(s, jnp.float32, sharding=rows if s[:1] == (8,) else None) for n, s in shapes.items()
    }
    cast = restore_params(step, wanted)
    assert {a.dtype for a in cast.values()} == {jnp.dtype(jnp.float32)} and cast["a"].sharding == rows
    assert {a.dtype for a in restore_params(step, wanted, as_stored=True).values()} == {jnp.dtype(jnp.float16)}
    np.testing.assert_array_equal(cast["a"], arrays["a"])


def test_parts_that_are_not_there_are_not_read_as_zeros(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(5, make_state(), data_state=DATA, config=CONFIG)
    step = tmp_path / "c" / "5"
    name = "params/head/kernel"
    store = checkpoint.open_array(step, name).kvstore
    parts = [key for key in store.list().result() if key != b".zarray"]
    assert len(parts) == 8
    writable = tensorstore.KvStore.open(store.spec().to_json()).result()
    writable.delete_range(tensorstore.KvStore.KeyRange(parts[3], parts[3] + b"0")).result()
    with pytest.raises(UserError, match=f"5 has not all parts of {name}: a process that saved it wrote elsewhere"):
        checkpoint.open_array(step, name)


def test_an_array_that_cannot_be_made_leaves_nothing(tmp_path):
    def fail():
        raise OSError(5, "Input/output error")

    lazy = {"a": Lazy((2,), np.dtype(np.float16), fail)}
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(UserError, match="Input/output error"):
        checkpoints.save(0, {"params": lazy}, data_state=None, config=None)
    assert not list((tmp_path / "c").iterdir())


def test_forty_random_flips_are_forty_found(filled):
    step = filled / "300"
    generator = random.Random(0)
    files = sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)
    assert len(files) <= 40
    flipped = files + generator.choices(files, k=40 - len(files))
    for path in flipped:
        position, bit = generator.randrange(path.stat().st_size), generator.randrange(8)
        flip(path, position, bit)
        assert verify(step) == [f"{path.relative_to(step)} differs from its checksum"]
        flip(path, position, bit)
    assert verify(step) == []


def test_a_damaged_newest_step_offers_the_newest_sound_one(filled):
    for step in ("300", "200"):
        flip(filled / step / "config.json", 3)
    sound = filled / "100"
    with pytest.raises(UserError) as caught:
        restore(filled, abstract(make_state()))
    assert str(caught.value) == (
        f"checkpoint {filled}/300 is damaged: config.json differs from its checksum; newest sound checkpoint: "
        f"{sound} (use that, or remove {filled}/300 and start again)"
    )
    with pytest.raises(UserError, match=re.escape(f"newest sound checkpoint: {sound}")):
        read_config(filled / "300")
    with pytest.raises(UserError, match=re.escape(f"newest sound checkpoint: {sound}")):
        restore_params(filled.parent, abstract(make_state().params))
    flip(sound / "manifest.json", 3)
    with pytest.raises(UserError, match=r"no other checkpoint in .* is sound"):
        restore(filled, abstract(make_state()))


def test_a_long_list_of_problems_is_cut(filled):
    shutil.rmtree(filled / "300" / "state")
    with pytest.raises(UserError, match=r"state/\S+ is missing; and \d+ more; newest sound"):
        restore(filled / "300", abstract(make_state()))


def test_a_checkpoint_of_another_model(filled):
    state = make_state(width=24)
    with pytest.raises(UserError) as caught:
        restore(filled, abstract(state))
    message = str(caught.value)
    assert "params/head/kernel is float32[8,16] in the checkpoint and float32[8,24] in the model" in message
    assert "300 is of another model" in message and "\n" not in message
    params = abstract(make_state().params)
    with pytest.raises(UserError, match=r"params/scale is float32\[\] in the checkpoint and absent in the model"):
        restore_params(filled, {"head": params["head"]})
    with pytest.raises(UserError, match=r"params/tail is absent in the checkpoint and float32\[\] in the model"):
        restore_params(filled, {**params, "tail": params["scale"]})


def test_resolve_takes_a_run_a_checkpoints_or_a_step_directory(filled, tmp_path):
    for path in (filled.parent, filled, filled / "300"):
        assert resolve(path) == filled / "300"
    (filled / "300" / "manifest.json").unlink()
    assert resolve(filled / "300") == filled / "300"  # so that its damage is reported, not its absence
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"no checkpoint in .*empty: looked for manifest.json \(a step\), <step>/ .*checkpoints/"
    ):
        resolve(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no checkpoint at .*nothing: there is no such directory"):
        resolve(tmp_path / "nothing")


def test_programming_errors_are_plain_and_leave_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match="not JSON serializable"):
            checkpoints.save(1, make_state(), data_state={"a": object()}, config=CONFIG)
        with pytest.raises(TypeError, match="key_data"):
            checkpoints.save(1, {"key": jax.random.key(0)}, data_state=DATA, config=CONFIG)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot use .*file for checkpoints: File exists"):
        Checkpoints(tmp_path / "file")
    checkpoints = Checkpoints(tmp_path / "c")
    (tmp_path / "c").rmdir()
    with pytest.raises(
        UserError, match=r"cannot save checkpoint .*c/1: No such file or directory; .*no checkpoint was"
    ):
        checkpoints.save(1, make_state(), data_state=DATA, config=CONFIG)
    checkpoints.close()


CHILD = """
import resource, signal, sys, itertools
import jax.numpy as jnp, jax
from trol_jax.checkpoint import Checkpoints
from trol_jax.errors import UserError

def state(step, size):
    values = jax.random.normal(jax.random.key(step), (size,))
    return {"params": {"w": values, "v": values * 2}, "step": jnp.int32(step)}

def save(checkpoints, step, size):
    checkpoints.save(step, state(step, size), data_state={"next": step}, config={})
"""

ENDLESS = """
checkpoints = Checkpoints(sys.argv[1], keep=2)
for step in itertools.count(1 + (checkpoints.latest_step() or 0)):
    save(checkpoints, step, 50_000)
"""

FULL = """
checkpoints = Checkpoints(sys.argv[1])
save(checkpoints, 1, 100)
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
save(checkpoints, 2, 1_000_000)
try:
    checkpoints.wait()
except UserError as error:
    print(error)
import os
print(sorted(os.listdir(sys.argv[1])))
save(checkpoints, 3, 100)
checkpoints.close()
print(checkpoints.restore(state(0, 100)).step, flush=True)
"""


def test_killed_while_saving_it_always_restores_a_complete_step(tmp_path):
    generator, last = random.Random(), 0
    for _ in range(3):
        program, deadline = Program(CHILD + ENDLESS, tmp_path), time.monotonic() + 60
        while not (tmp_path / str(last + 2)).exists() and program.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.3))
        program.send_signal(signal.SIGKILL)
        status, _, err = program.wait()
        assert status == -signal.SIGKILL, err
        with Checkpoints(tmp_path) as checkpoints:
            steps = checkpoints.all_steps()
            assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, steps))
            assert [problem for step in steps for problem in verify(tmp_path / str(step))] == []
            leaf = jax.ShapeDtypeStruct((50_000,), jnp.float32)
            like = {"params": {"w": leaf, "v": leaf}, "step": jax.ShapeDtypeStruct((), jnp.int32)}
            restored = checkpoints.restore(like)
        assert restored.step == restored.state["step"] == restored.data_state["next"] == steps[-1] >= last + 2
        expected = jax.random.normal(jax.random.key(restored.step), (50_000,))
        assert_same_bits(restored.state["params"], {"w": expected, "v": expected * 2})
        last = restored.step


def check_full(ended, directory, cause):
    status, out, err = ended
    assert status == 0, err
    message, left, restored = out.splitlines()
    assert message == (
        f"cannot save checkpoint {directory}/2: {cause}; "
        f"make room or use another directory (the last one is {directory}/1)"
    )
    assert (left, restored) == ("['1']", "3")
    assert "Traceback" not in err


def test_a_write_beyond_the_allowed_size_fails_in_one_line(tmp_path):
    check_full(Program(CHILD + FULL, tmp_path, "limit").wait(), tmp_path, "File too large")


def test_no_space_left_fails_in_one_line(tmp_path):
    script = f'mount -t tmpfs -o size=3m none {tmp_path} && exec "$@"'
    wrapper = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if not shutil.which("unshare") or subprocess.run([*wrapper, "true"], capture_output=True).returncode:
        pytest.skip("needs a small file system of its own, which cannot be mounted here")
    check_full(
        programs.fresh("-c", CHILD + FULL, tmp_path, "space", wrapper=wrapper), tmp_path, "No space left on device"
    )


def test_a_failure_is_raised_once_by_the_next_call(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(checkpoint.manifest, "write", refuse)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(), data_state=DATA, config=CONFIG)
    with pytest.raises(UserError, match="Input/output error"):
        checkpoints.save(2, make_state(), data_state=DATA, config=CONFIG)
    checkpoints.close()
    assert list(tmp_path.iterdir()) == []


def test_orbax_stays_quiet_and_others_do_not(tmp_path, caplog):
    logger = logging.getLogger("absl")
    with caplog.at_level(logging.INFO, logger="absl"):
        fill(tmp_path, [1])
        logger.info("from elsewhere")
    assert "from elsewhere" in caplog.text
    assert not [record for record in caplog.records if "/orbax/" in record.pathname]


def test_the_settings_are_readable_without_this_package(filled):
    assert json.loads((filled / "300" / "config.json").read_text()) == CONFIG


def test_a_second_writer_is_refused(tmp_path):
    with Checkpoints(tmp_path / "c"), pytest.raises(UserError, match="another process writes to"):
        Checkpoints(tmp_path / "c")
    Checkpoints(tmp_path / "c").close()


def test_a_stray_file_is_to_be_moved_not_the_checkpoint(filled):
    (filled / "300" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"300: notes.txt is not part of the checkpoint; move it out of there$"):
        restore(filled, abstract(make_state()))
