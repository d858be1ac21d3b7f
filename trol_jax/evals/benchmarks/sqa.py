"""ScienceQA, the test questions with a picture."""

from trol_jax.errors import UserError
from trol_jax.evals.benchmarks.choices import lines, standard
from trol_jax.evals.files import Root, Row, each
from trol_jax.evals.items import Benchmark, Item, Scoring
from trol_jax.evals.parsing import LETTERS, trol_letter
from trol_jax.evals.scoring import accuracy, equal, first_of_each_id

FILE, SPLITS = "ScienceQA/problems.json", "ScienceQA/pid_splits.json"


def read(root: Root):
    def item(row):
        choices = row.texts("choices")
        # The original writes the hint's line also where there is none.
        question = "\n".join([row.text("hint"), row.text("question"), lines(choices)])
        images = (root.picture(row, f"ScienceQA/images/test/{row.number}/image.png"),)
        fields = {"choices": choices} | {name: row.data.get(name) for name in ("subject", "grade")}
        return Item(str(row.number), question, images, LETTERS[row.index("answer", choices)], fields)

    return each(rows(root), item)


def rows(root: Root):
    pids = root.json(SPLITS).get("test")
    if not isinstance(pids, list):
        raise UserError(f'{root.path / SPLITS} has no list under "test"')
    problems = {row.number: row for row in root.entries(FILE)}
    for pid in pids:
        row = problems.get(str(pid), Row(None, FILE, pid))
        if not isinstance(row.data, dict) or row.data.get("image", "") is not None:
            yield row


SCORINGS = {
    "trol": Scoring(
        "letter alone, first letter of an answer with a period, or 'The answer is X.'; accuracy",
        lambda item, answer: trol_letter(answer),
        equal,
        accuracy("subject", "grade"),
        first_of_each_id,
    ),
    "standard": standard("subject", "grade"),
}
BENCHMARK = Benchmark("sqa", read, SCORINGS)
