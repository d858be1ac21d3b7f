"""MME: two questions about a picture; points for each right, and again where both are. At most 2,000 and 800."""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence

from trol_jax.evals.files import Root, each, readable
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
        file = f"{stem(number)}.txt"
        gold = labels(category, file).get(bare(text))
        if gold is None:
            raise row.bad(f"{FOLDER}/{category} has no answer to this question in {file}")
        return Item(number, text, images, gold, {"category": category, "question_id": number})

    return each(root.objects(root.find(f"{FOLDER}/llava_mme.json*")[0]), item)


def stem(number: str) -> str:
    """The name of a picture, without folder and ending, which is that of its text."""
    name = number.rpartition("/")[2]
    return name.rpartition(".")[0] or name


def read_labels(root: Root, category: str, file: str) -> dict[str, str]:
    """{question: yes or no} of a picture, from the official tree, which has two layouts."""
    for folder in (f"{FOLDER}/{category}/questions_answers_YN", f"{FOLDER}/{category}"):
        if readable(root.path / folder / file):
            pairs = (line.rpartition("\t") for line in root.read(f"{folder}/{file}").splitlines())
            return {bare(question): gold.strip().lower() for question, _, gold in pairs}
    return {}


def bare(question: str) -> str:
    return " ".join(question.replace(OURS, "").replace(THEIRS, "").split())


PAIR = "picture"  # in its category


def picture(fields: Mapping) -> tuple:
    return fields["category"], fields["question_id"]


def in_twos(samples):
    """The original pairs what follows each other in a category; one that is left over counts as a pair."""
    pairs = [samples[start : start + 2] for start in range(0, len(samples), 2)]
    return pairs, [True] * len(pairs)


def by_picture(samples):
    """(Groups, which of them are pairs). What lacks the other answer is in no pair."""
    pairs = list(grouped(samples, lambda sample: picture(sample.item.fields)).values())
    return pairs, [len(pair) == 2 and PAIR not in pair[0].lacking for pair in pairs]


def points(pairs, whole: Sequence[bool]) -> tuple[float, float]:
    """accuracy + accuracy+ of a category, 0 to 200, and its variance. whole: of which pairs both can be right."""
    count, right = sum(map(len, pairs)), [sum(sample.score for sample in pair) for pair in pairs]
    both = [full and one == 2 for one, full in zip(right, whole, strict=True)]
    each_pair = [100 * (one / count + two / sum(whole)) for one, two in zip(right, both, strict=True)]
    value = sum(each_pair)
    return value, sum((points - value / len(pairs)) ** 2 for points in each_pair)


def summarise(pair):
    def summary(samples) -> Summary:
        pairs = {name: pair(group) for name, group in grouped(samples, "category").items()}
        found = {name: points(*of) for name, of in pairs.items() if any(of[1])}
        if not found:
            return Summary()
        splits = {}
        for kind, names in KINDS.items():
            scores = {name: found[name][0] for name in names if name in found}
            splits[kind] = scores | {"total": sum(scores.values())}
        error = math.sqrt(sum(variance for _, variance in found.values()))
        return Summary(sum(split["total"] for split in splits.values()), error, splits)

    return summary


PARTS = {"category": CATEGORIES}
ONCE = first_of_each(lambda item: (item.fields["category"], item.id, bare(item.question)))
SCORINGS = {
    "trol": Scoring(
        "yes or no within four characters; accuracy and accuracy+, questions paired in order",
        lambda item, answer: mme_yes_no(answer),
        equal,
        summarise(in_twos),
        ONCE,
        parts=PARTS,
    ),
    "standard": Scoring(
        "yes or no within four characters; accuracy, and accuracy+ over pictures with both answers",
        lambda item, answer: mme_yes_no(answer),
        equal,
        summarise(by_picture),
        ONCE,
        groups={PAIR: picture},
        parts=PARTS,
    ),
}
BENCHMARK = Benchmark("mme", read, SCORINGS, unit="points of 2,800")
