"""Question files made from what is distributed: they are those that the readers take."""

import json
import shutil

import pytest

from programs import Program, launch
from test_benchmarks import ROOT
from trol_jax.errors import UserError
from trol_jax.evals import prepare
from trol_jax.evals.benchmarks import BENCHMARKS, mme, textvqa
from trol_jax.evals.files import Root
from trol_jax.evals.items import Item

AI2D, MME, WITH_OCR, WITHOUT_OCR = dict.fromkeys(way.file for way in prepare.WAYS)
NAMES = ("ai2d", "mme", "textvqa", "textvqa_no_ocr")
QUESTIONS = [
    {"image_id": "00aa", "question": "what is on the door?", "answers": ["push"] * 10},
    {"image_id": "00aa", "question": "Is it open?", "answers": ["no"] * 10},
]


def write(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
def root(tmp_path):
    """What is distributed of AI2D, MME and TextVQA, as the recorded files have it; pictures are empty files."""
    flat = json.loads((ROOT / AI2D).read_text())
    for row in flat:
        file = tmp_path / "ai2d/questions" / f"{row['imageName']}.json"
        known = json.loads(file.read_text())["questions"] if file.exists() else {}
        write(file, {"imageName": row["imageName"], "questions": {**known, row["question"]: row["metadata"]}})
    write(tmp_path / "ai2d/questions/777.png.json", {"imageName": "777.png", "questions": {"for training?": {}}})
    write(tmp_path / prepare.AI2D_TEST, "".join(f"{row['imageName'].partition('.')[0]}\n" for row in flat) + "999\n")
    shutil.copytree(ROOT / mme.FOLDER, tmp_path / mme.FOLDER, ignore=shutil.ignore_patterns("*.json"))
    for row in json.loads((ROOT / MME).read_text()):
        write(tmp_path / mme.FOLDER / row["image"], "")
    write(tmp_path / textvqa.ANNOTATIONS, {"data": QUESTIONS})
    write(tmp_path / prepare.OCR, {"data": [{"image_id": "00aa", "ocr_tokens": ["PUSH", "Hard"]}]})
    return tmp_path


def outcome(root, output=None):
    return dict(prepare.prepare(root, output or root))


def rows(file):
    return json.loads(file.read_text())


def test_files_are_those_of_the_original(root, tmp_path):
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert all("questions, from" in said for said in outcome(root, tmp_path / "out").values())
    assert rows(tmp_path / "out" / AI2D) == rows(ROOT / AI2D)
    made, wanted = rows(tmp_path / "out" / MME), rows(ROOT / MME)
    assert sorted(made, key=str) == sorted(wanted, key=str)
    assert [row["text"] for row in rows(tmp_path / "out" / WITH_OCR)] == [
        "what is on the door?\nReference OCR token: PUSH, Hard\nAnswer the question using a single word or phrase.",
        "Is it open?\nReference OCR token: PUSH, Hard\nAnswer the question using a single word or phrase.",
    ]
    plain = rows(tmp_path / "out" / WITHOUT_OCR)
    assert plain[1] == {
        "question_id": "00aa",
        "image": "00aa.jpg",
        "text": "Is it open?\nAnswer the question using a single word or phrase.",
        "category": "default",
    }
    assert before == {file: file.read_bytes() for file in before}


def test_names_of_mme_may_have_periods_and_a_text_may_be_none_of_questions(root):
    write(root / mme.FOLDER / "count/a.b.txt", "Are there two?\tYes\n")
    write(root / mme.FOLDER / "count/a.b.png", "")
    write(root / mme.FOLDER / "count/readme.txt", "Counts of things.\nYes\tand more\n")
    assert outcome(root)[MME].startswith("85 questions")
    items = {item.id: item.gold for item in BENCHMARKS["mme"].read(Root(root)) if isinstance(item, Item)}
    assert len(items) == 42 + 1 and items["count/a.b.png"] == "yes"


def test_what_is_made_is_read(root):
    outcome(root)
    read = {name: [*BENCHMARKS[name].read(Root(root, pictures=False))] for name in NAMES}
    assert not [each for items in read.values() for each in items if isinstance(each, UserError)]
    assert read["ai2d"] == [*BENCHMARKS["ai2d"].read(Root(ROOT, pictures=False))]
    assert [len(items) for items in read.values()] == [6, 84, 2, 2]
    assert read["textvqa_no_ocr"][1].gold == ["no"] * 10


def test_lines_of_llava_are_taken_as_they_are(root):
    lines = [{"question_id": "x.jpg", "text": "Is it?", "more": 1}, {"question_id": "y.jpg"}]
    write(root / f"{MME}l", "".join(json.dumps(line) + "\n" for line in lines))
    assert outcome(root)[MME] == f"2 questions, from {MME}l" and rows(root / MME) == lines
    (root / MME).unlink()
    write(root / f"{MME}l", "{}\n[1]\n")
    assert str(outcome(root)[MME]) == f"{MME}l, row 2: is no object"
    assert not (root / MME).exists()


def test_what_is_there_stays_and_what_is_missing_is_named(tmp_path):
    write(tmp_path / WITH_OCR, "mine")
    said = outcome(tmp_path)
    assert said[WITH_OCR] == "there already" and (tmp_path / WITH_OCR).read_text() == "mine"
    assert said[AI2D] == f"not made: {tmp_path} needs {prepare.AI2D} and {prepare.AI2D_TEST}"
    assert said[MME].endswith(f"needs {MME}l; or {mme.FOLDER}/*/**/*.txt")


BAD = [
    (
        "ai2d/questions/0.png.json",
        {"questions": {"q": {"answerTexts": ["a"], "correctAnswer": 1}}},
        "and there are 1 c",
    ),
    ("ai2d/questions/0.png.json", {"questions": []}, '"questions" is [], must be dict'),
    (prepare.AI2D_TEST, "888\n", "would hold no questions"),
    (f"{mme.FOLDER}/count/0000.txt", "Are there two?  Yes\n", "row 1: 'Are there two?  Yes' must be a question, a tab"),
    (f"{mme.FOLDER}/count/0009.txt", "Are there two?\tYes\n", "has a text 0009.txt and no picture"),
    (prepare.OCR, {"data": [{"image_id": "00aa"}]}, 'row 1: there is no field "ocr_tokens"'),
    (prepare.OCR, {"data": []}, "row 1: prepare"),
]


@pytest.mark.parametrize("file, content, message", BAD)
def test_bad_rows_are_named_and_nothing_is_written(root, file, content, message):
    write(root / file, content)
    message = message.replace("row 1: prepare", f"row 1: {prepare.OCR} has nothing of picture 00aa")
    (error,) = [said for said in outcome(root).values() if isinstance(said, UserError)]
    assert message in str(error) and "\n" not in str(error)
    assert len([name for name in (AI2D, MME, WITH_OCR, WITHOUT_OCR) if (root / name).exists()]) == 3


def test_the_program_says_what_it_made_and_what_it_could_not(root, tmp_path):
    write(root / prepare.OCR, "{}")
    status, out, err = Program(launch("prepare_data"), "--benchmarks", f"--root={root}").wait()
    assert status == 2 and len(out.splitlines()) == 3 and f"{MME}: 84 questions" in out
    assert err.startswith(f"error: {WITH_OCR} cannot be made: ") and len(err.splitlines()) == 1
    with pytest.raises(UserError, match="is not a folder"):
        outcome(tmp_path / "nowhere")
    status, out, err = Program(launch("prepare_data"), "--benchmarks", "--demo", f"--root={root}").wait()
    assert status == 2 and err.startswith("error: --demo and --benchmarks are two things to do")
