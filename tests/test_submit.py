"""Files for servers and other scorers: their formats, and that every question is in them."""

import io
import json
import zipfile
from xml.etree import ElementTree

import pytest

from test_benchmarks import EXPECTED, ROOT, recorded, write_answers
from trol_jax.evals import score, submit, xlsx

MAIN = f"{{{xlsx.MAIN}}}"


def submitted(name, tmp_path, scoring="standard", lose=0):
    tmp_path.mkdir(exist_ok=True)
    write_answers(tmp_path / "answers", name)
    file = tmp_path / "answers" / f"{name}.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[lose:]))
    options = dict(scoring=scoring, bad_rows="skip", submission=True)
    (result,) = score.score(ROOT, [name], tmp_path / "answers", tmp_path / "out", **options)
    file = tmp_path / "out" / "submission" / f"{name}.{submit.FORMATS[name][0]}"
    assert result["submission"] == str(file)
    return file.read_bytes()


def cells(data):
    """Rows of a sheet as {column: value}."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            ElementTree.fromstring(archive.read(name))
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    rows = []
    for row in sheet.iter(f"{MAIN}row"):
        places = {cell.get("r").rstrip("0123456789"): cell for cell in row}
        rows.append({at: "".join(cell.itertext()) for at, cell in places.items()})
    return rows


def test_vqav2_has_every_question(tmp_path):
    answers = json.loads(submitted("vqav2", tmp_path, lose=1))
    assert len(answers) == len(EXPECTED["vqav2"]["items"]) and {*answers[0]} == {"question_id", "answer"}
    assert answers[0]["answer"] == "" and all(isinstance(each["question_id"], int) for each in answers)
    raw = json.loads(submitted("vqav2", tmp_path / "raw", "trol"))
    assert [each["answer"] for each in raw] == EXPECTED["vqav2"]["predictions"]
    assert [each["answer"] for each in raw] != [each["answer"] for each in answers]


def test_vizwiz_names_pictures(tmp_path):
    answers = json.loads(submitted("vizwiz", tmp_path))
    assert [each["image"] for each in answers] == [row["image"].split("/")[-1] for row, _ in recorded("vizwiz")]
    assert all({*each} == {"image", "answer"} and each["image"].endswith(".jpg") for each in answers)


@pytest.mark.parametrize("name", ["mmbench", "mmbench_cn_dev"])
def test_mmbench_is_a_table(tmp_path, name):
    header, *rows = cells(submitted(name, tmp_path))
    names = ["index", "question", "A", "B", "C", "D", "prediction"] + ["answer"] * name.endswith("dev") + ["split"]
    assert {*header.values()} >= {*names[:7]} and list(header.values())[:7] == names[:7]
    assert not {*header.values()} & {"hint", "image", "category"}
    assert [int(row["A"]) for row in rows] == [int(item["id"]) for item, _ in recorded(name)]
    assert any(row.get("G") in ("A", "B", "C", "D") for row in rows)
    first = (ROOT / "MMBench").glob("*CN*" if name == "mmbench_cn" else "*")
    assert any(rows[0]["B"] in file.read_text() for file in first)


def test_a_table_holds_any_text():
    texts = ["<&>\"'", " a\nb ", "=1+1", "\x00\ufffe\ud800é中😀", "x" * 40_000, None, "", 7]
    (row,) = cells(xlsx.table([texts]))
    assert row["A"] == texts[0] and row["B"] == texts[1] and row["C"] == "=1+1" and row["D"] == "é中😀"
    assert len(row["E"]) == 32_767 and "F" not in row and "G" not in row and row["H"] == "7"
    assert xlsx.table([texts]) == xlsx.table([texts])
    assert [xlsx.letters(column) for column in (0, 25, 26, 51, 52)] == ["A", "Z", "AA", "AZ", "BA"]


def test_mmmu_has_letters_or_the_answer(tmp_path):
    answers = json.loads(submitted("mmmu", tmp_path))
    assert {*answers} == {row["id"] for row, _ in recorded("mmmu")}
    assert all(isinstance(each, str) for each in answers.values())


def test_what_the_authors_scorers_read(tmp_path):
    said = dict(zip((row["id"] for row in EXPECTED["mm-vet"]["items"]), EXPECTED["mm-vet"]["predictions"], strict=True))
    assert json.loads(submitted("mm-vet", tmp_path)) == said
    records = json.loads(submitted("mathvista", tmp_path))
    record = next(iter(records.values()))
    assert {"pid", "question", "answer", "question_type", "answer_type", "choices", "precision", "metadata"} < {*record}
    assert [each["response"] for each in records.values()] == EXPECTED["mathvista"]["predictions"]
    lines = [json.loads(line) for line in submitted("llava", tmp_path).splitlines()]
    assert {*lines[0]} == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert [line["text"] for line in lines] == EXPECTED["llava"]["predictions"]
    rows = json.loads(submitted("hallusionbench", tmp_path))
    assert [row["model_prediction"] for row in rows] == EXPECTED["hallusionbench"]["predictions"]
    assert {"category", "subcategory", "set_id", "figure_id", "question_id", "gt_answer"} < {*rows[0]}


def test_nothing_is_written_for_others(tmp_path):
    write_answers(tmp_path / "answers", "pope")
    (result,) = score.score(ROOT, ["pope"], tmp_path / "answers", tmp_path / "out", submission=True)
    assert "submission" not in result and not (tmp_path / "out" / "submission").exists()
    assert submit.plain({"a": [float("nan"), 1.5]}) == {"a": [None, 1.5]}
