"""Files of questions, and conversations."""

import json

import numpy as np
import pytest
from PIL import Image

import fixtures
from trol_jax.errors import UserError
from trol_jax.infer import questions
from trol_jax.infer.answer import Answerer, Question
from trol_jax.infer.chat import HELP, chat
from trol_jax.infer.decoding import GREEDY, Decoding


@pytest.fixture(scope="module")
def answerer(tmp_path_factory):
    with fixtures.nano_variants():
        yield Answerer.load(fixtures.save_run(tmp_path_factory.mktemp("run")))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{name}.png")
    rows = [
        {"question": "what color is it?", "image": "a.png"},
        {"question": "what color is it?", "image": ["b.png"], "answer": "red"},
        {"question": "and both?", "image": ["a.png", "b.png"]},
        {"question": "and nothing?"},
        {"question": "what color is it?", "image": "c.png"},
        {"question": "is there a red shape?", "image": None},
    ]
    write(tmp_path, "\n\n".join(map(json.dumps, rows)))
    return tmp_path


def write(folder, text):
    (folder / "questions.jsonl").write_text(text)


def run(answerer, folder, decoding=GREEDY, source="source"):
    lines = questions.answer(answerer, folder / "questions.jsonl", folder / "answers.jsonl", source, 4, decoding, 2)
    return list(lines)


def written(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("decoding", [GREEDY, Decoding(beams=2), Decoding(temperature=3.0, seed=1)])
def test_each_line_is_answered_as_alone(answerer, folder, decoding):
    lines = run(answerer, folder, decoding)
    assert lines == written(folder)
    assert [line["id"] for line in lines] == [1, 3, 5, 7, 9, 11]
    assert lines[1] == {"id": 3, "question": "what color is it?", "image": ["b.png"], "answer": "red"} | {
        "prediction": lines[1]["prediction"], "source": "source"
    }  # fmt: skip
    assert lines[4]["error"] == f"{folder / 'c.png'} does not exist" and "prediction" not in lines[4]
    question = Question("and both?", [folder / "a.png", folder / "b.png"])
    own = Decoding(temperature=3.0, seed=6) if decoding.temperature else decoding
    assert lines[2]["prediction"] == "".join(answerer.reply(question, 4, own))


def test_a_stopped_file_goes_on_and_asks_again_what_failed(answerer, folder, monkeypatch):
    whole = run(answerer, folder)
    Image.new("RGB", (16, 16)).save(folder / "c.png")
    text = (folder / "answers.jsonl").read_text().splitlines(keepends=True)
    (folder / "answers.jsonl").write_text("".join(text[:3]) + text[3][:-9])
    asked, request = [], Answerer.request
    monkeypatch.setattr(Answerer, "request", lambda self, q, *rest: asked.append(q.text) or request(self, q, *rest))
    again = run(answerer, folder)
    assert asked == ["and nothing?", "what color is it?", "is there a red shape?"]
    assert [line for line in again if line["id"] != 9] == [line for line in whole if line["id"] != 9]
    assert isinstance(again[4]["prediction"], str) and written(folder) == again
    asked.clear()
    assert run(answerer, folder) == again and not asked


def test_answers_taken_in_another_way_are_kept(answerer, folder):
    before = run(answerer, folder)
    with pytest.raises(
        UserError, match=r"answers.jsonl holds answers of another measurement \(source; this one is new"
    ):
        run(answerer, folder, source="new")
    assert written(folder) == before


def test_an_answer_to_a_question_that_was_changed_is_asked_again(answerer, folder):
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().split("\n\n")]
    run(answerer, folder)
    del rows[0]["image"]
    write(folder, "\n\n".join(map(json.dumps, rows)))
    again = {line["id"]: line for line in run(answerer, folder)}[1]
    assert "image" not in again and again["prediction"] == "".join(answerer.reply(Question("what color is it?"), 4))


@pytest.mark.parametrize(
    "content",
    ["my thesis\nline two\n", "my thesis", '{"question": "a?"}\n', '{"id": 1}\n', '{"id": 5, "mine": "data"}', "[]\n"],
)
def test_a_file_that_holds_no_answers_stays_as_it_is(folder, content):
    (folder / "answers.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"answers.jsonl, line 1 is no answer; write to another file"):
        run(None, folder)
    assert (folder / "answers.jsonl").read_text() == content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no question"),
        ('{"question": "a?"}\n{"question"', "line 2 is not JSON"),
        ("[1]", "line 1 is not an object"),
        ('\ufeff{"question": "a?", "n": NaN}', "line 1 is not JSON: NaN"),
        ('{"question": "a?", "n": 1e999}', "line 1 is not JSON: 1e999 is no number"),
        pytest.param('{"question": "a?", "n": ' + "[" * 100_000, "line 1 is not JSON", id="deep"),
        ('\n{"text": "a?"}', 'line 2 has no text under "question"'),
        ('{"question": " "}', 'line 1 has no text under "question"'),
        ('{"question": "a?", "image": 3}', 'line 1: "image" must be the name of a file'),
        ('{"question": "a?", "id": 3}', 'line 1: the field "id" is written with the answers'),
    ],
)
def test_a_line_that_is_no_question_is_named_before_anything_is_asked(tmp_path, text, message):
    write(tmp_path, text)
    with pytest.raises(UserError, match=f"questions.jsonl.* {message}|questions.jsonl, {message}"):
        run(None, tmp_path)
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_conversation_remembers_until_it_begins_anew(answerer, folder):
    typed = ["what color is it?", "", "and now?", "/new", "and now?", f"/image {folder / 'b.png'}", "and now?", "/help"]
    said = "".join(chat(answerer, [str(folder / "a.png")], [*typed, "/exit", "and now?"], 4)).split("\n")

    def answer(question, pictures, history=()):
        return "".join(answerer.reply(Question(question, pictures, history), 4)).split("\n")

    a, b = [folder / "a.png"], [folder / "b.png"]
    first = answer("what color is it?", a)
    second = answer("and now?", a, [("what color is it?", "\n".join(first))])
    assert said == [*first, *second, *answer("and now?", []), *answer("and now?", b), HELP, ""]


def test_a_conversation_outlives_a_picture_that_is_none(answerer, tmp_path):
    said = "".join(chat(answerer, [], [f"/image {tmp_path / 'no.png'}", "and now?", "/new", "and now?"], 4))
    assert (
        said.startswith(f"error: {tmp_path / 'no.png'} does not exist\n") and "error" not in said[20:].split("\n", 1)[1]
    )
