"""HallusionBench: yes or no about pictures that mislead, and about no picture."""

from collections.abc import Sequence

from trol_jax.evals.files import Root, each
from trol_jax.evals.instructions import IMAGE
from trol_jax.evals.items import Benchmark, Item, Judged, Sample, Scoring, Summary, Unreadable
from trol_jax.evals.parsing import yes_no_word
from trol_jax.evals.scoring import accuracy, all_right, by, equal, first_of_each_id, marked, mean, part

FILE = "HallusionBench/HallusionBench.json"
GROUP = ("category", "subcategory", "set_id")
DETAILS = {"1": "Yes.", "0": "No."}
DIGIT = {"yes": "1", "no": "0", None: None}


def read(root: Root):
    def item(row):
        gold, file = row.text("gt_answer"), row.get("filename", str, type(None))
        if gold not in ("0", "1"):
            raise row.bad(f'"gt_answer" is {gold!r}, must be 0 or 1')
        fields = {name: row.text(name) for name in (*GROUP, "figure_id", "question_id")}
        fields["record"] = row.data
        fields["details"] = row.data.get("gt_answer_details") or DETAILS[gold]
        if file is None:
            return Item(row.number - 1, row.text("question"), (), gold, fields)
        images = (root.picture(row, "HallusionBench/hallusion_bench", file.removeprefix("./")),)
        return Item(row.number - 1, IMAGE + row.text("question"), images, gold, fields)

    return each(root.objects(FILE), item)


def together(name: str):
    return lambda fields: tuple(fields[each] for each in (*GROUP, name))


GROUPS = {"question": together("question_id"), "figure": together("figure_id")}


def without_figure(item: Item) -> bool:
    """What is asked before a figure is shown belongs to none."""
    return item.fields["category"] == "VS" and item.fields["figure_id"] == "0"


def three(samples) -> Summary:
    """The share of right questions; of questions right on every figure; of figures with every question right.

    Questions and figures that lack an answer are left out of the last two.
    """
    figures = [sample for sample in samples if not without_figure(sample.item)]
    scores = {"aAcc": marked(samples), "qAcc": whole(samples, "question"), "fAcc": whole(figures, "figure")}
    parts = {name: part(found) for name, found in scores.items()}
    return Summary(*mean(scores["aAcc"]), parts | by(samples, "category", "subcategory"))


def whole(samples: Sequence[Sample], name: str) -> list[float]:
    """Of each group whose members all have an answer, whether all are right."""
    answered = [sample for sample in samples if name not in sample.lacking]
    return all_right(answered, lambda sample: GROUPS[name](sample.item.fields))


# ---------------------------------------------------------------------- judge
PROMPT = """Compare an answer to a question with what is right. Write one word and nothing else:
"correct" if the answer says the same; "incorrect" if it contradicts what is right;
"unclear" if it does not commit itself, or says that it cannot know.

Question: {question}
What is right: {details}
Answer: {answer}
Judgement:"""


def talk(item: Item, answer: str):
    """Without its figure a question may be left open."""
    question = item.question.removeprefix(IMAGE)
    reply = yield PROMPT.format(question=question, details=item.fields["details"], answer=answer)
    word = reply.strip().strip('."').lower()
    if word not in ("correct", "incorrect", "unclear"):
        raise Unreadable
    return word, float(word == "correct" or (word == "unclear" and without_figure(item)))


JUDGED = Judged("a judge says whether it is correct; aAcc, with qAcc and fAcc", talk, three)
SCORINGS = {
    "trol": Scoring(
        "1 if 'yes' is anywhere in the answer, else 0; accuracy",
        lambda item, answer: "1" if "yes" in answer.lower() else "0",
        equal,
        accuracy("category", "subcategory"),
        first_of_each_id,
    ),
    "standard": Scoring(
        "the word yes or no; aAcc, with qAcc and fAcc",
        lambda item, answer: DIGIT[yes_no_word(answer)],
        equal,
        three,
        judged=JUDGED,
        groups=GROUPS,
    ),
}
BENCHMARK = Benchmark("hallusionbench", read, SCORINGS)
