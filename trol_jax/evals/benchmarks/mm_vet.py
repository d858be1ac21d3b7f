"""MM-Vet: free answers, which a judge scores."""

from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item
from trol_jax.evals.scoring import unscored

FILE = "mm-vet/mm-vet.json"


def read(root: Root):
    def item(row):
        images = (root.picture(row, "mm-vet/images", row.text("imagename")),)
        fields = {"capability": row.texts("capability")}
        return Item(str(row.number), row.text("question"), images, row.text("answer"), fields)

    return each(root.entries(FILE), item)


JUDGED = unscored("scored by a judge only")
BENCHMARK = Benchmark("mm-vet", read, {"trol": JUDGED, "standard": JUDGED})
