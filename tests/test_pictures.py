"""The pictures of a measurement: what they show, and that they touch nothing else."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

import fixtures
from trol_jax.data.easy_vqa import EasyVQA
from trol_jax.evals import pictures
from trol_jax.evals.easy_vqa import is_right, score


def row(number, answer, right):
    return {"id": number, "answer": answer, "right": right}


@pytest.fixture
def rows(tmp_path):
    """Twelve answers, two of them wrong."""
    questions = EasyVQA("test", fixtures.save_data(tmp_path)).questions()
    given = ["no" if each["id"] == 0 else "$\\frac{" if each["id"] == 2 else each["answer"] for each in questions]
    return [r | {"prediction": p, "right": is_right(p, r["answer"])} for r, p in zip(questions, given, strict=True)]


def pixels(png, color):
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert image.std() > 1
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(image - wanted).max(axis=-1) <= 2).sum())


def test_examples_show_wrong_answers_first_and_all_answers():
    rows = [row(i, "ab"[i % 2], i % 50 != 0) for i in range(400)]
    chosen = pictures.choose(rows)
    assert [each["right"] for each in chosen] == [False] * 2 + [True] * 6
    assert {each["answer"] for each in chosen} == {"a", "b"}
    assert len({each["id"] for each in chosen}) == 8


@pytest.mark.parametrize(
    "right, wrong, expected", [(400, 0, 0), (400, 1, 1), (5, 400, 3), (0, 400, 8), (2, 1, 1), (0, 0, 0)]
)
def test_examples_fill_the_line_if_they_can(right, wrong, expected):
    rows = [row(i, "a", i < right) for i in range(right + wrong)]
    chosen = pictures.choose(rows)
    assert len(chosen) == min(8, right + wrong) and sum(not each["right"] for each in chosen) == expected


def test_samples_frame_right_and_wrong(rows):
    before = dict(matplotlib.rcParams)
    mixed = pictures.samples(rows, score(rows))
    assert pixels(mixed, pictures.RIGHT) > 1000 and pixels(mixed, pictures.WRONG) > 1000
    good = [each for each in rows if each["right"]]
    assert pixels(pictures.samples(good, score(good)), pictures.WRONG) == 0
    assert dict(matplotlib.rcParams) == before


def test_text_that_no_font_has_is_replaced():
    assert pictures.plain("a\n\ufffd$b") == "a\N{WHITE SQUARE}\N{WHITE SQUARE}\\$b"
    assert pictures.verdict({"prediction": "", "answer": "red", "right": False}) == "(nothing)\nexpected: red"


@pytest.mark.parametrize("layers", [1, 3, 24])
def test_gates_draw_both_lines(layers):
    values = {"image": list(np.linspace(0.2, 0.8, layers)), "text": [0.4] * layers}
    png = pictures.gates(values, {"n": 12})
    assert pixels(png, pictures.IMAGE) > 50 and pixels(png, pictures.TEXT) > 50


def test_gates_of_text_alone():
    png = pictures.gates({"image": None, "text": [0.4, 0.6]}, {"n": 12})
    assert pixels(png, pictures.IMAGE) == 0 and pixels(png, pictures.TEXT) > 50
