"""MMStar: questions that need the picture; six categories of three kinds each."""

from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item, Scoring, Summary
from trol_jax.evals.parsing import mmstar_letter
from trol_jax.evals.scoring import accuracy, equal, first_of_each_id, grouped, marked, mean

FILE = "MMStar/mmstar.parquet"
KINDS = {
    "coarse perception": ("image scene and topic", "image style & quality", "image emotion"),
    "fine-grained perception": ("object counting", "recognition", "localization"),
    "instance reasoning": (
        "single-instance reasoning", "cross-instance attribute reasoning", "cross-instance relation reasoning",
    ),
    "logical reasoning": ("code & sequence reasoning", "diagram reasoning", "common reasoning"),
    "science & technology": (
        "biology & chemistry & physics", "electronics & energy & mechanical eng.",
        "geography & earth science & agriculture",
    ),
    "math": ("geometry", "numeric commonsense and calculation", "statistical reasoning"),
}  # fmt: skip
A_CATEGORY, ALL = 250, 1500  # questions of the whole benchmark, by which the original divides whatever was asked


def read(root: Root):
    def item(row):
        category, kind = row.text("category"), row.text("l2_category")
        if kind not in KINDS.get(category, ()):
            raise row.bad(f"{category!r} with {kind!r} is no category of MMStar")
        fields = {"category": category, "l2_category": kind}
        return Item(
            row.get("index", int), row.text("question"), root.embedded(row, "image"), row.text("answer"), fields
        )

    return each(root.parquet(FILE, without=("meta_info",), pictures=("image",)), item)


def printed(samples) -> Summary:
    """In the original's form: shares of 1, with the sizes of the whole benchmark below the fractions."""
    rights = {key: marked(group) for key, group in grouped(samples, kind).items()}
    splits = {"final score": sum(marked(samples)) / ALL}
    for category, kinds in KINDS.items():
        scores = [rights.get((category, name), []) for name in kinds]
        splits[category] = sum(map(sum, scores)) / A_CATEGORY
        for name, found in zip(kinds, scores, strict=True):
            splits[f"{category}({name})"] = sum(found) / len(found) if found else 0
    if not samples:
        return Summary()
    return Summary(100 * splits["final score"], mean(marked(samples))[1] * len(samples) / ALL, splits)


def kind(sample) -> tuple[str, str]:
    return sample.item.fields["category"], sample.item.fields["l2_category"]


RULE = "letter first, or after '(', 'option ' or 'the answer is '"
SCORINGS = {
    "trol": Scoring(
        f"{RULE}; right answers by {ALL}",
        lambda item, answer: mmstar_letter(answer),
        equal,
        printed,
        first_of_each_id,
    ),
    "standard": Scoring(
        f"{RULE}; accuracy", lambda item, answer: mmstar_letter(answer), equal, accuracy("category", "l2_category")
    ),
}
BENCHMARK = Benchmark("mmstar", read, SCORINGS)
