"""The benchmarks, asked: what is written, what is asked again, what is never mixed."""

import json
import os
import shutil
import signal

import pytest
from PIL import Image

import fixtures
import programs
from programs import Program, launch
from test_benchmarks import ROOT
from trol_jax import errors, version
from trol_jax.data.images import load_image
from trol_jax.errors import UserError
from trol_jax.evals import ask, runner, score
from trol_jax.evals.benchmarks import BENCHMARKS
from trol_jax.evals.files import Root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with fixtures.nano_variants():
        yield fixtures.save_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """POPE, with its pictures, and MMStar."""
    root = tmp_path_factory.mktemp("root")
    for name in ("POPE", "MMStar"):
        shutil.copytree(ROOT / name, root / name)
    for item in BENCHMARKS["pope"].read(Root(ROOT, pictures=False)):
        (root / item.images[0]).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (200, 30, 30)).save(root / item.images[0])
    return root


class Says:
    """An `Answerer` that reads every picture, and says how many questions it was asked before."""

    def __init__(self, stop_after=1000):
        self.asked, self.stop_after, self.text, self.options = [], stop_after, "", None

    def answer(self, questions, *options, skip):
        assert skip and len(questions) > 0
        self.options = options
        for question in questions:
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(question)
            self.text = f"yes {len(self.asked)}"
            try:
                if not question.text:
                    raise UserError("the question is empty")
                [load_image(picture) for picture in question.pictures]
            except UserError as error:
                yield error
            else:
                yield self


@pytest.fixture
def says(monkeypatch):
    def begin(*arguments):
        answerer = Says(*arguments)
        monkeypatch.setattr(ask.Answerer, "load", lambda *_: answerer)
        return answerer

    return begin


def evaluate(run, root, output, names=("pope",), **options):
    return list(ask.evaluate(run, names, root, output, **options))


def lines(output, name="pope"):
    return [json.loads(line) for line in (output / "answers" / f"{name}.jsonl").read_text().splitlines()]


def test_answers_and_results_are_written(run, root, tmp_path, says):
    answerer = says()
    pope, mmstar = evaluate(run, root, tmp_path, ["pope", "mmstar"])
    assert answerer.options[0] == 5 and answerer.options[1].beams == 5
    assert answerer.asked[0].text.startswith("Is there a green in the image?\nAnswer the question using")
    assert [type(question.pictures[0]) is bytes for question in (answerer.asked[0], answerer.asked[-1])] == [0, 1]
    written = lines(tmp_path)
    assert [line["index"] for line in written] == list(range(24))
    assert {*written[0]} == {"index", "id", "question", "prompt_digest", "answer", "source"} and written[0][
        "answer"
    ] == "yes 1"
    assert all("beams 5, 5 tokens, trol_jax" in line["source"] for line in written)
    assert (pope["answered"], pope["failed"], pope["missing"]) == (24, 0, 0)
    assert pope["value"] == pytest.approx(100 * 14 / 24)  # the share of yes
    assert pope["settings"]["asked"] == 24 and pope["settings"]["max_new_tokens"] == 5
    assert mmstar["answered"] == len(lines(tmp_path, "mmstar"))
    assert json.loads((tmp_path / "pope.json").read_text()) == pope
    assert len((tmp_path / "pope.samples.jsonl").read_text().splitlines()) == 24


def test_it_goes_on_where_it_was_stopped(run, root, tmp_path, says):
    says(7)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, root, tmp_path)
    before = lines(tmp_path)
    assert len(before) == 7
    with open(tmp_path / "answers" / "pope.jsonl", "a") as file:
        file.write('{"index": 7, "id": 8, "ans')  # as a kill leaves it
    answerer = says()
    (result,) = evaluate(run, root, tmp_path)
    assert len(answerer.asked) == 17 and lines(tmp_path)[:7] == before and result["answered"] == 24
    answerer = says()
    assert evaluate(run, root, tmp_path)[0]["value"] == result["value"] and not answerer.asked


def test_a_signal_that_was_swallowed_ends_it_all_the_same(run, root, tmp_path, says, monkeypatch):
    monkeypatch.setattr(errors, "CAUGHT", [])
    answerer = says()
    reads = answerer.answer

    def answer(questions, *options, skip):
        for count, each in enumerate(reads(questions, *options, skip=skip), start=1):
            if count == 3:  # in what answers, which goes on
                errors.CAUGHT.append(signal.SIGTERM)
            yield each

    answerer.answer = answer
    with pytest.raises(KeyboardInterrupt) as ended:
        evaluate(run, root, tmp_path)
    assert ended.value.args == (signal.SIGTERM,) and len(lines(tmp_path)) == 3


@pytest.mark.parametrize(
    "change", [{"beams": 1}, {"max_new_tokens": 6}, {"cache": "int8"}, {"weight_kind": "int8"}, "code"]
)
def test_answers_of_other_settings_or_code_are_never_mixed(run, root, tmp_path, says, change, monkeypatch):
    says()
    evaluate(run, root, tmp_path, limit=2)
    before = (tmp_path / "answers" / "pope.jsonl").read_bytes()
    if change == "code":
        monkeypatch.setattr(version, "digest", lambda *_: "other")
    (stopped,) = evaluate(run, root, tmp_path, limit=2, **({} if change == "code" else change))
    assert isinstance(stopped, UserError) and "pope.jsonl holds answers of another measurement" in str(stopped)
    assert (tmp_path / "answers" / "pope.jsonl").read_bytes() == before


def reworded(root):
    file = root / "POPE" / "coco_pope_popular.json"
    file.write_text(file.read_text().replace("Is there a green", "Is there a blue", 1))


def without_the_last(root):
    file = root / "POPE" / "coco_pope_random.json"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]))


def with_another_picture(root):
    (item, *_) = BENCHMARKS["pope"].read(Root(root))
    Image.new("RGB", (32, 32)).save(root / item.images[0])


@pytest.mark.parametrize("change", [reworded, without_the_last, with_another_picture])
def test_answers_to_other_questions_stay_and_are_not_taken(run, root, tmp_path, says, change):
    says()
    evaluate(run, root, tmp_path / "out")
    file, changed = tmp_path / "out" / "answers" / "pope.jsonl", shutil.copytree(root, tmp_path / "root")
    assert evaluate(run, changed, tmp_path / "out")[0]["settings"]["asked"] == 0  # a copy is the same
    change(changed)
    before, answerer = file.read_text(), says()
    (stopped,) = evaluate(run, changed, tmp_path / "out", limit=2)
    number = 24 if change is without_the_last else 1
    assert f"pope.jsonl, line {number} answers another question, or one with another picture" in str(stopped)
    assert file.read_text() == before and not answerer.asked
    if change is reworded:
        file.write_text("".join(before.splitlines(keepends=True)[1:]))
        evaluate(run, changed, tmp_path / "out")
        assert [question.text[:15] for question in answerer.asked] == ["Is there a blue"]


def test_only_answers_to_the_questions_of_a_root_are_scored(run, root, tmp_path, says):
    says()
    (asked,) = evaluate(run, root, tmp_path / "out")
    changed = shutil.copytree(root, tmp_path / "root")
    shutil.rmtree(changed / "coco2014")
    how = (["pope"], tmp_path / "out" / "answers", tmp_path / "scored")
    assert next(score.score(changed, *how))["value"] == asked["value"]  # pictures are not needed
    reworded(changed)
    (stopped,) = score.score(changed, *how, bad_rows="skip")
    assert "pope.jsonl, row 1 answers another question than the one with the id" in str(stopped)


def test_a_picture_may_come_while_others_are_asked_about(run, root, tmp_path, says):
    late = shutil.copytree(root, tmp_path / "root")
    *_, last = BENCHMARKS["pope"].read(Root(root))
    (late / last.images[0]).unlink()
    answerer = says()
    reads = answerer.answer

    def answer(questions, *options, skip):
        shutil.copy(root / last.images[0], late / last.images[0])
        return reads(questions, *options, skip=skip)

    answerer.answer = answer
    (result,) = evaluate(run, late, tmp_path / "out")
    assert (result["answered"], result["failed"]) == (24, 0)


def test_a_picture_may_come_while_another_process_asks_about_it(run, root, tmp_path, says, monkeypatch):
    late = shutil.copytree(root, tmp_path / "root")
    *_, last = BENCHMARKS["pope"].read(Root(root))
    (late / last.images[0]).unlink()
    says()
    evaluate(run, root, tmp_path / "other")

    def another(*_):
        shutil.copy(root / last.images[0], late / last.images[0])
        shutil.copy(tmp_path / "other" / "answers" / "pope.jsonl", tmp_path / "out" / "answers" / "pope.part1.jsonl")

    monkeypatch.setattr(ask.Asker, "ask", another)
    (result,) = evaluate(run, late, tmp_path / "out")
    assert (result["answered"], result["failed"]) == (24, 0)


def test_what_stops_the_questions_of_a_benchmark_stops_no_other(run, root, tmp_path, says, monkeypatch):
    says()
    write = ask.Journal.append

    def append(journal, lines):
        if journal.path.name == "pope.jsonl":
            raise UserError("the disk is full")
        write(journal, lines)

    monkeypatch.setattr(ask.Journal, "append", append)
    stopped, result = evaluate(run, root, tmp_path, ["pope", "mmstar"])
    assert str(stopped) == "pope: the disk is full" and result["benchmark"] == "mmstar"
    assert not (tmp_path / "pope.json").exists()


def test_parts_make_the_whole(run, root, tmp_path, says):
    says()
    (first,) = evaluate(run, root, tmp_path, limit=10)
    (second,) = evaluate(run, root, tmp_path, offset=10)
    assert (first["answered"], second["answered"], second["settings"]["asked"]) == (10, 14, 14)
    answerer = says()
    (whole,) = evaluate(run, root, tmp_path)
    assert whole["answered"] == 24 and not answerer.asked
    (stopped,) = evaluate(run, root, tmp_path, offset=24)
    assert "--offset=24 leaves out all of its 24 questions" in str(stopped)


def test_a_result_of_more_questions_stays(run, root, tmp_path, says):
    file, answerer = tmp_path / "pope.json", says()
    assert [evaluate(run, root, tmp_path, limit=10)[0]["answered"] for _ in range(2)] == [10, 10]
    assert evaluate(run, root, tmp_path, limit=5, offset=10)[0]["answered"] == 5  # of others
    evaluate(run, root, tmp_path, limit=100)
    before = file.read_bytes()
    for part in (dict(limit=2), dict(offset=3), dict(offset=3, limit=2)):
        (stopped,) = evaluate(run, root, tmp_path, **part)
        assert str(stopped).startswith(f"pope: {file} is of 24 questions, these") and file.read_bytes() == before
    assert evaluate(run, root, tmp_path)[0]["answered"] == 24 and len(answerer.asked) == 24
    file.write_text("[]")
    assert evaluate(run, root, tmp_path, limit=2)[0]["answered"] == 2


def test_what_cannot_be_asked_is_a_line_and_asked_again(run, root, tmp_path, says):
    broken = shutil.copytree(root, tmp_path / "root")
    items = list(BENCHMARKS["pope"].read(Root(root)))
    (broken / items[0].images[0]).write_bytes(b"no picture")
    here = [item for item in items if item.images == items[0].images]
    rows = (broken / "POPE" / "coco_pope_random.json").read_text().splitlines()
    (broken / "POPE" / "coco_pope_random.json").write_text("\n".join([*rows[:-1], '{"question_id": 9}']))
    says()
    (stopped,) = evaluate(run, broken, tmp_path / "out")
    assert str(stopped).startswith("pope: bad rows: 1, the first: POPE/coco_pope_random.json, row 8")
    assert f"questions that could not be asked: {len(here)}" in str(stopped) and "is not a picture" in str(stopped)
    failed = [line for line in lines(tmp_path / "out") if "error" in line]
    assert len(failed) == len(here) + 1 and 'there is no field "label"' in failed[-1]["error"]
    answerer = says()
    (result,) = evaluate(run, broken, tmp_path / "out", bad_rows="skip")
    assert (result["failed"], result["bad_rows"], len(answerer.asked)) == (len(here), 1, len(here) + 1)
    assert result["answered"] == 23 - len(here)


def test_a_benchmark_that_is_missing_stops_no_other(run, root, tmp_path, says):
    says()
    found = evaluate(run, root, tmp_path, ["all"], limit=1, bad_rows="skip")
    assert [each["benchmark"] for each in found if isinstance(each, dict)] == ["pope", "mmstar"]
    assert len(found) == len(BENCHMARKS) - 1  # easy-VQA has to be named


@pytest.mark.slow
def test_easy_vqa_gets_the_answers_of_the_quickstart(run, tmp_path):
    data = fixtures.save_data(tmp_path / "root" / "easy-vqa")
    runner.evaluate(run, tmp_path / "whole", root=data)
    (result,) = evaluate(run, tmp_path / "root", tmp_path, ["easy_vqa"], beams=1)
    known = [json.loads(line) for line in (tmp_path / "whole" / runner.ANSWERS).read_text().splitlines()]
    asked = lines(tmp_path, "easy_vqa")
    assert [(line["id"], line["answer"]) for line in asked] == [(line["id"], line["prediction"]) for line in known]
    accuracy = json.loads((tmp_path / "whole" / runner.RESULT).read_text())["accuracy"]
    assert (result["n"], result["value"]) == (12, pytest.approx(100 * accuracy))


def program(run, root, output, *more):
    flags = [f"--checkpoint={run}", "--benchmarks=pope", f"--root={root}", f"--output={output}", *more]
    return Program(launch("evaluate"), *flags)


def test_the_program_asks_by_beams(run, root, tmp_path):
    code, out, err = program(run, root, tmp_path, "--limit=3", "--beams=2", "--batch_size=2").wait()
    assert code == 0 and "100%" in err and "question/s" in err, err
    assert out.startswith("pope") and "n 3" in out
    assert [line["index"] for line in lines(tmp_path)] == [0, 1, 2] and "answer" in lines(tmp_path)[0]


@pytest.mark.slow
def test_a_killed_program_goes_on_to_the_same_answers(run, root, tmp_path):
    how = ("--beams=2", "--batch_size=1", "--max_new_tokens=24")
    code, _, err = program(run, root, tmp_path / "whole", *how).wait()
    assert code == 0, err
    killed = program(run, root, tmp_path / "killed", *how)
    file = tmp_path / "killed" / "answers" / "pope.jsonl"
    while killed.poll() is None and not (file.exists() and os.path.getsize(file)):
        pass
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    code, _, err = program(run, root, tmp_path / "killed", *how[:1], "--batch_size=3", how[2]).wait()
    assert code == 0 and lines(tmp_path / "killed") == lines(tmp_path / "whole"), err


def several(count, run, root, output, *more):
    port = programs.free_port()
    flags = [f"--coordinator=localhost:{port}", f"--num_processes={count}", "--connect_seconds=60", *more]
    return [program(run, root, output, *flags, f"--process_id={number}") for number in range(count)]


@pytest.mark.slow
def test_several_processes_share_the_questions(run, root, tmp_path):
    """Two of them, killed; then three: the answers of one process."""
    how = ("--beams=2", "--batch_size=1", "--max_new_tokens=24")
    code, whole, err = program(run, root, tmp_path / "whole", *how).wait()
    assert code == 0, err
    two = several(2, run, root, tmp_path / "out", *how)
    parts = [tmp_path / "out" / "answers" / f"pope.part{number}.jsonl" for number in (0, 1)]
    while two[1].poll() is None and not all(part.exists() and os.path.getsize(part) for part in parts):
        pass
    for each in reversed(two):
        each.send_signal(signal.SIGKILL)
        each.wait()
    kept = sum(len(part.read_text().splitlines()) for part in parts)
    assert 2 <= kept < 24

    more = several(3, run, root, tmp_path / "out", *how, "--benchmarks=chartqa,pope,mme")
    ended = [each.wait() for each in more]
    assert [code for code, _, _ in ended] == [2, 0, 0], ended
    assert [out for _, out, _ in ended] == [whole, "", ""]
    told = ended[0][2].splitlines()[-1]
    assert told.startswith("error: chartqa: ") and " | mme: " in told and "Traceback" not in str(ended)
    assert lines(tmp_path / "out") == lines(tmp_path / "whole")
    assert not list((tmp_path / "out").rglob("*.part*"))
    asked = json.loads((tmp_path / "out" / "pope.json").read_text())["settings"]["asked"]
    assert 24 - kept - 1 <= asked < 23


@pytest.mark.slow
def test_several_processes_end_when_they_are_told(run, root, tmp_path):
    two = several(2, run, root, tmp_path, "--beams=2", "--batch_size=1", "--max_new_tokens=24")
    parts = [tmp_path / "answers" / f"pope.part{number}.jsonl" for number in (0, 1)]
    while two[1].poll() is None and not all(part.exists() and os.path.getsize(part) for part in parts):
        pass
    for each in two:
        each.send_signal(signal.SIGTERM)
    ended = [each.wait() for each in two]
    assert [code for code, _, _ in ended] == [143, 143], ended
    assert all(err.splitlines()[-1] == "error: terminated" for _, _, err in ended)
    assert sum(len(part.read_text().splitlines()) for part in parts) < 24


def test_what_processes_left_is_put_together(run, root, tmp_path, says):
    says()
    evaluate(run, root, tmp_path / "whole")
    written, answers = lines(tmp_path / "whole"), tmp_path / "out" / "answers"
    answers.mkdir(parents=True)
    for number, part in enumerate((written[1:9], written[5:20])):
        text = "".join(json.dumps(line) + "\n" for line in part)
        (answers / f"pope.part{number}.jsonl").write_text(text[: -20 * number or None])  # the second was killed
    answerer = says()
    evaluate(run, root, tmp_path / "out")
    assert len(answerer.asked) == 24 - 18 and [line["index"] for line in lines(tmp_path / "out")] == list(range(24))
    assert lines(tmp_path / "out")[1:19] == written[1:19] and len(list(answers.iterdir())) == 1

    (answers / "mmstar.part0.jsonl").write_text('{"index": 0, "id": "0", "ques')
    (result,) = evaluate(run, root, tmp_path / "out", ["mmstar"])
    assert result["failed"] == 0 and len(list(answers.iterdir())) == 2

    (answers / "pope.part3.jsonl").write_text(json.dumps(written[0] | {"source": "another"}) + "\n")
    before = (answers / "pope.jsonl").read_bytes()
    (stopped,) = evaluate(run, root, tmp_path / "out")
    assert "pope.part3.jsonl holds answers of another measurement" in str(stopped)
    assert (answers / "pope.jsonl").read_bytes() == before
