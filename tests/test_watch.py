"""What keeps a long run going, and what tells of it: bad steps, passing failures, notices, heartbeat."""

import contextlib
import dataclasses
import errno
import http.server
import json
import math
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fixtures
from test_benchmarks import ROOT
from trol_jax import checkpoint
from trol_jax.data.images import load_image
from trol_jax.data.mixture import HeldOut, Rest
from trol_jax.data.pipeline import Restarting
from trol_jax.errors import Diverged, UserError
from trol_jax.ops.losses import next_token_loss
from trol_jax.retry import retry
from trol_jax.train import evaluation, loop, optimizer, step, watch
from trol_jax.train.config import EvaluationOptions
from trol_jax.train.evaluation import keep_best
from trol_jax.train.guard import Guard
from trol_jax.train.metrics import Metrics


# ---------------------------------------------------------------------- bad steps
@pytest.fixture(scope="module")
def toy():
    """A step by `skip_norm` of a "model" whose loss is the square of its parameter, times what the batch says."""
    step.OBJECTIVES["toy"] = lambda model, params, batch, rng, z_loss: {
        "loss": (jnp.sum(batch["times"] * params["w"] ** 2), jnp.float32(1))
    }
    adam = optax.adam(0.1)
    made = dict(objective="toy", skip_norm=10.0), dict(objective="toy", skip_norm=math.inf)
    runs = {each["skip_norm"]: jax.jit(step.make_train_step(None, adam, lambda _: 0.1, **each)) for each in made}
    yield step.init_state({"w": jnp.ones(3)}, adam), runs
    del step.OBJECTIVES["toy"]


@pytest.mark.parametrize("skip_norm", [10.0, math.inf])
@pytest.mark.parametrize("times", [1.0, 100.0, 1e25, math.inf, math.nan])  # the square of the third overflows
def test_a_bad_gradient_changes_nothing(toy, skip_norm, times):
    state, runs = toy
    good = times == 1 or (times == 100 and skip_norm == math.inf)
    new, metrics = runs[skip_norm](state, {}, {"times": jnp.float32(times)})
    assert metrics["skipped"] == (0 if good else 1)
    assert new.step == 1 and new.opt_state[0].count == 1
    for now, before in [(new.params["w"], state.params["w"]), (new.opt_state[0].mu["w"], state.opt_state[0].mu["w"])]:
        assert bool((now == before).all()) != good


def test_a_longest_gradient_holds_without_skips_too():
    for skips, skip_norm, longest in ((0, 0.0, None), (3, 0.0, math.inf), (3, 5.0, 5.0), (0, 5.0, 5.0)):
        options = fixtures.run_config().optimizer
        assert dataclasses.replace(options, skips=skips, skip_norm=skip_norm).longest() == longest


def values(loss=1.0, norm=1.0, skipped=0.0):
    return {k: jnp.float32(v) for k, v in dict(loss=loss, grad_norm=norm, lr=0.1, skipped=skipped).items()}


def test_bad_steps_are_counted_and_too_many_in_a_row_end_the_run(tmp_path):
    told, bad = [], values(float("nan"), float("nan"), 1.0)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        guard = Guard(2, checkpoints, told.append)
        for number, each in enumerate([bad, bad, values(), bad, bad], 1):
            guard.next(number, each)
        assert guard.now() == {"lr": pytest.approx(0.1), "skipped": 4} and guard.now() == guard.now()
        assert told[0] == "step 1 is left out: loss nan, grad_norm nan, lr 0.10000000149011612" and len(told) == 4
        guard.next(6, bad)
        with pytest.raises(
            Diverged, match=r"bad steps in a row: 3, and config\.optimizer\.skips is 2; the last is step 6"
        ):
            guard.now()
        strict = Guard(0, checkpoints, told.append)
        strict.next(1, values(loss=float("inf")))
        with pytest.raises(Diverged, match=r"not finite at step 1: loss \(loss inf.*none was saved yet"):
            strict.now()
    assert Diverged.status == 3


def test_z_loss_is_the_square_of_the_logarithm_of_the_denominator():
    rng = np.random.default_rng(0)
    x, head = rng.normal(size=(2, 5, 4)).astype(np.float32), rng.normal(size=(4, 7)).astype(np.float32)
    tokens, mask = rng.integers(7, size=(2, 5)), rng.random((2, 5)) < 0.7
    log_z = np.log(np.exp(x[:, :-1] @ head).sum(-1))
    wanted = 0.5 * (log_z**2 * mask[:, 1:]).sum()
    for chunk in (512, 2):
        plain, z = (next_token_loss(x, head, tokens, mask, chunk, z_loss)[0] for z_loss in (0.0, 0.5))
        assert z - plain == pytest.approx(wanted, rel=1e-5)


def test_some_parameters_have_rates_of_their_own():
    rates = ((".*gate.*", 10.0), ("b", 0))
    options = optimizer.OptimizerOptions(
        lr=0.1, lr_end=0.1, warmup=0, weight_decay=0.0, clip=1.0, b1=0.9, b2=0.9, rates=rates, skips=0, skip_norm=0.0
    )
    made = optimizer.make_optimizer(options, optax.constant_schedule(0.1))
    params = {"gate/kernel": jnp.ones(2), "a": jnp.ones(2), "b": jnp.ones(2)}
    updates, _ = made.update(params, made.init(params), params)
    assert float(updates["gate/kernel"][0] / updates["a"][0]) == pytest.approx(10) and not updates["b"].any()
    optimizer.require_used(rates, list(params))
    with pytest.raises(UserError, match=r"config\.optimizer\.rates: the pattern 'b' matches nothing that is trained"):
        optimizer.require_used(rates, ["gate/kernel", "a"])
    for row in [("(", 1.0), ("a", -1.0), ("a",), ("a", True)]:
        with pytest.raises(UserError, match=r"config\.optimizer\.rates has .*, must be pairs"):
            optimizer.check_rates((row,))


# ---------------------------------------------------------------------- failures that pass
def failing(times, number=errno.EIO):
    left = iter([number] * times)

    def call(value):
        for each in left:
            raise OSError(each, "away")
        return value

    return call


def test_storage_is_asked_again(monkeypatch, tmp_path):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    assert retry(failing(3), 5) == 5 and waited == [0.5, 2.0, 8.0]
    for call in (failing(4), failing(1, errno.ENOSPC)):
        with pytest.raises(OSError, match="away"):
            retry(call, 5)
    path = tmp_path / "picture.png"
    path.write_bytes(b"no picture")
    read = failing(1)
    monkeypatch.setattr(type(path), "read_bytes", lambda _: read(b"no picture either"))
    with pytest.raises(UserError, match="is not a picture"):
        load_image(path)


def test_a_save_is_tried_again_with_what_stands_then(monkeypatch, tmp_path):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    told, state = [], {"params": {"w": jnp.arange(4.0)}}
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        real, attempt = checkpoints._orbax.save, failing(2)
        monkeypatch.setattr(checkpoints._orbax, "save", lambda *a, **k: attempt(None) or real(*a, **k))
        save = lambda: checkpoints.save(1, state, data_state={}, config={})  # noqa: E731
        loop.patient(save, again=save, tell=told.append)
        checkpoints.wait()
        assert checkpoints.all_steps() == [1] and len(told) == 2
        assert "Input/output error" in told[0] and told[0].endswith("trying again in 0.5 s")
        attempt = failing(1, errno.ENOSPC)
        with pytest.raises(checkpoint.NotSaved, match="No space left on device"):
            loop.patient(save, again=save, tell=told.append)


def test_data_goes_on_when_a_process_dies():
    class Fragile:
        def __init__(self):
            self.next = 0

        def __next__(self):
            if deaths and deaths[0] == self.next:
                deaths.pop(0)
                raise RuntimeError("Worker process was terminated unexpectedly with exit code -9.")
            self.next += 1
            return self.next - 1

        def get_state(self):
            return {"next": self.next}

        def set_state(self, state):
            self.next = state["next"]

        def close(self):
            pass

    deaths = [0, 2, 2]
    batches = Restarting(Fragile)
    assert [next(batches) for _ in range(5)] == [0, 1, 2, 3, 4] and not deaths
    deaths.append(5)
    with pytest.raises(UserError, match=r"died for the 4th time .* lower config\.data\.workers"):
        next(batches)


def test_rows_held_out_and_the_rest_are_all():
    for length in (1, 2, 5, 9, 10):
        for nth in (2, 3, 10):
            held, rest = HeldOut(range(length), nth), Rest(range(length), nth)
            assert sorted([*held, *(rest[i] for i in range(len(rest)))]) == list(range(length))


# ---------------------------------------------------------------------- the best
def test_the_best_checkpoint_stays(tmp_path):
    directory = tmp_path / checkpoint.CHECKPOINTS
    with checkpoint.Checkpoints(directory, keep=1) as checkpoints:
        for number, loss in enumerate([3.0, 1.0, 2.0, 1.5], 1):
            checkpoints.save(number, {"params": {"w": jnp.ones(2)}}, data_state={}, config={})
            checkpoints.wait()
            keep_best("held_out/loss", number, {"held_out/loss": loss}, checkpoints)
        assert checkpoints.all_steps() == [2, 4]
        assert checkpoint.resolve(tmp_path / "best") == directory / "2" and checkpoint.resolve(tmp_path).name == "4"
        checkpoints.keep_best({"step": 2, "metric": "pope", "value": math.nan})
        for number, value in ((2, math.inf), (4, math.nan), (4, 9.0), (2, 9.0), (2, 8.0), (2, math.nan)):
            keep_best("pope", number, {"pope": value}, checkpoints)
        assert checkpoint.read_best(directory) == {"step": 4, "metric": "pope", "value": 9.0}
    (directory / checkpoint.BEST).write_text("{")
    with pytest.raises(UserError, match="no checkpoint at"):
        checkpoint.resolve(tmp_path / "best")


@pytest.mark.parametrize(
    ("name", "scored"), [("mm-vet", False), ("vqav2", False), ("mathvista", False), ("pope", True)]
)
def test_the_best_is_a_benchmark_that_has_a_value(name, scored, tmp_path):
    options = EvaluationOptions(every=1, benchmarks=(name,), root=str(ROOT), best=name)
    made = evaluation.Evaluation(fixtures.run_config(evaluation=options), tmp_path, None, None, print)
    said = rf"config\.evaluation\.best is {name}, which has no value while a run trains \("
    with contextlib.nullcontext() if scored else pytest.raises(UserError, match=said):
        made.check()


def test_questions_are_left_between_two_answers(monkeypatch):
    def look():
        if len(given) == 2:
            raise evaluation.Interrupted

    given = []
    monkeypatch.setattr(evaluation.Answerer, "answer", lambda self, questions: iter(questions))
    answerer = evaluation.Watched(None, {}, None, "", look=look)
    with pytest.raises(evaluation.Interrupted):
        for each in answerer.answer([1, 2, 3]):
            given.append(each)
    assert given == [1, 2]


# ---------------------------------------------------------------------- notices
@pytest.mark.parametrize("vendor", ["Google", "Amazon EC2", "nobody"])
def test_a_clouds_notice_stops_the_run(vendor, tmp_path, monkeypatch):
    class Cloud(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = {"/computeMetadata/v1/instance/preempted": "Metadata-Flavor",
                     "/latest/meta-data/spot/instance-action": "X-aws-ec2-metadata-token"}  # fmt: skip
            spoken = known[self.path] in self.headers and (asked.append(self.path) or len(asked) > 1)
            self.send_response(200 if spoken or "Google" in vendor else 404)
            self.end_headers()
            self.wfile.write(b"TRUE\n" if spoken else b"FALSE\n" if "Google" in vendor else b"")

        def do_PUT(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"token")

        def log_message(self, *_):
            pass

    asked = []
    (tmp_path / "vendor").write_text(vendor + "\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cloud) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        monkeypatch.setattr(watch, "METADATA", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setattr(watch, "VENDOR", tmp_path / "vendor")
        monkeypatch.setattr(watch, "SECONDS", 0.1)
        with watch.told_to_stop() as stop:
            end = time.monotonic() + (0.3 if vendor == "nobody" else 20)
            while not stop and time.monotonic() < end:
                time.sleep(0.01)
        server.shutdown()
    assert stop == ([] if vendor == "nobody" else ["SIGTERM"]) and bool(asked) == bool(stop)


def test_the_heartbeat_says_how_it_ended(tmp_path):
    read = lambda: json.loads((tmp_path / watch.BEAT).read_text())  # noqa: E731
    with watch.Heartbeat(tmp_path, 3, 9) as heart:
        assert read()["state"] == "starting" and read()["step"] == 3
        heart.beat("training", 4)
        heart.beat("training", 5)  # too soon
        assert (read()["state"], read()["step"], read()["steps"]) == ("training", 4, 9)
    assert (read()["state"], read()["step"]) == ("stopped", 5)
    with watch.Heartbeat(tmp_path, 9, 9) as heart:
        heart.beat("evaluating", 9)
    assert read()["state"] == "stopped"  # in the midst of it
    with watch.Heartbeat(tmp_path, 9, 9) as heart:
        heart.beat("done", 9)
    assert read()["state"] == "done"
    with pytest.raises(UserError), watch.Heartbeat(tmp_path, 3, 9):
        raise UserError("no\n  room")
    assert read()["error"] == "UserError: no room" and read()["state"] == "failed"


# ---------------------------------------------------------------------- Weights & Biases
def test_metrics_go_to_weights_and_biases_too(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda exit_code: calls.append(exit_code)
    )
    fake = types.SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with Metrics(tmp_path, 0, 9, "trol", {"seed": 1}) as metrics:
        metrics.write(1, {"loss": 1.0, "gate_mean": [0.5, 0.25]})
    options, logged, status = calls
    assert options["project"] == "trol" and options["config"] == {"seed": 1} and options["resume"] == "allow"
    assert options["id"].startswith(f"{tmp_path.name}-") and status == 0
    assert logged == (1, {"loss": 1.0, "gate_mean/0": 0.5, "gate_mean/1": 0.25})
    told = []
    run.log = run.finish = fails = lambda *_, **__: failing(1)(None)
    with Metrics(tmp_path, 0, 9, "trol") as metrics:
        metrics.tell = told.append
        for number in (1, 2):
            metrics.write(number, {"loss": 1.0})
    assert told == ["Weights & Biases takes no metrics (OSError: [Errno 5] away); the run goes on, and has them itself"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    fake.init = fails
    with pytest.raises(
        UserError, match=r"^config\.wandb: trol cannot be opened: OSError: \[Errno 5\] away; wandb login"
    ):
        Metrics(tmp_path, 0, 9, "trol")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed: pip install wandb"):
        Metrics(tmp_path, 0, 9, "trol")
