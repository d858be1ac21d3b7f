"""MathVista testmini. Its authors let a judge find the answer in what was said; rules find it where that is plain."""

import math
import re

from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item, Scoring
from trol_jax.evals.parsing import after_last, choice, lettered
from trol_jax.evals.scoring import accuracy, equal, unscored

FILE = "MathVista/testmini-*.parquet"
SPLITS = ("question_type", "answer_type", "language", "source", "category", "task", "context", "grade")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def read(root: Root):
    def item(row):
        fields = {name: row.text(name) for name in ("question_type", "answer_type")}
        fields["choices"] = [] if row.data.get("choices") is None else row.texts("choices")
        fields["precision"] = row.get("precision", int, float, type(None))
        fields |= {name: value for name, value in row.get("metadata", dict).items() if name in (*SPLITS, "skills")}
        images = (root.picture(row, "MathVista", row.text("image")),)
        return Item(row.text("pid"), row.text("query"), images, row.text("answer"), fields)

    for file in root.find(FILE):
        yield from each(root.parquet(file, without=("decoded_image",)), item)


def extract(item: Item, answer: str) -> str | None:
    """The text of a choice; a number, rounded as the gold is; a list as it is written."""
    fields, said = item.fields, after_last(answer, "answer is", "answer:")
    if fields["question_type"] == "multi_choice":
        options = lettered(fields["choices"])
        letter = next((letter for letter, text in options.items() if said == text), None) or choice(said, options)
        return options.get(letter)
    if fields["answer_type"] in ("integer", "float"):
        numbers = NUMBER.findall(said.replace(",", ""))
        return rounded(numbers[0], fields) if len(numbers) == 1 else None
    return said or None


def rounded(text: str, fields) -> str:
    value = float(text)
    if not math.isfinite(value):
        return text
    return str(int(value)) if fields["answer_type"] == "integer" else str(round(value, int(fields["precision"] or 0)))


SCORINGS = {
    "trol": unscored("a judge finds the answers"),
    "standard": Scoring("rules find the answer, the authors' normal form; accuracy", extract, equal, accuracy(*SPLITS)),
}
BENCHMARK = Benchmark("mathvista", read, SCORINGS)
