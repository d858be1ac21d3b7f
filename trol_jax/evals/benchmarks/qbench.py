"""Q-Bench (LLVisionQA) dev: how good the picture itself is. In English, and in Chinese."""

from trol_jax.evals.benchmarks.choices import lines, standard
from trol_jax.evals.files import Root, each
from trol_jax.evals.items import Benchmark, Item, Scoring
from trol_jax.evals.parsing import LETTERS, trol_letter
from trol_jax.evals.scoring import accuracy, first_of_each_id

FOLDER = "LLVisionQA-QBench"
FILES = {"qbench": "llvisionqa_dev.json", "qbench_cn": "质衡-问答-验证集.json"}


def reader(file: str):
    def read(root: Root):
        def item(row):
            choices, gold = row.texts("candidates"), row.text("correct_ans")
            if gold not in choices:
                raise row.bad(f'"correct_ans" is none of the candidates: {gold!r}')
            images = (root.picture(row, FOLDER, "images", row.text("img_path")),)
            fields = {"choices": choices} | {name: row.data.get(name) for name in ("type", "concern")}
            question = "\n".join([row.text("question"), lines(choices)])
            return Item(row.number - 1, question, images, LETTERS[choices.index(gold)], fields)

        return each(root.objects(f"{FOLDER}/{file}"), item)

    return read


def mark(item, parsed: str | None) -> float:
    """What is no choice stands for the last one."""
    choices = item.fields["choices"]
    place = LETTERS.index(parsed) if parsed else -1
    return float(choices[place if place < len(choices) else -1] == choices[LETTERS.index(item.gold)])


SCORINGS = {
    "trol": Scoring(
        "letter alone, first letter of an answer with a period, or 'The answer is X.', else the last choice; accuracy",
        lambda item, answer: trol_letter(answer),
        mark,
        accuracy("type", "concern"),
        first_of_each_id,
    ),
    "standard": standard("type", "concern"),
}
BENCHMARKS = tuple(Benchmark(name, reader(file), SCORINGS, instruction="qbench") for name, file in FILES.items())
