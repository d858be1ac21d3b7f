"""MMBench in English and Chinese. Answers to the test questions are not published; its server scores them."""

import base64
import binascii
from collections.abc import Mapping

from trol_jax.evals.benchmarks.choices import lines, named
from trol_jax.evals.files import Root, Row, each
from trol_jax.evals.items import Benchmark, Item, Judged, Sample, Scoring, Summary, Unreadable
from trol_jax.evals.parsing import first_character, lettered
from trol_jax.evals.scoring import all_right, equal, first_of_each_id, grouped, marked, mean, part

FILES = {
    "mmbench": "MMBench_TEST_EN_legacy.tsv",
    "mmbench_dev": "mmbench_dev_20230712.tsv",
    "mmbench_cn": "MMBench_TEST_CN_legacy.tsv",
    "mmbench_cn_dev": "mmbench_dev_cn_20231003.tsv",
}
QUESTION = "question"  # in every order of its choices
ROTATION = 1_000_000  # added to the index of a question for each time that its choices are turned
NOT_SUBMITTED = ("hint", "category", "source", "image", "comment", "l2-category", None)  # None: more cells than names
ABSENT = ("", "nan", "NaN", None)


def reader(file: str):
    def read(root: Root):
        pictures = Pictures(root)

        def item(row):
            choices = [text for letter in "ABCD" if (text := row.get(letter, str, type(None))) not in ABSENT]
            if not choices:
                raise row.bad("none of A, B, C and D has a text")
            question = [row.text("question"), lines(choices)]
            hint, answer = (row.get(name, str) if row.data.get(name) else None for name in ("hint", "answer"))
            fields = {"choices": choices} | {name: row.data.get(name) for name in ("category", "l2-category")}
            fields["row"] = {name: text for name, text in row.data.items() if name not in NOT_SUBMITTED}
            fields["index"] = number(row)
            return Item(
                fields["index"],
                "\n".join(question if hint in ABSENT else [hint, *question]),
                pictures.of(row),
                None if answer in ABSENT else answer,
                fields,
            )

        return each(root.table(f"MMBench/{file}"), item)

    return read


class Pictures:
    """Base64; a short text is the index of an earlier row that has the picture."""

    def __init__(self, root: Root):
        self.wanted, self.first = root.pictures, {}

    def of(self, row: Row) -> tuple[bytes, ...]:
        if not self.wanted:
            return ()
        text = row.text("image")
        text = self.first.get(text, text)
        if number(row) < ROTATION:
            self.first[row.text("index")] = text
        try:
            data = base64.b64decode(text, validate=True)
        except binascii.Error:
            data = b""
        if len(data) < 16:
            raise row.bad('"image" holds no picture in base64, and no index of an earlier row')
        return (data,)


def number(row: Row) -> int:
    try:
        return int(row.text("index"))
    except ValueError:
        raise row.bad(f'"index" is {row.text("index")!r}, must be a number') from None


def printed(samples) -> Summary:
    """Accuracy over all rows, rotations too, rounded as the original prints it."""
    value, error = mean(marked(samples))
    return Summary(None if value is None else round(value, 2), error, {})


def circular(samples) -> Summary:
    """A question is right if it is with its choices in every order; one that lacks answers to some is left out."""
    scored = [sample for sample in samples if sample.score is not None]
    if not scored:
        return Summary()
    whole = [sample for sample in samples if QUESTION not in sample.lacking]
    rights = all_right(whole, question)
    splits = {
        key: {name: part(all_right(group, question)) for name, group in grouped(whole, key).items() if name}
        for key in ("category", "l2-category")
    }
    return Summary(*mean(rights), splits | {"every_row": part(marked(scored))}, len(rights))


def question(sample: Sample) -> int:
    return turned(sample.item.fields)


def turned(fields: Mapping) -> int:
    """The question that it is in one order of its choices."""
    return int(fields["index"]) % ROTATION


# ---------------------------------------------------------------------- judge
PROMPT = """Which option does an answer to a question mean? Write its letter and nothing else; Z if it means none.

Question: {question}
Answer: {answer}
Letter:"""


def talk(item: Item, answer: str):
    """Rules find what is plain; a judge is asked where they find nothing, and the right answer is known."""
    letter = named(item, answer)
    if letter is None and item.gold is not None:
        reply = (yield PROMPT.format(question=item.question, answer=answer)).strip().rstrip(".").upper()
        if reply not in {*lettered(item.fields["choices"]), "Z"}:
            raise Unreadable
        letter = None if reply == "Z" else reply
    return letter, equal(item, letter)


JUDGED = Judged("rules or a judge find the letter; circular accuracy", talk, circular)
RULE = "letter or text of one choice; circular accuracy"
SCORINGS = {
    "trol": Scoring(
        "first character; accuracy over all rows, two digits",
        lambda item, answer: first_character(answer),
        equal,
        printed,
        first_of_each_id,
    ),
    "standard": Scoring(RULE, named, equal, circular, judged=JUDGED, groups={QUESTION: turned}),
}
BENCHMARKS = tuple(Benchmark(name, reader(file), SCORINGS) for name, file in FILES.items())
