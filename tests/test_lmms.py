"""The plug for lmms-eval: what it is asked and says; and, where lmms-eval is installed, that it runs a task on it."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
import types

import pytest
from PIL import Image

import fixtures
from programs import NANO, ROOT
from trol_jax.errors import UserError
from trol_jax.infer.answer import Answerer, Question
from trol_jax.infer.decoding import Decoding

DOCUMENTS = [{"picture": Image.new("RGB", (16, 16)), "question": text} for text in ("is it red?", "", "what is it?")]
GREEDY = {"max_new_tokens": 3, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "until": ["\n\n"]}


class Says:
    def __init__(self):
        self.asked = []

    def answer(self, questions, *how, skip):
        assert skip and len(questions) > 0
        self.asked.append(how)
        for question in questions:
            shown = [picture.size for picture in question.pictures]
            error = None if question.text else UserError("the question is empty")
            yield error or types.SimpleNamespace(text=f"{question.text} {shown}\n\nSo: it is. END of it")


@pytest.fixture
def model(monkeypatch):
    """The model, with no more of lmms-eval than it needs; what it says is `Says`."""
    base = type("lmms", (), {"__init__": lambda self: vars(self).update(cache_hook=Hook(), task_dict={})})
    package = {name: types.ModuleType(name) for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model")}
    package["lmms_eval.api.model"].lmms = base
    for name, module in package.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "trol_jax.evals.lmms", raising=False)
    monkeypatch.setattr(Answerer, "load", lambda *arguments: Says())
    model = importlib.import_module("trol_jax.evals.lmms").TroL("run", batch_size="4")
    model.task_dict["red"] = {"test": DOCUMENTS}
    yield model
    sys.modules.pop("trol_jax.evals.lmms")


class Hook(list):
    def add_partial(self, *what):
        self.append(what)


def request(number, how=GREEDY, pictures=lambda document: [document["picture"]]):
    """As lmms-eval's `Instance`."""
    return types.SimpleNamespace(args=(DOCUMENTS[number]["question"], how, pictures, number, "red", "test"))


def test_answers_come_in_order_and_end_at_the_marks_of_the_task(model):
    requests = [request(0), request(2, GREEDY | {"max_new_tokens": 9, "until": "END"}), request(2), request(0)]
    asked, again, third, first = model.generate_until(requests)
    assert asked == first == "is it red? [(16, 16)]\n\nSo: it is. END of it"  # lmms-eval's own mark does not count
    assert again == "what is it? [(16, 16)]\n\nSo: it is." and third.startswith("what is it?")
    assert model.answerer.asked == [(3, Decoding(), 4), (9, Decoding(), 4)]
    assert len(model.cache_hook) == 4 and model.cache_hook[0] == ("generate_until", ("is it red?", GREEDY), asked)


def test_a_question_without_pictures_is_asked(model):
    assert model.generate_until([request(0, pictures=lambda _: None)])[0].startswith("is it red? []")


def test_a_question_that_cannot_be_asked_is_told_and_stops_no_other(model, caplog):
    answers = model.generate_until([request(0), request(1), request(2)])
    assert [bool(answer) for answer in answers] == [True, False, True]
    assert "red, document 1 counts as answered with nothing: the question is empty" in caplog.text


@pytest.mark.parametrize(
    "how, tokens, decoding",
    [
        ({}, 1024, Decoding()),
        ({"max_new_tokens": 5, "num_beams": 5}, 5, Decoding(beams=5)),
        ({"num_beams": 3, "length_penalty": 0.5, "temperature": None}, 1024, Decoding(beams=3, length_penalty=0.5)),
        ({"temperature": 0.5, "top_p": 0.9}, 1024, Decoding(temperature=0.5, top_p=0.9)),
        ({"temperature": 0.5, "do_sample": False, "top_p": 0}, 1024, Decoding()),
        ({"do_sample": True, "top_k": 20, "top_p": None}, 1024, Decoding(temperature=1.0, top_k=20)),
    ],
)
def test_options_are_those_of_the_task(model, how, tokens, decoding):
    assert sys.modules[type(model).__module__].options(how) == (tokens, decoding)


def test_tasks_that_need_no_words_are_refused(model):
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])


# ---------------------------------------------------------------------- with lmms-eval

TASK = """
task: red
dataset_path: parquet
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_visual: !function rules.pictures
doc_to_target: answer
generation_kwargs: {max_new_tokens: 4, num_beams: 1, temperature: 0}
process_results: !function rules.marks
metric_list:
  - metric: said
    aggregation: mean
    higher_is_better: true
"""
RULES = """
import io
from PIL import Image

def pictures(document):
    return [Image.open(io.BytesIO(document["picture"])).convert("RGB")]

def marks(document, results):
    return {"said": float(len(results[0]) > 0)}
"""


def write_task(folder):
    """Questions in a parquet file, a task that asks them, and the entry point as an installed package has it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = folder / "red.png"
    Image.new("RGB", (16, 16), "red").save(picture)
    rows = [
        {"picture": picture.read_bytes(), "question": text, "answer": answer} for text, answer in fixtures.QUESTIONS
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "red.parquet")
    (folder / "red.yaml").write_text(TASK.replace("FILE", str(folder / "red.parquet")))
    (folder / "rules.py").write_text(RULES)
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    told = "".join(
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in points.items()
    )
    (folder / "site" / "trol_jax-0.dist-info").mkdir(parents=True)
    (folder / "site" / "trol_jax-0.dist-info" / "entry_points.txt").write_text(told)


@pytest.mark.slow
def test_lmms_eval_runs_its_task_on_a_checkpoint(tmp_path):
    pytest.importorskip("lmms_eval.api", reason="lmms-eval is not installed", exc_type=ImportError)
    with fixtures.nano_variants():
        run = fixtures.save_run(tmp_path / "run")
    write_task(tmp_path)
    code = f"{NANO}\n import runpy; runpy.run_module('lmms_eval', run_name='__main__', alter_sys=True)"
    flags = ["--model=trol_jax", f"--model_args=checkpoint={run}", "--tasks=red", f"--include_path={tmp_path}"]
    flags += ["--batch_size=2", f"--output_path={tmp_path / 'out'}", "--log_samples"]
    paths = os.pathsep.join([str(tmp_path / "site"), str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, *flags], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("*_results.json")
    assert json.loads(results.read_text())["results"]["red"]["said,none"] >= 0
    (samples,) = (tmp_path / "out").rglob("*_samples_red.jsonl")
    replies = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    with fixtures.nano_variants():
        answerer = Answerer.load(run)
    picture = (tmp_path / "red.png").read_bytes()
    asked = [Question(text, [picture]) for text, _ in fixtures.QUESTIONS]
    assert replies == [answer.text for answer in answerer.answer(asked, 4)] and any(replies)
