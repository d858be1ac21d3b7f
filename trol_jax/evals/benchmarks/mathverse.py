"""MathVerse testmini: the same problems with more in the text or more in the picture. A judge scores it; rules find
plain answers.
"""

import re

from trol_jax.evals.files import Root, each
from trol_jax.evals.instructions import IMAGE
from trol_jax.evals.items import Benchmark, Item, Judged, Scoring, Summary, Unreadable
from trol_jax.evals.parsing import after_last, choice
from trol_jax.evals.scoring import accuracy, by, marked, mean, unscored

FILE, TEXT_ONLY = "MathVerse/testmini.json", "MathVerse/testmini_text_only.json"


def read(root: Root):
    rows = list(root.objects(FILE))

    def fields(row) -> dict:
        more = row.get("metadata", dict)
        names = {name: row.text(name) for name in ("problem_index", "problem_version", "question_type", "question")}
        return names | {name: more.get(name) for name in ("subject", "subfield")}

    def item(row):
        images = (root.picture(row, "MathVerse/images", row.text("image")),)
        return Item(row.text("sample_index"), IMAGE + row.text("query_wo"), images, row.text("answer"), fields(row))

    def text_item(row):
        """Numbered on from the others."""
        try:
            number = str(int(row.text("sample_index")) + len(rows))
        except ValueError:
            raise row.bad('"sample_index" must be a number') from None
        return Item(number, row.text("query_wo"), (), row.text("answer"), fields(row))

    yield from each(rows, item)
    yield from each(root.objects(TEXT_ONLY), text_item)


def options(question: str) -> dict[str, str]:
    """Lines "A:text" after "Choices:"."""
    return dict(re.findall(r"^([A-Z])[:.][ \t]*(.*)$", question.partition("Choices:")[2], re.MULTILINE))


def extract(item: Item, answer: str) -> str | None:
    if item.fields["question_type"] == "multi-choice":
        return choice(answer.strip(), options(item.fields["question"]) or dict.fromkeys("ABCD", ""))
    return plain(answer) or None


def plain(text: str) -> str:
    """What follows the last equals sign, without space, dollar signs and degrees."""
    return re.sub(r"[\s$°]|\^?\\circ", "", after_last(text, "answer is", "answer:", "=")).lower()


def mark(item: Item, parsed: str | None) -> float:
    free = item.fields["question_type"] != "multi-choice"
    return float(parsed == (plain(item.gold) if free else item.gold.strip()))


def five_versions(samples) -> Summary:
    """The overall score leaves out Text Only, as its authors do."""
    scores = marked(sample for sample in samples if sample.item.fields["problem_version"] != "Text Only")
    return Summary(*mean(scores), by(samples, "problem_version", "subject", "subfield"), len(scores))


# ---------------------------------------------------------------------- judge
FIND = """Find the final answer in a reply to a problem of mathematics, and write it alone: a letter, a number, a
formula. Do not solve the problem.

Reply: The angles of a triangle sum to 180, so the third is 70 degrees. The answer is (C).
Answer: C

Reply: {answer}
Answer:"""
COMPARE = """Do these two answers to a problem of mathematics mean the same? Write 1 if they do, 0 if not, and nothing
else. A unit or a form that differs does not matter.

Problem: {question}
Right answer: {gold}
Answer to check: {found}
Judgement:"""


def talk(item: Item, answer: str):
    found = (yield FIND.format(answer=answer)).strip()
    if not found:
        raise Unreadable
    reply = yield COMPARE.format(question=item.fields["question"] or "in the picture", gold=item.gold, found=found)
    if reply.strip() not in ("0", "1"):
        raise Unreadable
    return found, float(reply)


JUDGE = "a judge finds the answer and compares it; accuracy of"
SIX = Judged(f"{JUDGE} six versions", talk, accuracy("problem_version", "subject", "subfield"))
FIVE = Judged(f"{JUDGE} five versions", talk, five_versions)
RULE = "rules find the answer, equal texts; accuracy of five versions"
SCORINGS = {
    "trol": unscored("a judge finds the answers and compares them", SIX),
    "standard": Scoring(RULE, extract, mark, five_versions, judged=FIVE),
}
BENCHMARK = Benchmark("mathverse", read, SCORINGS)
