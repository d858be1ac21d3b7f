"""HallusionBench: yes or no about pictures that mislead, and about no picture."""

from trol_jax.evals.files import Root, each
from trol_jax.evals.instructions import IMAGE
from trol_jax.evals.items import Benchmark, Item, Sample, Scoring, Summary
from trol_jax.evals.parsing import yes_no_word
from trol_jax.evals.scoring import accuracy, all_right, by, equal, first_of_each_id, marked, mean, part

FILE = "HallusionBench/HallusionBench.json"
GROUP = ("category", "subcategory", "set_id")
DIGIT = {"yes": "1", "no": "0", None: None}


def read(root: Root):
    def item(row):
        gold, file = row.text("gt_answer"), row.get("filename", str, type(None))
        if gold not in ("0", "1"):
            raise row.bad(f'"gt_answer" is {gold!r}, must be 0 or 1')
        fields = {name: row.text(name) for name in (*GROUP, "figure_id", "question_id")}
        if file is None:
            return Item(row.number - 1, row.text("question"), (), gold, fields)
        images = (root.picture(row, "HallusionBench/hallusion_bench", file.removeprefix("./")),)
        return Item(row.number - 1, IMAGE + row.text("question"), images, gold, fields)

    return each(root.objects(FILE), item)


def group(*names: str):
    return lambda sample: tuple(sample.item.fields[name] for name in (*GROUP, *names))


def without_figure(sample: Sample) -> bool:
    """What is asked before a figure is shown belongs to none."""
    return sample.item.fields["category"] == "VS" and sample.item.fields["figure_id"] == "0"


def three(samples) -> Summary:
    """The share of right questions; of questions right on every figure; of figures with every question right."""
    figures = [sample for sample in samples if not without_figure(sample)]
    scores = {
        "aAcc": marked(samples),
        "qAcc": all_right(samples, group("question_id")),
        "fAcc": all_right(figures, group("figure_id")),
    }
    parts = {name: part(found) for name, found in scores.items()}
    return Summary(*mean(scores["aAcc"]), parts | by(samples, "category", "subcategory"))


SCORINGS = {
    "trol": Scoring(
        "1 if 'yes' is anywhere in the answer, else 0; accuracy",
        lambda item, answer: "1" if "yes" in answer.lower() else "0",
        equal,
        accuracy("category", "subcategory"),
        first_of_each_id,
    ),
    "standard": Scoring(
        "the word yes or no; aAcc, with qAcc and fAcc", lambda item, answer: DIGIT[yes_no_word(answer)], equal, three
    ),
}
BENCHMARK = Benchmark("hallusionbench", read, SCORINGS)
