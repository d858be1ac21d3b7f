"""Several processes that train as one: the same losses, one checkpoint, and an end of all when one ends."""

import os
import random
import shlex
import signal
import socket
import subprocess
import time

import jax
import pytest
import yaml
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import programs
from programs import Program
from test_sharding import assert_same_run
from test_train import error_line, given, steps_logged
from trol_jax import checkpoint
from trol_jax.errors import STOPPED, UserError
from trol_jax.sharding import hosts
from trol_jax.sharding.mesh import make_mesh

STEPS = 24
SMALL = ["--config.checkpoint_every=3", f"--config.steps={STEPS}", "--config.batch_size=4"]
CLUSTER = programs.ROOT / "launch" / "cluster"


def start(count: int, workdir, *flags) -> list[Program]:
    port = programs.free_port()
    small = [*SMALL, *flags]
    several = [f"--coordinator=localhost:{port}", f"--num_processes={count}", "--connect_seconds=60"]
    return [
        Program(programs.launch("train"), *given(workdir, *small), *(several * (count > 1)), *number)
        for number in ([f"--process_id={i}"] * (count > 1) for i in range(count))
    ]


def start_by_slurm(count: int, workdir, *flags) -> list[Program]:
    """As `srun` does: each learns from its environment who the others are."""
    small = [*SMALL, "--distributed", "--connect_seconds=60", *flags]
    job = {"SLURM_JOB_ID": str(random.randrange(10**6)), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
    return [
        Program(programs.launch("train"), *given(workdir, *small), **job, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
        for i in range(count)
    ]


def wait_for(processes, workdir, steps: int):
    while steps_logged(workdir) < steps and all(each.poll() is None for each in processes):
        time.sleep(0.01)
    assert steps_logged(workdir) >= steps, [each.said() for each in processes]


@pytest.mark.slow
def test_processes_come_and_go_and_the_run_is_the_same(tmp_path):
    (whole,) = start(1, tmp_path / "whole")
    status, _, err = whole.wait()
    assert status == 0, err

    run, fsdp = tmp_path / "run", "--config.rules=fsdp"
    two = start_by_slurm(2, run, "--config.mesh=fsdp=2", fsdp)
    wait_for(two, run, 5)
    two[1].send_signal(signal.SIGKILL)
    assert "process 0 of 2 cannot go on, another one has ended" in error_line(two[0].wait(60))
    assert two[1].wait(60)[0] == -signal.SIGKILL

    four = start(4, run, "--config.mesh=data=2,fsdp=2", fsdp)
    wait_for(four, run, 12)
    four[2].send_signal(signal.SIGTERM)
    ended = [each.wait(60) for each in four]
    assert [status for status, _, _ in ended] == [STOPPED] * 4, ended
    assert [out.count("stopped by SIGTERM after step") for _, out, _ in ended] == [1, 0, 0, 0]
    assert 12 <= checkpoint.steps_in(run / "checkpoints")[-1] < STEPS

    (last,) = start(1, run)
    assert last.wait()[0] == 0
    assert_same_run(run, tmp_path / "whole")


@pytest.mark.slow
def test_processes_that_do_not_meet_say_so(tmp_path):
    for number in (0, 1):
        flags = ["--coordinator=localhost:1234", "--num_processes=2", f"--process_id={number}", "--connect_seconds=2"]
        result = Program(programs.launch("train"), *given(tmp_path / "run"), *flags).wait()
        assert "not all 2 processes at localhost:1234 have met within 2 s" in error_line(result)
    assert not (tmp_path / "run").exists()


def start_apart(tmp_path, code: str, *flags) -> list[Program]:
    """Two whose run has one path, and is not on one disk: each begins in a folder of its own. `flags`: of each."""
    several = [f"--coordinator=localhost:{programs.free_port()}", "--num_processes=2", "--connect_seconds=60", *SMALL]
    code = f"import os, sys; os.chdir(sys.argv.pop()); {code}{programs.launch('train')}"
    arguments = given("/proc/self/cwd/run", *several, config=programs.ROOT / "configs" / "quickstart.py:smoke")
    for i in (0, 1):
        (tmp_path / str(i)).mkdir(exist_ok=True)
    return [
        Program(code, *arguments, f"--process_id={i}", *(each[i] for each in flags), tmp_path / str(i)) for i in (0, 1)
    ]


def test_processes_that_would_not_train_the_same_say_so(tmp_path):
    (tmp_path / "1" / "run" / "checkpoints" / "3").mkdir(parents=True)
    for each in start_apart(tmp_path, "", ["--config.optimizer.lr=0.1", "--config.optimizer.lr=0.2"]):
        line = error_line(each.wait(60))
        assert "config.optimizer.lr is 0.1 in process 0, 0.2 in process 1" in line
        assert "the newest checkpoint is None in process 0, 3 in process 1" in line
    assert not (tmp_path / "0" / "run").exists()


def test_processes_without_a_shared_disk_say_so(tmp_path):
    for each in start_apart(tmp_path, "from trol_jax import checkpoint; checkpoint._SHARED_SECONDS = 1; "):
        assert "process 1 does not see what process 0 writes into /proc/self/cwd/run" in error_line(each.wait(120))
    assert not list((tmp_path / "0" / "run" / "checkpoints").iterdir())


def test_a_save_that_another_process_left_is_not_told_as_a_full_disk(tmp_path, monkeypatch):
    checkpoints = checkpoint.Checkpoints(tmp_path / "c")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    lost = jax.errors.JaxRuntimeError("INTERNAL: Barrier failed because: Task 1 heartbeat timeout")
    error = checkpoints._failed(3, tmp_path / "c" / "3.tmp-00000001", lost)
    assert "process 0 of 2 cannot go on, another one has ended or cannot be reached (INTERNAL: Barrier" in str(error)
    assert "make room" not in str(error)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes=2", "--process_id=1"], "--coordinator must be given too"),
        (["--coordinator=here:1", "--num_processes=2", "--process_id=2"], "--process_id is 2, must be below"),
        (["--coordinator=here", "--num_processes=2", "--process_id=1"], "--coordinator is 'here', must be HOST:PORT"),
        (["--distributed"], "has started this process"),
    ],
)
def test_flags_that_cannot_work_are_named(tmp_path, flags, message):
    assert message in error_line(Program(programs.launch("train"), *given(tmp_path / "run"), *flags).wait())


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        flags = [f"--coordinator=localhost:{port}", "--num_processes=2", "--process_id=0", "--connect_seconds=20"]
        line = error_line(Program(programs.launch("train"), *given(tmp_path / "run"), *flags).wait(60))
    assert f"process 0 cannot take port {port} here (Address already in use)" in line


@pytest.mark.parametrize("name", ["slurm.sh", "tpu.sh"])
def test_scripts_for_clusters_are_bash(name):
    subprocess.run(["bash", "-n", CLUSTER / name], check=True)


def test_the_slurm_script_goes_back_into_the_queue(tmp_path):
    for name, code in (("srun", 'echo "$SRUN_CPUS_PER_TASK $@"; exit "$ENDS"'), ("scontrol", 'echo "scontrol $@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{code}\n")
        (tmp_path / name).chmod(0o755)
    job = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "6"}
    for ends, more in (("75", ["scontrol requeue 7"]), ("2", []), ("0", [])):
        done = subprocess.run(
            ["bash", CLUSTER / "slurm.sh", "--workdir=a b"],
            env=os.environ | job | {"ENDS": ends},
            capture_output=True,
            text=True,
        )
        assert done.returncode == int(ends)
        command = "6 --kill-on-bad-exit=0 .venv/bin/python -m launch.train --distributed --workdir=a b"
        assert done.stdout.splitlines() == [command, *more]


def test_the_tpu_script_quotes_what_it_hands_on(tmp_path):
    (tmp_path / "gcloud").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "gcloud").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [CLUSTER / "tpu.sh", "slice", "zone-a", '--config.parameters=((".*", "train"),)']
    said = subprocess.run(command, env=os.environ | path, capture_output=True, text=True, check=True).stdout
    assert "--worker=all" in said
    inner = shlex.split(said.split("--command=")[1].split("&&")[1])
    assert inner == ["exec", ".venv/bin/python", "-m", "launch.train", "--distributed", command[-1]]


def test_the_jobset_starts_as_many_processes_as_it_has_machines():
    (jobs,) = yaml.safe_load((CLUSTER / "jobset.yaml").read_text())["spec"]["replicatedJobs"]
    spec = jobs["template"]["spec"]
    command = spec["template"]["spec"]["containers"][0]["command"]
    given = dict(flag.removeprefix("--").split("=", 1) for flag in command[3:])
    assert command[1:3] == ["-m", "launch.train"]
    assert spec["parallelism"] == spec["completions"] == int(given["num_processes"])
    assert given["coordinator"].startswith(f"trol-{jobs['name']}-0-0.trol:")
    known = {"coordinator", "num_processes", "process_id", "config", "workdir"}
    assert known <= given.keys() and all(name in known or name.startswith("config.") for name in given)


class Device:
    def __init__(self, number: int, per_process: int):
        self.id, self.process_index = number, number // per_process


@pytest.mark.parametrize(
    ("mesh", "batch", "shares"),
    [
        ("data=8", ("data", "fsdp"), [(0, 1), (2, 3), (4, 5), (6, 7)]),
        ("data=2,fsdp=4", ("data", "fsdp"), [(0, 1), (2, 3), (4, 5), (6, 7)]),
        ("data=2,tensor=4", ("data", "fsdp"), [(0, 1, 2, 3), (4, 5, 6, 7)]),  # two processes read the same
        ("tensor=8", ("data", "fsdp"), [tuple(range(8))]),
    ],
)
def test_each_process_reads_what_its_devices_hold(mesh, batch, shares):
    class Sharding:
        def devices_indices_map(self, shape):
            real = NamedSharding(make_mesh(mesh), P(batch)).devices_indices_map(shape)
            return {Device(device.id, 2): index for device, index in real.items()}

    assert hosts.row_shares(Sharding(), 8) == (shares, 0)


def test_rows_that_overlap_in_part_are_refused():
    class Sharding:
        def devices_indices_map(self, shape):
            return {Device(0, 1): (slice(0, 3),), Device(1, 1): (slice(2, 4),)}

    with pytest.raises(UserError, match="rows of a batch that others have in part"):
        hosts.row_shares(Sharding(), 4)
