"""AI2D test: diagrams of science, in the original's flattened file."""

from trol_jax.evals.benchmarks.choices import lines, standard
from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item, Scoring
from trol_jax.evals.parsing import LETTERS, first_capital
from trol_jax.evals.scoring import accuracy, equal, first_of_each_id

FILE = "ai2d/ai2d_test.json"


def read(root: Root):
    def item(row):
        more = row.inner("metadata")
        choices, labelled = more.texts("answerTexts"), more.get("abcLabel", bool)
        images = (root.picture(row, "ai2d", "abc_images" if labelled else "images", row.text("imageName")),)
        question = "\n".join([row.text("question"), lines(choices, " ")])
        fields = {"choices": choices, "labels": "letters" if labelled else "words"}
        return Item(more.text("questionId"), question, images, LETTERS[more.index("correctAnswer", choices)], fields)

    return each(root.objects(FILE), item)


SCORINGS = {
    "trol": Scoring(
        "first capital letter; accuracy",
        lambda item, answer: first_capital(answer),
        equal,
        accuracy("labels"),
        first_of_each_id,
    ),
    "standard": standard("labels"),
}
BENCHMARK = Benchmark("ai2d", read, SCORINGS)
