"""VQAv2 test-dev: the server scores it."""

from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item
from trol_jax.evals.scoring import unscored

FILE = "VQAv2/v2_OpenEnded_mscoco_test2015_questions.json"


def read(root: Root):
    def item(row):
        picture = f"VQAv2/test2015/COCO_test2015_{row.get('image_id', int):012d}.jpg"
        return Item(row.get("question_id", int), row.text("question"), (root.picture(row, picture),))

    return each(root.objects(FILE, "questions"), item)


SERVER = unscored("EvalAI's server scores the answers; they are not published")
BENCHMARK = Benchmark("vqav2", read, {"trol": SERVER, "standard": SERVER})
