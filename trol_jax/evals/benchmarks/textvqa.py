"""TextVQA val, with OCR tokens in the questions as in LLaVA's file, or without (which gives lower scores)."""

import dataclasses

from trol_jax.evals.benchmarks import vqa
from trol_jax.evals.evalai import leave_one_out
from trol_jax.evals.files import Root, Row, each
from trol_jax.evals.items import Benchmark, Item
from trol_jax.evals.scoring import first_of_each_id

WITH_OCR, WITHOUT_OCR = "TextVQA/llava_textvqa_val_v051_ocr.json", "TextVQA/llava_textvqa_val_v051.json"
ANNOTATIONS = "TextVQA/TextVQA_0.5.1_val.json"


def reader(file: str):
    def read(root: Root):
        answers = Answers(root)

        def item(row):
            images = (root.picture(row, "TextVQA/train_images", row.text("image")),)
            fields = {"in_place": answers.in_place(row)}
            return Item(row.get("question_id", str, int), row.text("text"), images, answers.of(row), fields)

        return each(root.objects(root.find(f"{file}*")[0]), item)

    return read


class Answers:
    def __init__(self, root: Root):
        self.rows = [row for row in root.objects(ANNOTATIONS, "data") if isinstance(row.data, dict)]
        self.by_question = {}
        for row in self.rows:
            self.by_question.setdefault((str(row.data.get("image_id")), str(row.data.get("question")).lower()), row)

    def of(self, row: Row) -> list[str]:
        """To that question about that picture; where it is worded otherwise, those of the same place and picture."""
        image = row.text("image").rpartition(".")[0]
        found = self.by_question.get((image, row.text("text").split("\n")[0].lower())) or self.at(row)
        if found is None or found.data.get("image_id") != image:
            raise row.bad(f"{ANNOTATIONS} has no answers to this question about picture {image}")
        if len(answers := found.texts("answers")) != 10:
            raise found.bad(f'"answers" holds {len(answers)} texts, must be 10')
        return answers

    def at(self, row: Row) -> Row | None:
        return self.rows[row.number - 1] if row.number <= len(self.rows) else None

    def in_place(self, row: Row) -> list[str] | None:
        return found.texts("answers") if (found := self.at(row)) else None


def mark_in_place(item: Item, answer: str | None) -> float | None:
    golds = item.fields["in_place"]
    return leave_one_out(answer or "", golds) if golds else None


TROL = dataclasses.replace(
    vqa.VQA,
    rule=f"{vqa.VQA.rule}; answers paired by their place in the files, one question a picture",
    mark=mark_in_place,
    select=first_of_each_id,
)
SCORINGS = {"trol": TROL, "standard": vqa.VQA}
BENCHMARKS = (
    Benchmark("textvqa", reader(WITH_OCR), SCORINGS),
    Benchmark("textvqa_no_ocr", reader(WITHOUT_OCR), SCORINGS, instruction="textvqa"),
)
