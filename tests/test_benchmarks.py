"""Reading the benchmarks: questions and scores equal the original's; what is wrong with a row is named."""

import base64
import functools
import json
import shutil
from pathlib import Path

import pytest

import fixtures
from trol_jax.data.easy_vqa import EasyVQA
from trol_jax.errors import UserError
from trol_jax.evals import easy_vqa, runner, score
from trol_jax.evals.benchmarks import BENCHMARKS, mathvista
from trol_jax.evals.files import BadRow, Root, Row
from trol_jax.evals.instructions import INSTRUCTIONS, instruct
from trol_jax.evals.items import Item

GOLDEN = Path(__file__).parent / "data" / "golden" / "eval"
ROOT = GOLDEN / "root"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
PUBLISHED = [benchmark.name for benchmark in BENCHMARKS.values() if benchmark.published]
JOINED = ("TextVQA_0.5.1_val.json", "context.jsonl", "answers_gpt4.jsonl")  # to rows of another file


@functools.cache
def read(name):
    """Items by what tells them apart, in the original's order where that does not depend on the file system."""
    items = list(BENCHMARKS[name].read(Root(ROOT, pictures=False)))
    return sorted(items, key=lambda item: item.id) if name in ("mmmu", "visualwebbench") else items


def recorded(name):
    rows = list(zip(EXPECTED[name]["items"], EXPECTED[name]["predictions"], strict=True))
    return sorted(rows, key=lambda row: row[0]["id"]) if name in ("mmmu", "visualwebbench") else rows


def write_answers(folder, name):
    lines = [{"index": i, "id": row["id"], "answer": said} for i, (row, said) in enumerate(recorded(name))]
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def numbers(value, path=""):
    if isinstance(value, dict):
        return {key: each for name, inner in value.items() for key, each in numbers(inner, f"{path}/{name}").items()}
    return {path: value}


def test_every_recorded_benchmark_is_known():
    assert {*EXPECTED} == {*BENCHMARKS} - {"qbench_cn", "textvqa_no_ocr", "easy_vqa"}
    assert all(benchmark.asks_as() in INSTRUCTIONS for benchmark in BENCHMARKS.values())
    assert all({*benchmark.scorings} == {"trol", "standard"} for benchmark in BENCHMARKS.values())


@pytest.mark.parametrize("name", EXPECTED)
def test_questions_equal_the_original(name):
    items, rows = read(name), recorded(name)
    assert [(str(item.id), item.question) for item in items] == [(str(row["id"]), row["question"]) for row, _ in rows]
    for item, (row, _) in zip(items, rows, strict=True):
        if isinstance(row["image"], str) and not row["image"].startswith("<"):
            assert item.images == ((row["image"],) if row["image"] else ())
        assert INSTRUCTIONS[name].max_new_tokens == EXPECTED[name]["max_new_tokens"]
        assert item.question in instruct(name, item.question)


@pytest.mark.parametrize("name", ["mmstar", "mmmu", "visualwebbench", "mmbench", "mmbench_cn_dev"])
def test_embedded_pictures_equal_the_original(name):
    items = {str(item.id): item for item in BENCHMARKS[name].read(Root(ROOT))}
    for row in EXPECTED[name]["items"]:
        sizes = row["image"] if isinstance(row["image"], list) else [row["image"]]
        images = items[str(row["id"])].images
        if name.startswith("mmbench"):
            assert [f"<base64 {len(base64.b64encode(image))}>" for image in images] == sizes
        else:
            assert [f"<{len(image)} bytes>" for image in images] == sizes
        assert all(image.startswith((b"\x89PNG", b"\xff\xd8")) for image in images)


@pytest.mark.parametrize("name", EXPECTED)
def test_scores_equal_the_original(name, tmp_path):
    write_answers(tmp_path / "answers", name)
    (result,) = score.score(ROOT, [name], tmp_path / "answers", tmp_path / "out", scoring="trol")
    wanted = EXPECTED[name]["score"]
    if isinstance(wanted, dict):
        assert numbers(result["splits"]) == pytest.approx(numbers(wanted), abs=1e-6)
    else:
        assert result["value"] == (pytest.approx(wanted, abs=1e-6) if isinstance(wanted, float) else None)
    assert result["answered"] == len(EXPECTED[name]["items"]) - (name == "gqa")  # one is not balanced


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_scorings_take_any_answer(name):
    items = [item for item in BENCHMARKS[name].read(Root(ROOT, pictures=False)) if isinstance(item, Item)]
    strange = (
        "",
        " ",
        "A",
        "(",
        "....",
        "é\n\t",
        "The answer is ",
        "nan",
        "1e999",
        "9" * 5000,
        "%",
        "A B C D",
        "<",
        "=",
    )
    for rules in BENCHMARKS[name].scorings.values():
        for answer in strange:
            scores = [rules.mark(item, rules.parse(item, answer)) for item in items]
            assert all(value is None or 0 <= value <= 1 for value in scores)
        assert rules.summarise([]).value is None


def test_the_chinese_questions_of_qbench_are_read():
    items = list(BENCHMARKS["qbench_cn"].read(Root(ROOT, pictures=False)))
    assert len(items) > 1 and items[0].gold in "ABCD"
    assert BENCHMARKS["qbench_cn"].asks_as() == "qbench"


@pytest.mark.parametrize("name", PUBLISHED)
def test_any_field_that_is_missing_or_of_another_type_is_named(name, monkeypatch):
    """Each field of the first row of each file in turn: what comes is an item, a bad row with its place, or one line
    about a file.
    """
    fields, seen = set(), []

    def spoil(method):
        def rows(self, *arguments, **options):
            for place, row in enumerate(method(self, *arguments, **options)):
                if place == 0 and isinstance(row.data, dict):
                    fields.update((row.file, field) for field in row.data)
                    if seen and seen[0][0] == row.file:
                        _, field, value = seen[0]
                        data = {**row.data, field: value}
                        row = Row({k: v for k, v in data.items() if v is not Ellipsis}, row.file, row.number)
                yield row

        return rows

    for method in ("objects", "entries", "table", "parquet"):
        monkeypatch.setattr(Root, method, spoil(getattr(Root, method)))
    root = Root(ROOT, pictures=False)
    good = list(BENCHMARKS[name].read(root))
    assert all(isinstance(each, Item) for each in good)
    named = 0
    for file, field in sorted(fields):
        for value in (..., None, [], {}, 7, True, ""):
            seen[:] = [(file, field, value)]
            try:
                bad = [each for each in BENCHMARKS[name].read(root) if isinstance(each, BadRow)]
            except UserError as error:
                bad = [error]
            assert len(bad) <= 1
            assert all(file in str(each) and "\n" not in str(each) for each in bad)
            named += len(bad)
    assert named > 0


def test_rows_that_are_no_objects_are_named(tmp_path):
    folder = tmp_path / "POPE"
    shutil.copytree(ROOT / "POPE", folder)
    file = folder / "coco_pope_popular.json"
    file.write_text('{"question_id": 1}\n\n7\nnot json\n')
    items = list(BENCHMARKS["pope"].read(Root(tmp_path, pictures=False)))
    assert [str(each) for each in items[:3]] == [
        'POPE/coco_pope_popular.json, row 1: there is no field "label"',
        "POPE/coco_pope_popular.json, row 3: is 7, must be an object",
        'POPE/coco_pope_popular.json, row 4: is "not json", must be an object',
    ]
    assert len(items) == 3 + 16


@pytest.mark.parametrize("path", ["../secret.png", "a/../../b.png", "/etc/passwd", "a\0.png"])
def test_pictures_outside_of_the_root_are_refused(path):
    row = Row({}, "file.json", 3)
    with pytest.raises(BadRow, match=r"file.json, row 3: the picture .* lies outside of the root"):
        Root(ROOT, pictures=False).picture(row, path)
    if not path.startswith("/"):
        with pytest.raises(BadRow):
            Root(ROOT, pictures=False).picture(row, "folder", path.replace("../secret", "../../secret"))


def test_pictures_are_looked_for_where_they_are_wanted(tmp_path):
    shutil.copytree(ROOT / "HallusionBench", tmp_path / "HallusionBench")
    for place, item in enumerate(read("hallusionbench")):
        for image in item.images:
            (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
            name = tmp_path / image if place else (tmp_path / image).with_suffix(".PNG")  # as it is there
            name.write_bytes(b"picture")
    root = Root(tmp_path)
    first, second, *rest = BENCHMARKS["hallusionbench"].read(root)
    assert all(isinstance(each, Item) for each in (first, second, *rest))
    assert (root.path / root.spelled(first.images[0])).read_bytes() == b"picture"
    (tmp_path / second.images[0]).unlink()
    first, second, *rest = BENCHMARKS["hallusionbench"].read(root)
    assert "HallusionBench/HallusionBench.json, row 2: the picture" in str(second) and "cannot be read" in str(second)


def test_names_that_no_file_can_have_make_bad_rows(tmp_path):
    shutil.copytree(ROOT / "POPE", tmp_path / "POPE")
    (tmp_path / "coco2014" / "val2014").mkdir(parents=True)
    file = tmp_path / "POPE" / "coco_pope_popular.json"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row, name in zip(rows, ("x" * 300 + ".png", "\ud800.png"), strict=False):
        row["image"] = name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = Root(tmp_path)
    for row, each in enumerate(list(BENCHMARKS["pope"].read(root))[:2], start=1):
        assert str(each).startswith(f"POPE/coco_pope_popular.json, row {row}: the picture")
    (first, *_) = BENCHMARKS["pope"].read(Root(tmp_path, look=False))
    assert root.spelled(first.images[0]) == first.images[0]


def test_a_missing_benchmark_stops_no_other(tmp_path):
    shutil.copytree(ROOT / "ai2d", tmp_path / "ai2d")
    for name in ("ai2d", "seed", "mmmu", "mmstar"):
        write_answers(tmp_path / "answers", name)
    found = list(score.score(tmp_path, ["all"], tmp_path / "answers", tmp_path / "out"))
    stopped = [str(each) for each in found if isinstance(each, UserError)]
    assert [each["benchmark"] for each in found if isinstance(each, dict)] == ["ai2d"]
    assert len(stopped) == 3 and all(str(tmp_path) in each and "\n" not in each for each in stopped)


@pytest.mark.parametrize("value, digits", [(None, 0), (float("nan"), 0), (2.0, 2), (float("inf"), None), (-1.0, None)])
def test_mathvista_rounds_to_a_number_of_digits(value, digits):
    row = Row({"precision": value}, "testmini.parquet", 3)
    if digits is None:
        with pytest.raises(BadRow, match=r'row 3: "precision" is .*, must be a number of digits'):
            mathvista.digits(row)
    else:
        assert mathvista.digits(row) == digits


def test_every_picture_of_mmmu_comes_in_the_order_of_the_question(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    row = {
        "id": "validation_Art_1", "question": "Is <image 2> older than <image 1>, <image 2>?",
        "options": "['<image 1>', 'no']", "question_type": "multiple-choice", "answer": "A",
        "image_1": {"bytes": b"one", "path": "1.png"}, "image_2": {"bytes": b"two", "path": None},
    }  # fmt: skip
    folder = tmp_path / "MMMU" / "Art"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row]), folder / "validation-00000-of-00001.parquet")
    (item,) = BENCHMARKS["mmmu"].read(Root(tmp_path))
    assert item.images == (b"two", b"one")
    assert item.question == "Is <image> older than <image>, <image 2>?\nA. <image 1> B. no"


def test_mmbench_rows_may_name_the_row_that_has_their_picture(tmp_path):
    picture = base64.b64encode(b"x" * 300).decode()
    header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\timage\n"
    lines = [
        f"7\tWhich?\tnan\tp\tq\t\t\tA\t{picture}\n",
        '1000007\t"a\tb"\t\tq\tp\t\t\tB\t7\n',
        "8\tWhich?\t\tp\tq\t\t\tA\t9\n",
    ]
    (tmp_path / "MMBench").mkdir()
    (tmp_path / "MMBench" / "mmbench_dev_20230712.tsv").write_text(header + "".join(lines))
    first, turned, bad = BENCHMARKS["mmbench_dev"].read(Root(tmp_path))
    assert first.images == turned.images == (b"x" * 300,)
    assert first.question == "Which?\nA. p\nB. q" and turned.question == "a\tb\nA. q\nB. p"
    assert isinstance(bad, BadRow) and "row 3" in str(bad)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_bad_row_of_any_benchmark_is_fatal_or_counted(name, tmp_path, monkeypatch):
    """The first row of all is a number in place of a row."""
    items = list(BENCHMARKS[name].read(Root(ROOT, pictures=False)))
    lines = [{"index": index, "answer": "yes"} for index in range(len(items))]
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spoiled = []

    def spoil(method):
        def rows(self, file, *arguments, **options):
            for row in method(self, file, *arguments, **options):
                if not spoiled and not file.endswith(JOINED):
                    spoiled.append(row)
                    row = Row(7, row.file, row.number)
                yield row

        return rows

    for method in ("objects", "entries", "table", "parquet"):
        monkeypatch.setattr(Root, method, spoil(getattr(Root, method)))
    (error,) = score.score(ROOT, [name], tmp_path, tmp_path / "out", bad_rows="fail")
    where = f"{spoiled[0].file}, row {spoiled[0].number}: "
    assert isinstance(error, UserError) and "bad rows: 1, " in str(error) and where in str(error)
    spoiled.clear()
    (result,) = score.score(ROOT, [name], tmp_path, tmp_path / "out", bad_rows="skip")
    assert result["bad_rows"] == 1 and result["bad"][0].startswith(where)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_picture_that_is_missing_makes_a_bad_row(name):
    """No picture lies beside the recorded files."""
    whole = list(BENCHMARKS[name].read(Root(ROOT, look=False)))
    looked = list(BENCHMARKS[name].read(Root(ROOT)))
    for item, seen in zip(whole, looked, strict=True):
        beside = any(isinstance(image, str) for image in item.images)
        assert isinstance(seen, BadRow if beside else Item)
        assert not beside or (", row " in str(seen) and "cannot be read" in str(seen))


# ---------------------------------------------------------------------- easy-VQA


@pytest.fixture
def easy(tmp_path):
    """A root with 3 pictures of easy-VQA."""
    fixtures.save_data(tmp_path / "easy-vqa")
    return tmp_path


def test_easy_vqa_is_asked_and_scored_as_the_quickstart_does(easy):
    rows = EasyVQA("test", easy / "easy-vqa").questions()
    items = list(BENCHMARKS["easy_vqa"].read(Root(easy)))
    assert [(item.id, instruct("easy_vqa", item.question), item.gold, *item.images) for item in items] == [
        (row["id"], f"<image>{row['question']}", row["answer"], Path(row["image"]).read_bytes()) for row in rows
    ]
    assert INSTRUCTIONS["easy_vqa"].max_new_tokens == runner.MAX_NEW_TOKENS
    said = [[row["answer"], "Yes ", "", "no"][i % 4] for i, row in enumerate(rows)]
    wanted = easy_vqa.score([{**row, "prediction": text} for row, text in zip(rows, said, strict=True)])
    lines = [{"id": row["id"], "answer": text} for row, text in zip(rows, said, strict=True)]
    (easy / "easy_vqa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (result,) = score.score(easy, ["all"], easy, easy / "out")
    assert (result["value"], result["n"]) == (pytest.approx(100 * wanted["accuracy"]), wanted["n"])
    assert result["standard_error"] == pytest.approx(100 * wanted["standard_error"])
    kinds = {kind: part["value"] for kind, part in result["splits"]["kind"].items()}
    assert kinds == pytest.approx({kind: 100 * part["accuracy"] for kind, part in wanted["by_kind"].items()})


def test_easy_vqa_of_the_package_needs_no_root(tmp_path):
    assert len(list(BENCHMARKS["easy_vqa"].read(Root(tmp_path, pictures=False)))) == 9673
    assert "easy_vqa" not in [benchmark.name for benchmark in score.chosen(["all"])]


@pytest.mark.parametrize("row", [["red?", "perhaps", 1], ["red?", "no"], 7, ["red?", "no", "1"], {}, ["red?", "no", 9]])
def test_bad_rows_of_easy_vqa_are_named(easy, row):
    file = easy / "easy-vqa" / "test" / "questions.json"
    file.write_text(json.dumps([row, *json.loads(file.read_text())]))
    lines = "".join(json.dumps({"index": index, "answer": "no"}) + "\n" for index in range(13))
    (easy / "easy_vqa.jsonl").write_text(lines)
    (result,) = score.score(easy, ["easy_vqa"], easy, easy / "out", bad_rows="skip", pictures=True)
    assert (result["bad_rows"], result["n"]) == (1, 12)
    bad, *good = BENCHMARKS["easy_vqa"].read(Root(easy))
    assert isinstance(bad, BadRow) and str(bad).startswith("test/questions.json, row 1: ")
    assert len(good) == 12 and all(isinstance(each, Item) for each in good)
