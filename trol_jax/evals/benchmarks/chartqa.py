"""ChartQA test: questions written by people, and generated (augmented) ones, which are all that the original asks."""

from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item, Scoring, Summary
from trol_jax.evals.scoring import accuracy, by, first_of_each_id, grouped, marked, over, relaxed

FOLDER = "chartqa/test"
SPLITS = ("augmented", "human")


def read(root: Root):
    for split in SPLITS:
        if split == "human" and not (root.path / FOLDER / "test_human.json").exists():
            return  # the original does without; results say that it is absent

        def item(row, split=split):
            gold = row.get("label", str, list)
            golds = [gold] if isinstance(gold, str) else row.texts("label")
            if not golds:
                raise row.bad('"label" is empty')
            images = (root.picture(row, FOLDER, "png", row.text("imgname")),)
            return Item(row.text("imgname"), row.text("query"), images, golds, {"split": split})

        yield from each(root.objects(f"{FOLDER}/test_{split}.json"), item)


def first_word(item: Item, answer: str) -> str | None:
    """Of an answer with a digit: units are dropped, but "$ 12" becomes "$"."""
    digits = any(letter.isdigit() for letter in answer)
    return (answer.split(" ")[0] if digits else answer).strip() or None


def mark_trol(item: Item, parsed: str | None) -> float:
    return float(any(relaxed(parsed or "", gold, percents=1, relative_to_gold=False) for gold in item.gold))


def mark(item: Item, parsed: str | None) -> float:
    return float(any(relaxed(parsed or "", gold, percents=100, relative_to_gold=True) for gold in item.gold))


def average(samples) -> Summary:
    return Summary(*over(marked(group) for group in grouped(samples, "split").values()), by(samples, "split"))


def augmented_once(items):
    return first_of_each_id([item for item in items if item.fields["split"] == "augmented"])


SCORINGS = {
    "trol": Scoring(
        "5% of the answer, 12% is 12; augmented questions only, one a picture; accuracy",
        first_word,
        mark_trol,
        accuracy(),
        augmented_once,
    ),
    "standard": Scoring(
        "5% of the gold, 12% is 0.12; mean of the accuracies of the human and the augmented questions",
        lambda item, answer: answer.strip() or None,
        mark,
        average,
        parts={"split": SPLITS},
    ),
}
BENCHMARK = Benchmark("chartqa", read, SCORINGS)
