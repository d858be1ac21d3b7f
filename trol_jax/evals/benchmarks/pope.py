"""POPE: is there such a thing in the picture, asked in three ways that are more or less hard."""

import math

from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item, Scoring, Summary
from trol_jax.evals.parsing import pope_yes_no
from trol_jax.evals.scoring import confusion, equal, first_of_each, grouped, marked, mean, of_sums, over, ratio

SPLITS = ("popular", "adversarial", "random")  # in the original's order


def read(root: Root):
    for split in SPLITS:

        def item(row, split=split):
            label = row.text("label")
            if label not in ("yes", "no"):
                raise row.bad(f'"label" is {label!r}, must be yes or no')
            images = (root.picture(row, "coco2014/val2014", row.text("image")),)
            return Item(row.get("question_id", int, str), row.text("text"), images, label, {"category": split})

        yield from each(root.objects(f"POPE/coco_pope_{split}.json"), item)


def mark(item, parsed):
    return equal(item, parsed or "yes")


def counts(samples):
    return confusion((sample.parsed != "no", sample.item.gold == "yes") for sample in samples)


def accuracies(samples) -> Summary:
    splits = grouped(samples, "category")
    found = {name: {"accuracy": mean(marked(group))[0], **counts(group)} for name, group in splits.items()}
    return Summary(*over(marked(group) for group in splits.values()), found)


def f1s(samples) -> Summary:
    """The mean F1 of the splits."""
    splits = grouped(samples, "category")
    found = {name: measures(group) for name, group in splits.items()}
    if not found:
        return Summary()
    average = {name: sum(split[name] for split in found.values()) / len(found) for name in MEASURES}
    error = math.hypot(*map(f1_error, splits.values())) / len(splits)
    return Summary(average["f1"], error, found | {"mean": average})


def f1_error(samples) -> float:
    """F1 is a ratio of sums over questions: 2 tp by 2 tp + fp + fn."""
    each = [(sample.parsed != "no", sample.item.gold == "yes") for sample in samples]
    return of_sums([(2 * (said and true), said + true) for said, true in each])[1] or 0.0


MEASURES = ("accuracy", "precision", "recall", "f1", "yes_share")


def measures(samples) -> dict[str, float | int]:
    c = counts(samples)
    precision, recall = ratio(c["tp"], c["tp"] + c["fp"]), ratio(c["tp"], c["tp"] + c["fn"])
    f1 = ratio(2 * precision * recall, precision + recall)
    yes, right = ratio(c["tp"] + c["fp"], len(samples)), ratio(c["tp"] + c["tn"], len(samples))
    return {name: 100 * value for name, value in zip(MEASURES, (right, precision, recall, f1, yes), strict=True)} | c


once = first_of_each(lambda item: (item.fields["category"], item.id))
SCORINGS = {
    "trol": Scoring(
        "no if 'no' or 'not' is in the first sentence, any case; mean accuracy of the three splits",
        lambda item, answer: pope_yes_no(answer, lower=True),
        mark,
        accuracies,
        once,
    ),
    "standard": Scoring(
        "no if 'No', 'no' or 'not' is in the first sentence; mean F1 of the three splits, its error to first order",
        lambda item, answer: pope_yes_no(answer, lower=False),
        mark,
        f1s,
    ),
}
BENCHMARK = Benchmark("pope", read, SCORINGS)
