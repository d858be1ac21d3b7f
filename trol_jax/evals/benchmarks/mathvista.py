"""MathVista testmini. Its authors let a judge find the answer in what was said; rules find it where that is plain."""

import math
import re

from trol_jax.evals.files import Root, Row, each
from trol_jax.evals.items import Benchmark, Item, Judged, Scoring, Unreadable
from trol_jax.evals.parsing import after_last, choice, lettered
from trol_jax.evals.scoring import accuracy, equal, unscored

FILE = "MathVista/testmini-*.parquet"
SPLITS = ("question_type", "answer_type", "language", "source", "category", "task", "context", "grade")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def read(root: Root):
    def item(row):
        fields = {name: row.text(name) for name in ("question_type", "answer_type")}
        fields["choices"] = [] if row.data.get("choices") is None else row.texts("choices")
        fields["precision"] = digits(row)
        fields |= {name: value for name, value in row.get("metadata", dict).items() if name in (*SPLITS, "skills")}
        fields["record"] = row.data
        images = (root.picture(row, "MathVista", row.text("image")),)
        return Item(row.text("pid"), row.text("query"), images, row.text("answer"), fields)

    for file in root.find(FILE):
        yield from each(root.parquet(file, without=("decoded_image",)), item)


def digits(row: Row) -> int:
    """After the point of a gold number; tables that have been in pandas say NaN for none."""
    value = row.get("precision", int, float, type(None))
    if value is None or math.isnan(value):
        return 0
    if not 0 <= value <= 100:
        raise row.bad(f'"precision" is {value}, must be a number of digits')
    return int(value)


def extract(item: Item, answer: str) -> str | None:
    """The text of a choice; a number, rounded as the gold is; a list as it is written."""
    fields, said = item.fields, after_last(answer, "answer is", "answer:")
    if fields["question_type"] == "multi_choice":
        options = lettered(fields["choices"])
        letter = next((letter for letter, text in options.items() if said == text), None) or choice(said, options)
        return options.get(letter)
    if fields["answer_type"] in ("integer", "float"):
        numbers = NUMBER.findall(said.replace(",", ""))
        return rounded(numbers[0], fields) if len(numbers) == 1 else None
    return said or None


def rounded(text: str, fields) -> str:
    value = float(text)
    if not math.isfinite(value):
        return text
    return str(int(value)) if fields["answer_type"] == "integer" else str(round(value, fields["precision"]))


# ---------------------------------------------------------------------- judge
PROMPT = """Find the final answer in a reply to a question, and write it alone, in the form that the hint asks for.
Write "none" if the reply gives no answer. Do not solve the question.

Hint: Please provide an integer, e.g., 1, 2, 3.
Question: How many cups are there?
Reply: On the left are two cups and on the right one, so there are three.
Answer: 3

Hint: Please provide the correct option letter, e.g., A, B, C, D.
Question: Which is longer? Choices: (A) the bridge (B) the road
Reply: The road seems to be longer than the bridge.
Answer: B

{question}
Reply: {answer}
Answer:"""


def talk(item: Item, answer: str):
    """Rules find what is plain; a judge is asked where they find nothing."""
    parsed = extract(item, answer)
    if parsed is None:
        reply = (yield PROMPT.format(question=item.question, answer=answer)).strip()
        parsed = None if reply.lower().rstrip(".") == "none" else normal(item, reply)
    return parsed, equal(item, parsed)


def normal(item: Item, reply: str) -> str:
    """Of a choice that is not named, the nearest."""
    parsed = extract(item, reply) if reply else None
    if parsed is None and reply and item.fields["question_type"] == "multi_choice" and item.fields["choices"]:
        parsed = min(item.fields["choices"], key=lambda choice: distance(reply, choice))
    if parsed is None:
        raise Unreadable
    return parsed


def distance(a: str, b: str) -> int:
    """Levenshtein's."""
    row = list(range(len(b) + 1))
    for i, mine in enumerate(a, start=1):
        last, row[0] = row[0], i
        for j, theirs in enumerate(b, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (mine != theirs))
    return row[-1]


SUMMARY = accuracy(*SPLITS)
JUDGED = Judged("rules or a judge find the answer, the authors' normal form; accuracy", talk, SUMMARY)
RULE = "rules find the answer, the authors' normal form; accuracy"
SCORINGS = {
    "trol": unscored("a judge finds the answers", JUDGED),
    "standard": Scoring(RULE, extract, equal, SUMMARY, judged=JUDGED),
}
BENCHMARK = Benchmark("mathvista", read, SCORINGS)
