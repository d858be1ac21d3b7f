"""GQA testdev: exact words, over the balanced questions."""

from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item, Scoring
from trol_jax.evals.scoring import accuracy, equal

FILE = "gqa/testdev_balanced_questions.json"
NO_STEP = ("exist", "query: name", "choose name")  # operations that end a question without adding to the reasoning


def read(root: Root):
    def item(row):
        types = row.inner("types")
        structural = types.text("structural")
        fields = {
            "balanced": row.get("isBalanced", bool),
            "answer_type": "open" if structural == "query" else "binary",
            "structural": structural,
            "semantic": types.text("semantic"),
            "steps": steps(row),
            "words": len(row.text("question").split()),
        }
        images = (root.picture(row, "gqa/images", f"{row.text('imageId')}.jpg"),)
        return Item(str(row.number), row.text("question"), images, row.text("answer"), fields)

    return each(root.entries(FILE), item)


def steps(row) -> int | None:
    """Of reasoning; None where the file lacks the program of the question."""
    if "semantic" not in row.data:
        return None
    try:
        operations = [f"{step['operation']}: {step['argument']}" for step in row.get("semantic", list)]
    except (KeyError, TypeError):
        raise row.bad('"semantic" must hold steps with "operation" and "argument"') from None
    return sum(not any(name in operation for name in NO_STEP) for operation in operations)


def balanced(items):
    return [item for item in items if item.fields["balanced"]]


SUMMARY = accuracy("answer_type", "structural", "semantic", "steps", "words")
SCORINGS = {
    "trol": Scoring("same text in lower case", lambda item, answer: answer.lower(), equal, SUMMARY, balanced),
    "standard": Scoring(
        "same text in lower case, without a period at the end",
        lambda item, answer: answer.strip().rstrip(".").lower() or None,
        equal,
        SUMMARY,
        balanced,
    ),
}
BENCHMARK = Benchmark("gqa", read, SCORINGS)
