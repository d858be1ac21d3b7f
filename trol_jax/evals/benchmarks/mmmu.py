"""MMMU val: thirty subjects of college; several pictures in a question; choices, or open answers."""

import ast
import random
import re
from collections.abc import Sequence

from trol_jax.evals import mmmu_rules
from trol_jax.evals.benchmarks.choices import lines
from trol_jax.evals.files import Root, Row, each
from trol_jax.evals.items import Benchmark, Item, Scoring, Summary
from trol_jax.evals.parsing import lettered
from trol_jax.evals.scoring import accuracy, first_of_each_id, grouped, marked, mean

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip
DOMAIN = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}
MARK = re.compile(r"<image\s(\d+)>")
PICTURES = tuple(f"image_{number}" for number in range(1, 8))


def read(root: Root):
    def item(row):
        kind, name = row.text("question_type"), row.text("id")
        if kind not in ("multiple-choice", "open"):
            raise row.bad(f'"question_type" is {kind!r}, must be multiple-choice or open')
        choices = literal(row, row.text("options"))
        text = "\n".join([row.text("question"), lines(choices, " ")])
        subject = "_".join(name.split("_")[1:-1])
        fields = {"choices": choices, "type": kind, "subject": subject, "domain": DOMAIN.get(subject)}
        numbers = dict.fromkeys(MARK.findall(text))  # in the order of the text
        images = tuple(picture for number in numbers for picture in root.embedded(row, f"image_{number}"))
        return Item(name, marked_once(text), images, row.text("answer"), fields)

    for file in root.find("MMMU/*/validation*"):
        yield from each(root.parquet(file, without=("explanation",), pictures=PICTURES), item)


def literal(row: Row, text: str) -> list[str]:
    if (values := listed(text)) is None:
        raise row.bad(f'"options" is {text[:60]!r}, must be a list')
    return values


def listed(text: str) -> list[str] | None:
    """What is in a list as Python writes it; None for all else."""
    try:
        values = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return [str(value) for value in values] if isinstance(values, list) else None


def marked_once(text: str) -> str:
    """<image N> becomes <image> where it stands first; the picture is shown once."""
    for number in dict.fromkeys(MARK.findall(text)):
        text = re.sub(rf"<image\s{number}>", "<image>", text, count=1)
    return text


def golds(item: Item) -> str | Sequence[str]:
    """An open answer may be a list, as Python writes it."""
    values = listed(item.gold) if item.gold.startswith("[") else None
    return item.gold if values is None else values


def parse(item: Item, answer: str):
    if item.fields["type"] == "open":
        return open_answers(answer)
    return mmmu_rules.choice(answer, lettered(item.fields["choices"]))


def parse_raw(item: Item, answer: str):
    return open_answers(answer) if item.fields["type"] == "open" else answer or None


def open_answers(answer: str):
    return mmmu_rules.open_answers(answer) if answer.strip() else None


def mark(item: Item, parsed) -> float:
    """Where no choice was found one is drawn, as its authors do; always the same for a question."""
    if item.fields["type"] == "open":
        return float(mmmu_rules.is_right(parsed or (), golds(item)))
    letters = list(lettered(item.fields["choices"]))
    return float((parsed or (random.Random(item.id).choice(letters) if letters else None)) == item.gold)


def mark_raw(item: Item, parsed) -> float:
    if item.fields["type"] == "open":
        return float(mmmu_rules.is_right(parsed or (), item.gold))
    return float(parsed == item.gold)


def printed(samples) -> Summary:
    """By domain and subject in the original's form: shares of 1, three digits."""
    subjects = grouped([sample for sample in samples if sample.item.fields["domain"]], "subject")
    splits = {}
    for domain, names in DOMAINS.items():
        here = {name: subjects[name] for name in names if name in subjects}
        splits[f"Overall-{domain}"] = share([sample for group in here.values() for sample in group])
        splits |= {name: share(group) for name, group in here.items()}
    known = [sample for group in subjects.values() for sample in group]
    splits["Overall"] = share(known)
    return Summary(100 * splits["Overall"]["acc"] if known else None, mean(marked(known))[1], splits)


def share(samples) -> dict[str, float | int]:
    scores = marked(samples)
    return {"num": len(scores), "acc": round(sum(scores) / len(scores), 3) if scores else 0}


PARTS = {"subject": DOMAIN}
SCORINGS = {
    "trol": Scoring(
        "choices: the answer is the letter; open: the authors' rules; accuracy, three digits",
        parse_raw,
        mark_raw,
        printed,
        first_of_each_id,
        parts=PARTS,
    ),
    "standard": Scoring(
        "the authors' rules; where no choice is found one is drawn by the question's id; accuracy",
        parse,
        mark,
        accuracy("subject", "domain", "type"),
        parts=PARTS,
    ),
}
BENCHMARK = Benchmark("mmmu", read, SCORINGS)
