"""SEED-Bench, the questions about single pictures."""

from trol_jax.evals.benchmarks.choices import lines, standard
from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item, Scoring
from trol_jax.evals.parsing import first_character
from trol_jax.evals.scoring import accuracy, equal, first_of_each_id

FILE = "SEED-Bench/SEED-Bench.json"
TYPES = (
    "Scene Understanding", "Instance Identity", "Instance Attributes", "Instance Location", "Instances Counting",
    "Spatial Relation", "Instance Interaction", "Visual Reasoning", "Text Understanding",
)  # fmt: skip


def read(root: Root):
    def item(row):
        choices = [row.text(name) for name in row.data if name.startswith("choice")]
        kind = row.get("question_type_id", int)
        fields = {"choices": choices, "type_id": kind, "type": TYPES[kind - 1] if 0 < kind <= len(TYPES) else None}
        images = (root.picture(row, "SEED-Bench/SEED-Bench-image", row.text("data_id")),)
        question = "\n".join([row.text("question"), lines(choices)])
        return Item(row.get("question_id", str, int), question, images, row.text("answer"), fields)

    rows = root.objects(FILE, "questions")
    return each(
        (row for row in rows if not isinstance(row.data, dict) or row.data.get("data_type", "image") == "image"), item
    )


SCORINGS = {
    "trol": Scoring(
        "first character; accuracy",
        lambda item, answer: first_character(answer),
        equal,
        accuracy("type"),
        first_of_each_id,
    ),
    "standard": standard("type"),
}
BENCHMARK = Benchmark("seed", read, SCORINGS)
