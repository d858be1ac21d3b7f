"""Answers in files, scored: by the program and by the function; what is wrong is named, counted, left out or fatal."""

import json
import shutil
import subprocess
import sys

import pytest

from programs import Program, launch
from test_benchmarks import EXPECTED, ROOT, write_answers
from trol_jax.errors import UserError
from trol_jax.evals import score


@pytest.fixture
def answers(tmp_path):
    write_answers(tmp_path / "answers", "pope")
    return tmp_path / "answers"


def program(*flags):
    return Program(launch("evaluate"), *flags).wait()


def result(answers, output, name="pope", **options):
    (found,) = score.score(ROOT, [name], answers, output, **options)
    return found


def change(answers, edit, name="pope"):
    file = answers / f"{name}.jsonl"
    lines = file.read_text().splitlines()
    edit(lines)
    file.write_text("\n".join(lines) + "\n")


def test_the_program_writes_results_and_samples(answers, tmp_path):
    write_answers(answers, "seed")
    code, out, err = program(
        "--benchmarks=pope,seed",
        f"--root={ROOT}",
        f"--answers={answers}",
        "--scoring=standard",
        f"--output={tmp_path}/out",
    )
    assert code == 0 and err == "" and len(out.splitlines()) == 2
    found = json.loads((tmp_path / "out" / "pope.json").read_text())
    counts = {name: found[name] for name in ("n", "answered", "unparsed", "failed", "missing", "bad_rows")}
    assert counts == {"n": 24, "answered": 24, "unparsed": 1, "failed": 0, "missing": 0, "bad_rows": 0}
    assert (found["scoring"], found["judge"], found["settings"]["answers"]) == ("standard", "none", str(answers))
    assert found["settings"]["source"] is None
    assert 0 < found["value"] < 100 and 0 < found["standard_error"] < 50 and "F1" in found["scorer"]
    samples = [json.loads(line) for line in (tmp_path / "out" / "pope.samples.jsonl").read_text().splitlines()]
    assert len(samples) == 24 and samples[0] == {
        "index": 0,
        "id": 1,
        "prompt": "<image>Is there a green in the image?\nAnswer the question using a single word or phrase.",
        "images": ["coco2014/val2014/COCO_val2014_000000028437.jpg"],
        "answer": "Yes, there is.",
        "parsed": "yes",
        "gold": "no",
        "score": 0.0,
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{name}.{end}" for name in ("pope", "seed") for end in ("json", "samples.jsonl")
    }


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "give --checkpoint to measure a run, or --benchmarks to score answers"),
        (["--answers=x", "--bad_rows=skip"], "--answers, --bad_rows cannot go with --checkpoint alone"),
        (["--benchmarks=pope", "--checkpoint=x", "--answers=x"], "--answers cannot go with --checkpoint"),
        (["--benchmarks=pope", "--answers=x", "--limit=3"], "--limit cannot go with --answers"),
        (["--benchmarks=pope", "--checkpoint=x", "--root=x"], "--output is missing"),
        (["--benchmarks=pope", "--root=x", "--output=x"], "--answers is missing"),
        (["--benchmarks=pop", "--root=x", "--answers=x", "--output=x"], "'pop' is not a benchmark; did you mean"),
        (["--benchmarks=all", "--root=x", "--answers=x", "--output=x"], "x holds no answers"),
        (
            ["--benchmarks=seed", "--root=nowhere", "--answers=x", "--output=x"],
            "seed: nowhere/SEED-Bench/SEED-Bench.json",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_named(flags, said):
    code, out, err = program(*flags)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and said in err and err.count("\n") == 1


def test_scoring_needs_no_jax():
    code = "import sys, trol_jax.evals.score; print({'jax', 'pyarrow', 'numpy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_all_are_those_with_answers(tmp_path):
    for name in EXPECTED:
        write_answers(tmp_path / "answers", name)
    found = list(score.score(ROOT, ["all"], tmp_path / "answers", tmp_path / "out", scoring="standard"))
    assert [each["benchmark"] for each in found] == [name for name in score.BENCHMARKS if name in EXPECTED]
    for each in found:
        text = (tmp_path / "out" / f"{each['benchmark']}.json").read_text()
        assert json.loads(text) == json.loads(json.dumps(each)) and "NaN" not in text
        assert len(score.report(each).splitlines()) == 1
    unscored = {each["benchmark"] for each in found if each["value"] is None}
    assert unscored == {"vqav2", "vizwiz", "mm-vet", "llava", "mmbench", "mmbench_cn"}


def test_a_question_of_mmbench_without_all_its_rows_does_not_count(tmp_path):
    """Neither by its other rows, nor by those beyond the part that is scored."""
    header, rows = "index\tquestion\tA\tB\tC\tD\tanswer\timage\n", []
    for turn, gold in enumerate("AB"):
        rows += [f"{number + 1_000_000 * turn}\tWhich?\tp\tq\t\t\t{gold}\t{'x' * 300}\n" for number in (1, 2, 3)]
    file = tmp_path / "MMBench" / "mmbench_dev_20230712.tsv"
    file.parent.mkdir()
    file.write_text(header + "".join(rows))

    def measured(said, **more):
        lines = [{"index": index, "id": None, "answer": answer} for index, answer in enumerate(said) if answer]
        (tmp_path / "mmbench_dev.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        options = dict(scoring="standard", bad_rows="skip", **more)
        return score.score_one(score.BENCHMARKS["mmbench_dev"], tmp_path, tmp_path, tmp_path / "out", **options)

    assert [measured("AAABBA")[name] for name in ("value", "n")] == [pytest.approx(200 / 3), 3]
    some = measured(["A", "A", "A", "B", None, "A"])
    assert (some["value"], some["n"], some["missing"], some["answered"]) == (50, 2, 1, 5)
    part = measured("AAABBA", part=slice(0, 4))
    assert (part["value"], part["n"], part["splits"]["every_row"]["value"]) == (100, 1, 100)
    first = measured("AAABBA", part=slice(0, 3))
    assert (first["value"], first["n"]) == (None, 0)

    text = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*text[:5], text[5].replace("Which?\tp\tq", "Which?\t\t"), *text[6:]]))  # 2, turned
    bad = measured("AAAB A")
    assert (bad["value"], bad["n"], bad["bad_rows"]) == (50, 2, 1)


def test_what_lacks_an_answer_is_no_right_question_or_figure_of_hallusionbench(tmp_path):
    same = {"category": "VD", "subcategory": "map", "set_id": "0", "gt_answer": "1", "question": "?", "filename": None}
    asked = [same | {"figure_id": figure, "question_id": number} for figure in "12" for number in "01"]
    file = tmp_path / "HallusionBench" / "HallusionBench.json"
    file.parent.mkdir()

    def splits(said, rows=asked):
        file.write_text(json.dumps(rows))
        lines = [{"index": index, "id": None, "answer": answer} for index, answer in enumerate(said) if answer]
        (tmp_path / "hallusionbench.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        benchmark, options = score.BENCHMARKS["hallusionbench"], dict(scoring="standard", bad_rows="skip")
        found = score.score_one(benchmark, tmp_path, tmp_path, tmp_path / "out", **options)["splits"]
        return [(found[name]["value"], found[name]["n"]) for name in ("aAcc", "qAcc", "fAcc")]

    assert splits(["yes", "yes", "yes", "no"]) == [(75, 4), (50, 2), (50, 2)]
    assert splits(["yes", "yes", "yes", None]) == [(100, 3), (100, 1), (100, 1)]
    bad = [*asked[:3], asked[3] | {"gt_answer": "2"}]
    assert splits(["yes", "no", "yes", None], bad) == [(pytest.approx(200 / 3), 3), (100, 1), (0, 1)]


def test_a_picture_of_mme_without_both_answers_counts_for_accuracy_alone(tmp_path):
    folder = tmp_path / "MME_Benchmark_release_version"
    (folder / "count").mkdir(parents=True)
    rows = [
        {"question_id": f"count/{name}.jpg", "image": f"count/{name}.jpg", "text": text, "category": "count"}
        for name in "abc"
        for text in ("One?", "Two?")
    ]
    for name in "abc":
        (folder / "count" / f"{name}.txt").write_text("One?\tYes\nTwo?\tNo\n")

    def measured(said, rows=rows, scoring="standard", **more):
        (folder / "llava_mme.json").write_text(json.dumps(rows))
        lines = [{"index": index, "id": None, "answer": answer} for index, answer in enumerate(said) if answer]
        (tmp_path / "mme.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        options = dict(scoring=scoring, bad_rows="skip", **more)
        return score.score_one(score.BENCHMARKS["mme"], tmp_path, tmp_path, tmp_path / "out", **options)

    right, no = ["yes", "no"], None
    assert measured(right * 2 + ["no", "no"])["value"] == pytest.approx(100 * 5 / 6 + 100 * 2 / 3)
    less = measured(right * 2 + ["yes", no])
    assert (less["value"], less["n"], less["missing"]) == (pytest.approx(200), 5, 1)
    assert measured(right * 3, part=slice(0, 5))["value"] == pytest.approx(200)
    assert measured(right * 3, part=slice(0, 1))["value"] is None
    bad = [*rows[:5], rows[5] | {"text": "Three?"}]
    assert measured(right * 3, bad)["value"] == pytest.approx(200)
    assert measured(right * 3, [*rows[:5], 7])["value"] == pytest.approx(200)  # whose picture is not known
    assert measured([*right * 2, "yes", no], scoring="trol")["value"] == pytest.approx(100 + 100 * 2 / 3)
    assert len(less["absent"]) == 13
    for again in (rows[:1], rows[:2]):  # of what stands twice the first counts
        assert measured([*right * 3, "no", "no"], rows + again)["value"] == pytest.approx(200)
    (folder / "count" / "a.txt").write_text("One?\tYes\nTwo?\tNo\nThree?\tNo\n")
    three = [*rows, rows[0] | {"text": "Three?"}]  # right are two of three, which is no pair
    assert measured([*right * 3, "yes"], three)["value"] == pytest.approx(100 * 6 / 7 + 100)


def test_the_source_of_answers_is_told(answers, tmp_path):
    change(answers, lambda lines: lines.__setitem__(0, lines[0].replace("}", ', "source": "run a, beams 5"}')))
    assert result(answers, tmp_path)["settings"]["source"] == "run a, beams 5"


def test_order_and_index_do_not_matter_where_the_id_says_enough(tmp_path):
    write_answers(tmp_path, "seed")
    before = result(tmp_path, tmp_path / "a", "seed")
    change(tmp_path, lambda lines: lines.reverse(), "seed")
    change(tmp_path, lambda lines: lines.__setitem__(0, lines[0].replace('"index": ', '"index": 1')), "seed")
    assert result(tmp_path, tmp_path / "b", "seed") == before
    assert (tmp_path / "a" / "seed.samples.jsonl").read_bytes() == (tmp_path / "b" / "seed.samples.jsonl").read_bytes()


def test_an_index_alone_is_enough(answers, tmp_path):
    before = result(answers, tmp_path / "a")
    strip = lambda line: json.dumps({key: value for key, value in json.loads(line).items() if key != "id"})  # noqa: E731
    change(answers, lambda lines: lines.__setitem__(slice(None), map(strip, lines[::-1])))
    assert result(answers, tmp_path / "b") == before


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"index": 0, "id": 1, "answer": "no"}', "row 25: is a second answer to question 0"),
        ('{"index": 3, "id": 77, "answer": "no"}', "row 25: there is no question with the id '77'"),
        (
            '{"index": 1, "id": 1, "answer": "no"}',
            "row 25: 3 questions have the id '1', and \"index\" says none of them",
        ),
        ('{"index": 99, "answer": "no"}', 'row 25: without "id", "index" must be a number from 0 to 23'),
        ('{"index": "1", "id": 1, "answer": "no"}', 'row 25: "index" is "1", must be int'),
        ('{"index": 0, "id"', "row 25: is no object"),
    ],
)
def test_bad_answers_are_named_and_fatal_or_counted(answers, tmp_path, line, said):
    clean = result(answers, tmp_path / "clean")
    change(answers, lambda lines: lines.append(line))
    stopped = result(answers, tmp_path / "out")
    assert isinstance(stopped, UserError) and f"{answers / 'pope.jsonl'}, {said}" in str(stopped)
    assert "--bad_rows=skip" in str(stopped) and not (tmp_path / "out").exists()
    found = result(answers, tmp_path / "out", bad_rows="skip")
    assert found["bad_rows"] == 1 and said in found["bad"][0] and found["value"] == clean["value"]


def test_missing_and_failed_answers_are_counted_and_left_out(answers, tmp_path):
    def edit(lines):
        lines[0] = '{"index": 0, "id": 1, "error": "the picture is damaged"}'
        lines[1] = '{"index": 1, "id": 2, "answer": 7}'
        del lines[5]

    change(answers, edit)
    stopped = str(result(answers, tmp_path / "out"))
    assert "bad rows: 1" in stopped and "the picture is damaged" in stopped
    assert "questions without an answer: 2" in stopped and "question 1, id 2" in stopped and "\n" not in stopped
    found = result(answers, tmp_path / "out", bad_rows="skip")
    counts = {name: found[name] for name in ("n", "failed", "missing", "bad_rows")}
    assert counts == {"n": 21, "failed": 1, "missing": 2, "bad_rows": 1}


@pytest.mark.parametrize(
    "name, trol, standard",
    [
        ("visualwebbench", ["web_caption", "webqa"], ["web_caption", "webqa"]),
        ("chartqa", [], ["human"]),  # which the original does not ask
        ("pope", [], []),
    ],
)
def test_parts_that_a_root_lacks_are_told(tmp_path, name, trol, standard):
    root = shutil.copytree(ROOT, tmp_path / "root")
    for task in ("web_caption", "webqa"):
        shutil.rmtree(root / "VisualWebBench" / task)
    write_answers(tmp_path / "answers", name)
    for scoring, absent in (("trol", trol), ("standard", standard)):
        how = dict(scoring=scoring, bad_rows="skip")
        (found,) = score.score(root, [name], tmp_path / "answers", tmp_path / "out", **how)
        assert found["absent"] == absent and json.loads((tmp_path / "out" / f"{name}.json").read_text()) == found
        assert (f", without {', '.join(absent)} (" in score.report(found)) == bool(absent)
    assert result(tmp_path / "answers", tmp_path / "out", name, bad_rows="skip")["absent"] == []


def test_bad_questions_are_left_out_with_their_answers(answers, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(ROOT / "POPE", root / "POPE")
    file = root / "POPE" / "coco_pope_popular.json"
    file.write_text(file.read_text().replace('"label"', '"lable"', 1))
    (stopped,) = score.score(root, ["pope"], answers, tmp_path / "out")
    assert 'POPE/coco_pope_popular.json, row 1: there is no field "label"' in str(stopped)
    (found,) = score.score(root, ["pope"], answers, tmp_path / "out", bad_rows="skip")
    assert (found["n"], found["bad_rows"], found["missing"]) == (23, 1, 0)
    assert sum(found["splits"]["popular"][name] for name in ("tp", "fp", "tn", "fn")) == 7
    (found,) = score.score(root, ["pope"], answers, tmp_path / "out", bad_rows="skip", pictures=True)
    assert found["bad_rows"] == 24 and found["value"] is None and found["n"] == 0


def test_the_original_keeps_the_first_of_an_id(tmp_path):
    rows = [{"imgname": "a.png", "query": q, "label": "3"} for q in ("one?", "two?")]
    (tmp_path / "chartqa" / "test").mkdir(parents=True)
    for split in ("augmented", "human"):
        (tmp_path / "chartqa" / "test" / f"test_{split}.json").write_text(json.dumps(rows))
    lines = [{"index": i, "id": "a.png", "answer": said} for i, said in enumerate(["3", "4", "4", "3.1"])]
    (tmp_path / "chartqa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {
        name: next(score.score(tmp_path, ["chartqa"], tmp_path, tmp_path / name, scoring=name))
        for name in score.SCORINGS
    }
    assert found["trol"]["n"] == 1 and found["trol"]["value"] == 100
    assert found["standard"]["n"] == 4 and found["standard"]["value"] == 50  # 3.1 is within 5%
