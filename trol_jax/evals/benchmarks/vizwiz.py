"""VizWiz test: the server scores it. Rows of the other splits, put in its place, have answers and are scored here."""

from trol_jax.evals.benchmarks.vqa import VQA
from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item
from trol_jax.evals.scoring import unscored

FILE = "VizWiz/test.json"


def read(root: Root):
    def item(row):
        images = (root.picture(row, "VizWiz/test", row.text("image")),)
        fields = {"answer_type": row.data.get("answer_type")}
        return Item(row.number - 1, row.text("question"), images, golds(row), fields)

    return each(root.objects(FILE), item)


def golds(row) -> list[str] | None:
    if "answers" not in row.data:
        return None
    try:
        answers = [each["answer"] for each in row.get("answers", list)]
    except (KeyError, TypeError):
        answers = []
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise row.bad('"answers" must hold objects with a text under "answer"')
    return answers


BENCHMARK = Benchmark("vizwiz", read, {"trol": unscored("EvalAI's server scores the answers"), "standard": VQA})
