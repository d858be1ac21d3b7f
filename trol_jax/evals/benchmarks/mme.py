"""MME: two questions about a picture; points for each right, and again where both are. At most 2,000 and 800."""

import functools
import itertools
import math

from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item, Scoring, Summary
from trol_jax.evals.parsing import mme_yes_no
from trol_jax.evals.scoring import equal, first_of_each, grouped

FOLDER = "MME_Benchmark_release_version"
KINDS = {
    "Perception": (
        "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
    ),
    "Cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}  # fmt: skip
CATEGORIES = tuple(itertools.chain(*KINDS.values()))
OURS, THEIRS = "Answer the question using a single word or phrase.", "Please answer yes or no."


def read(root: Root):
    labels = functools.cache(functools.partial(read_labels, root))

    def item(row):
        category, text, number = row.text("category"), row.text("text"), row.text("question_id")
        if category not in CATEGORIES:
            raise row.bad(f'"category" is {category!r}, must be one of {", ".join(CATEGORIES)}')
        images = (root.picture(row, FOLDER, row.text("image")),)
        file = number.rpartition("/")[2].partition(".")[0] + ".txt"
        gold = labels(category, file).get(bare(text))
        if gold is None:
            raise row.bad(f"{FOLDER}/{category} has no answer to this question in {file}")
        return Item(number, text, images, gold, {"category": category})

    return each(root.objects(root.find(f"{FOLDER}/llava_mme.json*")[0]), item)


def read_labels(root: Root, category: str, file: str) -> dict[str, str]:
    """{question: yes or no} of a picture, from the official tree, which has two layouts."""
    for folder in (f"{FOLDER}/{category}/questions_answers_YN", f"{FOLDER}/{category}"):
        if (root.path / folder / file).is_file():
            pairs = (line.rpartition("\t") for line in root.read(f"{folder}/{file}").splitlines())
            return {bare(question): gold.strip().lower() for question, _, gold in pairs}
    return {}


def bare(question: str) -> str:
    return " ".join(question.replace(OURS, "").replace(THEIRS, "").split())


def in_twos(samples):
    """The original pairs what follows each other in a category."""
    return [samples[start : start + 2] for start in range(0, len(samples), 2)]


def by_picture(samples):
    return list(grouped(samples, lambda sample: sample.item.id).values())


def points(pairs) -> tuple[float, float]:
    """accuracy + accuracy+ of a category, 0 to 200, and its variance."""
    right = [sum(sample.score for sample in pair) for pair in pairs]
    value = 100 * sum(right) / sum(map(len, pairs)) + 100 * right.count(2) / len(pairs)
    each_pair = [100 * (count / len(pair) + (count == 2)) for count, pair in zip(right, pairs, strict=True)]
    middle = sum(each_pair) / len(pairs)
    return value, sum((points - middle) ** 2 for points in each_pair) / len(pairs) ** 2


def summarise(pair):
    def summary(samples) -> Summary:
        found = {name: points(pair(group)) for name, group in grouped(samples, "category").items()}
        if not found:
            return Summary()
        splits = {}
        for kind, names in KINDS.items():
            scores = {name: found[name][0] for name in names if name in found}
            splits[kind] = scores | {"total": sum(scores.values())}
        error = math.sqrt(sum(variance for _, variance in found.values()))
        return Summary(sum(split["total"] for split in splits.values()), error, splits)

    return summary


SCORINGS = {
    "trol": Scoring(
        "yes or no within four characters; accuracy and accuracy+, questions paired in order",
        lambda item, answer: mme_yes_no(answer),
        equal,
        summarise(in_twos),
        first_of_each(lambda item: (item.fields["category"], item.id, bare(item.question))),
    ),
    "standard": Scoring(
        "yes or no within four characters; accuracy and accuracy+, questions paired by picture",
        lambda item, answer: mme_yes_no(answer),
        equal,
        summarise(by_picture),
    ),
}
BENCHMARK = Benchmark("mme", read, SCORINGS, unit="points of 2,800")
