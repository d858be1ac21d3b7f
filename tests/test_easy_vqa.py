"""The easy-vqa reader: what the package holds, and bad folders named by file and row."""

import importlib.util
import json
import subprocess
import sys

import pytest
from PIL import Image

from trol_jax.data.easy_vqa import ANSWERS, EasyVQA, kind_of
from trol_jax.errors import UserError

ROWS = [["is it red?", "yes", 7], ["what shape?", "circle", 3], ["what color?", "red", 7]]


@pytest.fixture
def folder(tmp_path):
    """A data folder with pictures 3 and 7 and a function that writes its rows."""
    images = tmp_path / "train" / "images"
    images.mkdir(parents=True)
    for picture in (3, 7):
        Image.new("RGB", (8, 8)).save(images / f"{picture}.png")

    def write(rows):
        (tmp_path / "train" / "questions.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
        return tmp_path

    return write


def test_the_package_holds_what_its_readme_says():
    for split, pictures, questions in (("train", 4000, 38575), ("test", 1000, 9673)):
        source = EasyVQA(split)
        flat = source.questions()
        assert (len(source), len(flat)) == (pictures, questions)
        assert {row["answer"] for row in flat} == set(ANSWERS)
        assert {row["kind"] for row in flat} == {"yes/no", "color", "shape"}
        by_picture = [turn for i in range(len(source)) for turn in source[i]["turns"]]
        assert by_picture == [(row["question"], row["answer"]) for row in flat]
    assert len(ANSWERS) == 13


def test_reading_does_not_run_the_package():
    code = "import sys; from trol_jax.data.easy_vqa import EasyVQA; EasyVQA('test'); print('easy_vqa' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_pictures_gather_their_questions(folder):
    root = folder(ROWS)
    source = EasyVQA("train", root)
    path = str(root / "train" / "images" / "7.png")
    assert len(source) == 2
    assert source[0] == {"id": 7, "image": path, "turns": [("is it red?", "yes"), ("what color?", "red")]}
    assert source.questions()[2] == {
        "id": 2, "image": path, "question": "what color?", "answer": "red", "kind": "color",
    }  # fmt: skip
    with pytest.raises(IndexError):
        source[2]


def test_kinds():
    assert [kind_of(answer) for answer in ("no", "teal", "triangle")] == ["yes/no", "color", "shape"]
    with pytest.raises(UserError, match="'purple' is none of"):
        kind_of("purple")


@pytest.mark.parametrize(
    "row",
    [[], ["q", "yes"], ["q", "yes", "7"], ["q", "yes", True], [1, "yes", 7], ["", "yes", 7], {"a": 1}, None, "abc"],
)
def test_a_malformed_row_is_named(folder, row):
    with pytest.raises(UserError, match=r"questions\.json, row 1: .* is not \[question, answer, picture number\]"):
        EasyVQA("train", folder([ROWS[0], row]))


def test_an_unknown_answer_and_a_missing_picture_are_named(folder):
    with pytest.raises(UserError, match=r"questions\.json, row 1: answer 'purple' is none of"):
        EasyVQA("train", folder([ROWS[0], ["q", "purple", 7]]))
    with pytest.raises(UserError, match=r"questions\.json, row 1: the picture .*8\.png is missing"):
        EasyVQA("train", folder([ROWS[0], ["q", "yes", 8]]))


def test_bad_folders_are_named(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"none.train is not a folder"):
        EasyVQA("train", tmp_path / "none")
    with pytest.raises(UserError, match=r"questions\.json is missing"):
        EasyVQA("train", tmp_path)
    for rows in ("", "[[", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")):
        with pytest.raises(UserError, match=r"questions\.json cannot be read as JSON"):
            EasyVQA("train", folder(rows))
    for rows in ([], {}, 3):
        with pytest.raises(UserError, match="holds no list of rows"):
            EasyVQA("train", folder(rows))
    with pytest.raises(UserError, match="split 'dev' is not known"):
        EasyVQA("dev")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="easy-vqa is not installed"):
        EasyVQA("train")
