"""Second passes that are left out by their gate: which, exactly nothing at threshold 0, and what is measured."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import fixtures
import programs
import tiny
from programs import Program
from test_train import error_line
from trol_jax.errors import UserError
from trol_jax.infer.answer import Answerer
from trol_jax.infer.engine import Engine
from trol_jax.ops.traversal import Traversal
from trol_jax.study import early_exit
from trol_jax.study.early_exit import measure, option, parsed
from trol_jax.study.samples import open_samples


@pytest.fixture(scope="module", autouse=True)
def variants():
    with fixtures.nano_variants():
        yield


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return open_samples(fixtures.save_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(early_exit, "ROUNDS", (2, 2))


def logits(answerer, prompts):
    return np.asarray(Engine(answerer.model, answerer.params, answerer.stop).prompt(*prompts)[0])


# ---------------------------------------------------------------------- which layers
def test_layers_below_the_threshold_are_left_out():
    config, gates = tiny.config("phi3"), [0.25, 0.5]
    found = [option(config, gates, threshold) for threshold in (0, 0.25, 0.26, 0.5, 0.51)]
    assert found == ["", "", "layers=1", "layers=1", "answer_passes=1"]
    assert option(config, [0.0, 0.5], 0) == ""
    part = dataclasses.replace(config, traversal=Traversal(layers="first 1"))  # the gate of the other is 0
    assert [option(part, [0.25, 0.0], threshold) for threshold in (0, 0.2, 0.3)] == ["", "", "answer_passes=1"]


def test_thresholds_are_read():
    assert parsed(["0.5", ".25"]) == [0, 0.25, 0.5]
    for wrong in (["a"], ["1.5"], ["-0.1"], ["nan"], [""]):
        with pytest.raises(UserError, match=f"--thresholds={wrong[0]} must be numbers from 0 to 1"):
            parsed(wrong)


# ---------------------------------------------------------------------- what is measured
@pytest.mark.parametrize("family", ["phi3", pytest.param("internlm2", marks=pytest.mark.slow)])
def test_nothing_changes_at_threshold_0(tmp_path, samples, family):
    run = fixtures.save_run(tmp_path / "run", family)
    answerer = Answerer.load(run)
    asked = [question for question, _ in early_exit._questions(samples)]
    gates, _ = early_exit.calibrate(answerer, asked[:4], 4)
    thresholds, asked = [0, gates.mean(), 1], asked[4:]
    found = measure(answerer, samples, thresholds, calibration=4, limit=100, batch_size=4, max_new_tokens=3)
    assert found.gates == pytest.approx(gates) and (found.calibrated, found.asked, found.bad) == (4, 8, 0)
    whole, half, none = found.points
    assert (whole.option, whole.kept, whole.agreement, whole.ratio, whole.logits) == ("", [0, 1], 1, (1, 1, 1), 0)
    assert (half.option, half.kept) == (f"layers={np.argmax(gates)}", [np.argmax(gates)])
    assert (none.option, none.kept) == ("answer_passes=1", [])
    assert half.logits > 0 and none.logits > 0 and all(each.seconds > 0 for each in found.points)

    prompts = early_exit._prompts(answerer, asked, 4)
    first = logits(answerer, prompts)
    assert (first == logits(Answerer.load(run, traversal=whole.option), prompts)).all()
    other = Answerer.load(run, traversal=half.option)
    tokens = ([answer.tokens for answer in each.answer(asked, 3, batch_size=4)] for each in (answerer, other))
    assert half.agreement == np.mean([mine == its for mine, its in zip(*tokens, strict=True)])
    assert half.logits == pytest.approx(np.abs(logits(other, prompts) - first).max(), rel=1e-3)


def test_a_second_pass_of_which_nothing_is_kept_is_left_out_exactly(tmp_path, samples):
    answerer = Answerer.load(fixtures.save_run(tmp_path / "run", "internlm2"))
    decoder = answerer.params["decoder"] | {"gate_bias": jnp.float32(-1e3)}
    closed = dataclasses.replace(answerer, params=answerer.params | {"decoder": decoder})
    found = measure(closed, samples, [0, 0.1], calibration=2, limit=3, batch_size=2)
    assert found.gates == [0, 0] and [each.option for each in found.points] == ["", "answer_passes=1"]
    assert [each.agreement for each in found.points] == [1, 1] and found.points[1].logits == 0


def test_samples_that_cannot_be_asked_are_left_out(tmp_path):
    root = fixtures.save_data(tmp_path / "data")
    samples = open_samples(root)
    (root / "test" / "images" / "0.png").write_bytes(b"no picture")
    answerer = Answerer.load(fixtures.save_run(tmp_path / "run", "phi3"))
    found = measure(answerer, samples, [0], calibration=6, limit=100, batch_size=2, max_new_tokens=1)
    assert (found.calibrated + found.asked, found.bad) == (8, 4)


def test_what_cannot_be_measured_is_told(tmp_path, samples):
    one = Answerer.load(fixtures.save_run(tmp_path / "one", passes=1))
    with pytest.raises(UserError, match="takes one pass over prompts: there is none to leave out"):
        measure(one, samples, [0], calibration=4, limit=4)
    two = Answerer.load(fixtures.save_run(tmp_path / "two"))
    with pytest.raises(UserError, match="has 12 samples, all for --calibration=12; calibrate on fewer"):
        measure(two, samples, [0], calibration=12, limit=4)


# ---------------------------------------------------------------------- the program
def test_the_program_writes_a_report(tmp_path, samples):
    run = fixtures.save_run(tmp_path / "run", "phi3")
    flags = ["--early_exit", f"--checkpoint={run}", f"--data={samples.root}", "--calibration=8", "--max_new_tokens=1"]
    status, out, err = Program(programs.launch("study"), *flags, f"--output={tmp_path / 'exit'}").wait()
    assert status == 0, err
    names = early_exit.JSON, early_exit.MARKDOWN, early_exit.HTML, early_exit.PLOT
    assert {path.name for path in (tmp_path / "exit").iterdir()} == set(names)
    told = json.loads((tmp_path / "exit" / early_exit.JSON).read_text())
    assert [point["threshold"] for point in told["points"]] == [number / 20 for number in range(20)]
    assert told["asked"] == 4 and told["points"][0]["agreement"] == 1 and len(told["gates"]) == 2
    assert "| 2 of 2 | (as it is) |" in out and (tmp_path / "exit" / early_exit.MARKDOWN).read_text() in out
    assert (tmp_path / "exit" / early_exit.PLOT).read_bytes().startswith(b"\x89PNG")
    wrong = Program(programs.launch("study"), *flags, "--thresholds=0,2").wait()
    assert "--thresholds=0,2 must be numbers from 0 to 1" in error_line(wrong)
