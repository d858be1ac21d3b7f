"""LLaVA-Bench in the Wild: free answers, which a judge compares with GPT-4's."""

from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item
from trol_jax.evals.scoring import unscored

FOLDER = "llava-bench-in-the-wild"


def read(root: Root):
    def item(row):
        images = (root.picture(row, FOLDER, "images", row.text("image")),)
        return Item(row.get("question_id", int), row.text("text"), images, None, {"category": row.text("category")})

    return each(root.objects(f"{FOLDER}/questions.jsonl"), item)


JUDGED = unscored("scored by a judge only")
BENCHMARK = Benchmark("llava", read, {"trol": JUDGED, "standard": JUDGED})
