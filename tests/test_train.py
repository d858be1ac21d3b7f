"""Training from the command line: it goes on where it was killed, to the bit, and says what is wrong in one line."""

import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import fixtures
import programs
from programs import Program
from test_ask import root  # noqa: F401
from trol_jax import checkpoint, manifest
from trol_jax.errors import STOPPED, UserError
from trol_jax.train.metrics import Metrics

STEPS = 12


def start(workdir, *flags, config="configs/quickstart.py:smoke"):
    return Program(programs.launch("train"), *given(workdir, *flags, config=config))


def given(workdir, *flags, config="configs/quickstart.py:smoke"):
    """Flags of a small run."""
    small = dict(steps=STEPS, checkpoint_every=3, log_every=1, batch_size=2) | {
        "start_from": "", "scan": True, "model.variant": "nano_phi3", "data.turns": 2, "data.max_length": 48,
        "optimizer.warmup": 2,
    }  # fmt: skip
    names = [flag.split("=")[0] for flag in flags]
    small = [f"--config.{k}={v}" for k, v in small.items() if f"--config.{k}" not in names]
    return f"--config={config}", f"--workdir={workdir}", *small, *flags


def run(*arguments, **options):
    return start(*arguments, **options).wait()


def steps_logged(workdir):
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for_step(process, workdir, step):
    while steps_logged(workdir) < step and process.poll() is None:
        time.sleep(0.01)


def arrays(workdir):
    """Every array of the newest checkpoint, by name."""
    step_dir = checkpoint.resolve(workdir)
    described = manifest.read(step_dir)["arrays"]
    wanted = {name: jax.ShapeDtypeStruct(a["shape"], a["dtype"]) for name, a in described.items()}
    state = checkpoint.restore(step_dir, unflatten_dict(wanted, sep="/")).state
    return flatten_dict(state, sep="/")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed, by an interpreter of its own."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    status, _, err = programs.fresh("-c", programs.NANO + programs.launch("train"), *given(workdir))
    assert status == 0, err
    return workdir


def error_line(result, status=2):
    """The message of a program that refused: one line, nothing before it but progress bars."""
    code, _, err = result
    assert code == status, err
    lines = [line for line in err.strip().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def test_a_run_writes_metrics_checkpoints_and_tensorboard(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert {"loss", "token_accuracy", "gate", "grad_norm", "lr", "examples_per_second"} <= lines[0].keys()
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert sorted(int(p.name) for p in (whole / "checkpoints").iterdir()) == [STEPS - 3, STEPS]
    assert list((whole / "tensorboard").iterdir())
    assert json.loads((whole / "heartbeat.json").read_text())["state"] == "done"


def test_adapters_over_a_quantised_base_go_on_to_the_bit(whole, tmp_path):
    table = '(("decoder/layers/block/.*/kernel", "lora nf4"), ("projector/.*", "train"), (".*", "freeze"))'
    lora = [f"--config.start_from={whole}", f"--config.parameters={table}", "--config.lora.rank=4"]
    lora += ["--config.lora.alpha=4.0", "--config.keep=9"]
    status, out, err = run(tmp_path / "run", *lora)
    assert status == 0 and "lora nf4 " in out, err
    finished = arrays(tmp_path / "run")
    assert not any("embedding" in name or name.endswith("qkv/kernel") for name in finished)
    assert (finished["params/decoder/layers/block/qkv/adapter_b"] != 0).all(axis=1).any()
    for step in checkpoint.steps_in(tmp_path / "run" / "checkpoints")[1:]:
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    assert run(tmp_path / "run", *lora)[0] == 0
    again = arrays(tmp_path / "run")
    assert again.keys() == finished.keys()
    for name in finished:
        np.testing.assert_array_equal(again[name], finished[name], err_msg=name)
    line = error_line(run(tmp_path / "new", *lora[1:]))
    assert "config.start_from must name the checkpoint" in line


def test_a_base_is_looked_at_each_time_and_may_be_moved(whole, tmp_path):
    table = '(("decoder/layers/block/.*/kernel", "lora nf4"), ("projector/.*", "train"), (".*", "freeze"))'
    lora = [f"--config.parameters={table}", "--config.lora.rank=4", "--config.lora.alpha=4.0", "--config.steps=2"]
    first, moved, workdir = tmp_path / "first", tmp_path / "moved", tmp_path / "run"
    shutil.copytree(whole, first)
    status, _, err = run(workdir, f"--config.start_from={first}", "--config.checkpoint_every=1", *lora)
    assert status == 0, err
    line = error_line(run(tmp_path / "next", f"--config.start_from={workdir}", *lora))
    assert "config.start_from: " in line and f"launch.merge --checkpoint={workdir}/checkpoints/2" in line
    shutil.rmtree(workdir / "checkpoints/2")
    first.rename(moved)
    line = error_line(run(workdir, f"--config.start_from={whole}/checkpoints/{STEPS - 3}", *lora))
    assert "holds a run with other settings (config.start_from: " in line
    fixtures.flip_bytes(checkpoint.resolve(moved))
    line = error_line(run(workdir, f"--config.start_from={moved}", *lora))
    assert f"config.start_from: checkpoint {moved}/checkpoints/{STEPS} is damaged: state/" in line
    assert "bring back a copy" in line
    shutil.rmtree(moved)
    shutil.copytree(whole, moved)
    status, out, err = run(workdir, f"--config.start_from={moved}", *lora)
    assert status == 0 and "going on from step 1 of 2" in out, err
    stored = checkpoint.read_json(workdir / "checkpoints/2", "base.json")
    assert stored["path"] == f"{moved}/checkpoints/{STEPS}"


def test_a_run_starts_with_the_parameters_of_another(whole, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(whole, first)
    # The first step's rate is 0: what the run started with is in its first checkpoint.
    every = ["--config.checkpoint_every=1", "--config.keep=99"]
    status, _, err = run(second, f"--config.start_from={first}", *every)
    assert status == 0, err
    steps = [checkpoint.resolve(first), second / "checkpoints" / "1"]
    assert len({checkpoint.read_file(step, "tokenizer.json") for step in steps}) == 1
    given, taken = ({k: v for k, v in arrays(step).items() if k.startswith("params/")} for step in steps)
    assert given.keys() == taken.keys()
    for name in given:
        np.testing.assert_array_equal(given[name], taken[name], err_msg=name)
    for flag, message in [
        ("shared_gate=False", f"checkpoint {steps[0]} is of another model"),
        ("variant=tiny_internlm2", f"{steps[0]} is a nano_phi3, and config.model.variant is tiny_internlm2"),
    ]:
        line = error_line(run(tmp_path / "third", f"--config.start_from={first}", f"--config.model.{flag}"))
        assert line.startswith("error: config.start_from: ") and message in line and not (tmp_path / "third").exists()
    first.rename(tmp_path / "elsewhere")
    status, out, _ = run(second, f"--config.start_from={first}", *every)
    assert status == 0 and f"already trained to step {STEPS}; remove {second} to start anew" in out


def test_killed_three_times_it_ends_with_the_same_bits(whole, tmp_path):
    workdir = tmp_path / "run"
    moments = sorted(random.Random().sample(range(1, STEPS), 3))
    for step in moments:
        process = start(workdir)
        wait_for_step(process, workdir, step)
        process.send_signal(signal.SIGKILL)
        status, _, _ = process.wait()
        assert status == -signal.SIGKILL, f"ended before the kill at {moments}"
    status, _, err = run(workdir)
    assert status == 0, err
    one, other = arrays(whole), arrays(workdir)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=f"{name}, killed at {moments}")
    assert steps_logged(workdir) == STEPS
    loss = lambda d: [json.loads(line)["loss"] for line in (d / "metrics.jsonl").read_text().splitlines()]  # noqa: E731
    assert loss(workdir) == loss(whole)
    assert not [p for p in (workdir / "checkpoints").iterdir() if "tmp" in p.name]


def test_a_damaged_newest_checkpoint_is_passed_over(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    newest = checkpoint.resolve(workdir)
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    status, out, err = run(workdir)
    assert status == 0, err
    assert f"checkpoint {newest} is damaged" in out and f"going on from step {STEPS - 3} of {STEPS}" in out
    one, other = arrays(whole), arrays(workdir)
    assert all((one[name] == other[name]).all() for name in one) and not manifest.verify(newest)


@pytest.mark.slow
def test_a_run_measures_itself_and_outlives_its_workers(tmp_path, root):  # noqa: F811
    workdir = tmp_path / "run"
    process = start(
        workdir, "--config.steps=160", "--config.data.workers=1", "--config.checkpoint_every=1000",
        "--config.evaluation.every=80", "--config.evaluation.rows=5", "--config.evaluation.limit=3",
        "--config.evaluation.benchmarks=('pope',)", f"--config.evaluation.root={root}",
        "--config.evaluation.best=held_out/loss", "--profile_steps=2,3",
    )  # fmt: skip
    wait_for_step(process, workdir, 20)
    children = [
        int(p) for each in Path(f"/proc/{process.pid}/task").glob("*/children") for p in each.read_text().split()
    ]
    workers = [p for p in children if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    status, _, err = process.wait()
    assert status == 0, err
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 161))
    first, last = (line for line in lines if "held_out/loss" in line)
    assert last["held_out/loss"] < first["held_out/loss"] and {"held_out/token_accuracy", "pope"} <= first.keys()
    assert sorted(p.name for p in (workdir / "evaluations").iterdir()) == ["160", "80"]
    assert len((workdir / "evaluations/160/answers/pope.jsonl").read_text().splitlines()) == 3
    assert checkpoint.resolve(workdir / "best").name == "160" and list((workdir / "profile").rglob("*.xplane.pb"))
    other = tmp_path / "other"
    assert run(other, "--config.steps=160", "--config.checkpoint_every=1000")[0] == 0
    one, two = arrays(workdir), arrays(other)
    assert all((one[name] == two[name]).all() for name in one)


def test_sigterm_saves_and_goes_on(tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, "--config.checkpoint_every=1000")
    wait_for_step(process, workdir, 4)
    process.send_signal(signal.SIGTERM)
    status, out, err = process.wait()
    assert status == STOPPED and "stopped by SIGTERM after step" in out, err
    step = int(checkpoint.resolve(workdir).name)
    assert 4 <= step < STEPS
    line = error_line(run(tmp_path / "next", f"--config.start_from={workdir}"))
    assert f"config.start_from: {workdir} is at step {step} of {STEPS}; let it finish, or name " in line
    status, out, _ = run(workdir, f"--config.steps={STEPS}")
    assert status == 0 and f"going on from step {step}" in out


def test_sigterm_ends_an_evaluation_and_the_next_start_does_it(tmp_path):
    workdir, beat = tmp_path / "run", tmp_path / "run" / "heartbeat.json"
    flags = ["--config.steps=2", "--config.evaluation.every=2", "--config.optimizer.warmup=3"]
    process = start(workdir, *flags, "--config.evaluation.rows=1000000")
    while process.poll() is None and not (beat.exists() and json.loads(beat.read_text())["state"] == "evaluating"):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    status, out, err = process.wait(60)
    assert status == STOPPED and "stopped by SIGTERM after step 2 of 2" in out, err
    assert "optimizer.warmup is 3, and after 2 steps the rate is not yet lr" in out
    assert json.loads(beat.read_text())["state"] == "stopped" and not (workdir / "evaluations").exists()
    status, _, err = run(workdir, *flags, "--config.evaluation.rows=2")
    assert status == 0 and "held_out/loss" in json.loads((workdir / "evaluations/2/evaluation.json").read_text()), err
    assert json.loads(beat.read_text())["state"] == "done"
    assert "already trained to step 2" in run(workdir, *flags, "--config.evaluation.rows=2")[1]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    line = error_line(
        run(
            tmp_path / "run",
            "--config.optimizer.lr=1e30",
            "--config.checkpoint_every=1",
            "--config.model.passes=1",
        ),
        status=3,
    )
    assert (
        "not finite at step 2: update_norm/" in line
        and "(loss 6." in line
        and str(tmp_path / "run" / "checkpoints") in line
    )
    assert "the last good checkpoint is" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.optimizer.lrr=1"], '--config.optimizer.lrr is no setting of --config. Did you mean "lr" instead'),
        (["--config.bogus=1"], "error: --config.bogus is no setting of --config."),
        (["--stepz=1"], "stepz"),
        (["--config.steps=many"], "steps"),
        (["--config.data.augment=('mirror',)"], "data.augment: 'mirror' is not known; choose from hflip"),
        (["--config.start_from=/nowhere"], "config.start_from: no checkpoint at /nowhere: there is no such directory"),
        (["--config.data.max_length=9"], "makes a row of"),
        (["--config=missing.py"], "No such file or directory: 'missing.py'"),
        (["--config.data.root=/nowhere"], "/nowhere/train is not a folder"),
        (["more"], "unexpected arguments more"),
    ],
)
def test_bad_settings_are_named(tmp_path, flags, message):
    workdir = tmp_path / "run"
    assert message in error_line(run(workdir, *flags))
    assert not workdir.exists()


def test_a_fresh_interpreter_tells_it_alike(tmp_path):
    flags = given(tmp_path / "run", "--config.data.root=/nowhere", "--config.model.variant=tiny_phi3")
    assert "/nowhere/train is not a folder" in error_line(programs.fresh("-m", "launch.train", *flags))


def test_other_settings_in_an_old_run_are_named(whole):
    line = error_line(run(whole, "--config.optimizer.lr=0.5"))
    assert "holds a run with other settings (config.optimizer.lr: 0.001 there, 0.5 here)" in line
    line = error_line(run(whole, "--config.model.variant=tiny_internlm2"))
    assert "config.model.variant: nano_phi3 there, tiny_internlm2 here" in line


def test_no_space_left_while_saving(tmp_path):
    """A limit on the size of files makes the large writes fail, as a full disk does."""
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for_step(process, workdir, 1)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    assert "cannot save checkpoint" in error_line(process.wait())
    assert not [p for p in (workdir / "checkpoints").iterdir() if "tmp" in p.name]


def test_no_space_left_for_metrics(tmp_path):
    """What fails when metrics are closed is told, unless another error is on its way."""

    def full(*_):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    message = "cannot write metrics beside .*: No space left on device; make room, then start again"
    with pytest.raises(UserError, match=message), Metrics(tmp_path, start_step=0, total_steps=9) as metrics:
        metrics.board.write_event = full
        metrics.write(1, {"loss": 1.0, "examples_per_second": 2.0})
    for expected, error in ((UserError, None), (KeyError, KeyError())):
        with pytest.raises(expected), Metrics(tmp_path, start_step=0, total_steps=9) as metrics:
            metrics.board.close()
            metrics.board.close = full
            if error:
                raise error
