"""Scores of easy-vqa, and measuring a checkpoint: whole, interrupted, repeated, and without room to write."""

import json
import resource
import shutil
import signal

import pytest

import fixtures
from trol_jax.errors import UserError
from trol_jax.evals import runner
from trol_jax.evals.easy_vqa import is_right, score
from trol_jax.infer.answer import Answerer
from trol_jax.journal import Journal, write


@pytest.fixture(scope="module", autouse=True)
def variants():
    with fixtures.nano_variants():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return fixtures.save_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def run(tmp_path):
    return fixtures.save_run(tmp_path / "run")


@pytest.fixture
def asked(monkeypatch):
    """The questions that reach the model."""
    texts, answer = [], Answerer.answer

    def spy(self, questions, *options, **more):
        texts.extend(question.text for question in questions)
        return answer(self, questions, *options, **more)

    monkeypatch.setattr(Answerer, "answer", spy)
    return texts


def lines(run):
    return [json.loads(text) for text in (run / runner.ANSWERS).read_text().splitlines()]


def test_right_is_the_same_word():
    assert is_right(" Red\n", "red")
    assert not is_right("red circle", "red") and not is_right("", "red")


def test_score_overall_and_by_kind():
    rows = [{"kind": "color", "answer": "red", "prediction": p} for p in ("red", "RED", "blue", "red")]
    rows += [{"kind": "shape", "answer": "circle", "prediction": "circle"}]
    result = score(rows)
    assert (result["n"], result["right"], result["accuracy"]) == (5, 4, 0.8)
    error = (0.75 * 0.25 / 4) ** 0.5
    assert result["by_kind"]["color"] == {"n": 4, "right": 3, "accuracy": 0.75, "standard_error": error}
    assert list(result["by_kind"]) == ["color", "shape"]


def test_a_measurement_is_whole(run, data, capsys):
    result = runner.evaluate(run, root=data, batch_size=5)
    assert json.loads((run / runner.RESULT).read_text()) == result
    rows = lines(run)
    assert [row["id"] for row in rows] == list(range(12)) == list(range(result["n"]))
    assert all(row["right"] == is_right(row["prediction"], row["answer"]) for row in rows)
    assert result["right"] == sum(row["right"] for row in rows)
    assert [len(result["gates"][name]) for name in ("image", "text")] == [2, 2]
    assert result["step"] == 1 and result["asked"] == 12 and result["seconds"] > 0 and result["peak_memory_mb"] > 50
    for name in (runner.SAMPLES, runner.GATES):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in run.iterdir()}
    assert names == {"checkpoints", runner.RESULT, runner.ANSWERS, runner.SAMPLES, runner.GATES}

    same_question = [row["gate_image"] for row in rows if row["question"] == rows[0]["question"]]
    assert len(set(map(tuple, same_question))) == 3  # the pictures were looked at

    report = runner.report(result)
    assert "color" in report and str(run / runner.SAMPLES) in report
    assert capsys.readouterr().out == ""


def test_a_stopped_measurement_goes_on(run, data, asked, capsys):
    whole = runner.evaluate(run, root=data, batch_size=5)
    complete, told = (run / runner.ANSWERS).read_bytes(), lines(run)
    assert len(asked) == 12

    end = complete.index(b"\n", len(complete) // 2)
    for cut in (end - 20, end):  # within a line, and where only its end is missing
        torn = complete[:cut]
        (run / runner.ANSWERS).write_bytes(torn)
        asked.clear()
        again = runner.evaluate(run, root=data, batch_size=5)
        assert len(asked) == 12 - torn.count(b"\n") == again["asked"] < 12
        for one, other in zip(lines(run), told, strict=True):
            for name in ("gate_image", "gate_text"):  # their last digit is of the company in which a question is asked
                assert one.pop(name) == pytest.approx(other[name], abs=2e-5)
            assert one == {name: value for name, value in other.items() if name not in ("gate_image", "gate_text")}
        assert again["accuracy"] == whole["accuracy"]

    asked.clear()
    assert runner.evaluate(run, root=data) == again and not asked
    said = capsys.readouterr().out
    assert (
        said
        == f"already measured ({whole['accuracy']:.2%} of 12 right); remove {run / runner.ANSWERS} to measure again\n"
    )

    (run / runner.SAMPLES).unlink()  # made again from the answers
    runner.evaluate(run, root=data)
    assert (run / runner.SAMPLES).exists() and not asked


def test_every_batch_is_on_disk_before_the_next(run, data, monkeypatch):
    seen, answer = [], Answerer.answer

    def stop_in_third(self, questions, *options, **more):
        for i, given in enumerate(answer(self, questions, *options, **more)):
            if i % 5 == 0:
                seen.append(len(lines(run)) if seen else 0)
            if len(seen) == 3:
                raise KeyboardInterrupt
            yield given

    monkeypatch.setattr(Answerer, "answer", stop_in_third)
    with pytest.raises(KeyboardInterrupt):
        runner.evaluate(run, root=data, batch_size=5)
    assert seen == [0, 5, 10] and not (run / runner.RESULT).exists()


def test_answers_of_another_checkpoint_or_other_pictures_are_kept(run, data, asked, tmp_path):
    first = runner.evaluate(run, root=data, batch_size=5)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    fixtures.save_run(run, step=2, seed=7)
    other = shutil.copytree(data, tmp_path / "other")
    shutil.copy(other / "test" / "images" / "0.png", other / "test" / "images" / "1.png")
    asked.clear()
    for checkpoint, root in ((run, data), (run / "checkpoints" / "1", other)):
        with pytest.raises(UserError, match=r"holds answers of another measurement \(step 1, .*write to another"):
            runner.evaluate(checkpoint, root=root, batch_size=5)
    assert not asked and before == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    second = runner.evaluate(run, tmp_path / "second", root=data, batch_size=5)
    assert len(asked) == 12 and second["step"] == 2 and second["source"] != first["source"]
    again = runner.evaluate(run / "checkpoints" / "1", root=shutil.copytree(data, tmp_path / "moved"), batch_size=5)
    assert again == first


def test_an_output_that_is_a_file_is_named_before_anything_is_asked(run, data, asked, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'file' / runner.ANSWERS}: "):
        runner.evaluate(run, tmp_path / "file", root=data)
    assert not asked


def test_a_limit_asks_the_first_and_keeps_what_is_known(run, data, asked, tmp_path):
    output = tmp_path / "elsewhere"
    few = runner.evaluate(run, output, root=data, limit=5, batch_size=5)
    assert few["n"] == 5 and len(lines(output)) == 5
    everything = runner.evaluate(run, output, root=data, batch_size=5)
    assert everything["n"] == 12 and everything["asked"] == 7
    asked.clear()
    written = (output / runner.RESULT).read_bytes()
    assert runner.evaluate(run, output, root=data, limit=5) == everything  # the larger measurement stays
    assert (output / runner.RESULT).read_bytes() == written
    assert not asked and len(lines(output)) == 12 and not (run / runner.RESULT).exists()


def test_no_space_left_is_one_line_and_leaves_no_half_line(tmp_path):
    answers = Journal(tmp_path / runner.ANSWERS, "source", runner.ADDED)
    answers.append([{"id": 1, "text": "x" * 1000}])
    before = answers.path.read_bytes()
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
        with pytest.raises(UserError, match=f"cannot write {answers.path}: .*; make room") as appended:
            answers.append([{"id": 2, "text": "x" * 1000}])
        with pytest.raises(UserError, match=f"cannot write {tmp_path / runner.SAMPLES}: File too large"):
            write(tmp_path / runner.SAMPLES, b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(appended.value)
    assert answers.path.read_bytes() == before and list(tmp_path.iterdir()) == [answers.path]


def test_training_time_comes_from_the_metrics(run):
    step_dir = run / "checkpoints" / "1"
    assert runner.training(step_dir) == ""
    metrics = [{"step": 1, "examples_per_second": 0.1}, {"step": 2, "examples_per_second": 8.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in metrics))
    assert runner.training(step_dir) == "trained 1 steps of 8 pictures in 1 min 20 s"
