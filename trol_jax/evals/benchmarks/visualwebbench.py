"""VisualWebBench: seven tasks on screenshots of web pages."""

import html
import re

from trol_jax.evals.files import Root, Row, each
from trol_jax.evals.items import Benchmark, Item, Scoring, Summary
from trol_jax.evals.parsing import LETTERS, web_letter
from trol_jax.evals.rouge import rouge_l, rouge_n
from trol_jax.evals.scoring import first_of_each_id, grouped, mean, over

ROUGE, WORDS, LETTER = "rouge", "f1", "accuracy"
METRIC = {
    "web_caption": ROUGE, "heading_ocr": ROUGE, "element_ocr": ROUGE, "webqa": WORDS,
    "element_ground": LETTER, "action_prediction": LETTER, "action_ground": LETTER,
}  # fmt: skip

SCREENSHOT = "You are given a screenshot of a webpage"
BOX = (
    f"{SCREENSHOT} with a red rectangle bounding box. "
    "The [x1, y1, x2, y2] coordinates of the bounding box is {bbox}.\n"
)
LABELLED = "In this website screenshot, I have labeled IDs for some HTML elements as candicates. Tell me which one "
NOTHING_ELSE = "and do not output any explanation or any other contents"
ONE_LETTER = f"\n\nYou should directly tell me your choice in a single uppercase letter, {NOTHING_ELSE}.\n"
PROMPTS = {  # the benchmark's own, its spelling too
    "web_caption": f"{SCREENSHOT}. Please generate the meta web description information of this webpage, i.e., content "
    'attribute in <meta name="description" content=""> HTML element.\n\n'
    f"You should use the following format, {NOTHING_ELSE}:\n"
    '<meta name="description" content="YOUR ANSWER">\n',
    "heading_ocr": f"{SCREENSHOT}. Please generate the main text within the screenshot, which can be regarded as the "
    f"heading of the webpage.\n\nYou should directly tell me the main content, {NOTHING_ELSE}.\n",
    "webqa": f"{{question}}\nYou should directly tell me your answer in the fewest words possible, {NOTHING_ELSE}.\n",
    "element_ocr": f"{BOX}Please perform OCR in the bounding box and recognize the text content within the red "
    "bounding box.\n\nYou should use the following format:\n"
    "The text content within the red bounding box is: <YOUR ANSWER>\n",
    "element_ground": f"{LABELLED}best matches the description: {{elem_desc}}{ONE_LETTER}",
    "action_prediction": f"{BOX}Please select the best webpage description that matches the new webpage after clicking "
    f"the selected element in the bounding box:\n{{options}}{ONE_LETTER}",
    "action_ground": f"{LABELLED}I should click to complete the following task: {{instruction}}{ONE_LETTER}",
}


def read(root: Root):
    def item(row):
        task = row.text("task_type")
        if task not in PROMPTS:
            raise row.bad(f'"task_type" is {task!r}, must be one of {", ".join(PROMPTS)}')
        return Item(row.text("id"), prompt(row, task), root.embedded(row, "image"), gold(row, task), {"task": task})

    for file in root.find("VisualWebBench/**/*.parquet"):
        yield from each(root.parquet(file, without=("raw_image",), pictures=("image",)), item)


def prompt(row: Row, task: str) -> str:
    names = re.findall(r"{(\w+)}", PROMPTS[task])
    return PROMPTS[task].format_map({name: row.get(name, str, list) for name in names})


def gold(row: Row, task: str) -> str | list[str]:
    if METRIC[task] == LETTER:
        place = row.get("answer", int)
        return LETTERS[place] if 0 <= place < len(LETTERS) else str(place)
    return row.texts("answer") if METRIC[task] == WORDS else row.text("answer")


def parse_trol(item: Item, answer: str) -> str | None:
    task = item.fields["task"]
    if METRIC[task] == LETTER:
        return web_letter(answer)
    return None if task == "element_ocr" and len(answer) == 1 else answer or None


def parse(item: Item, answer: str) -> str | None:
    """As the adapters of the benchmark's authors: the content of the tag, what follows the first colon."""
    if item.fields["task"] == "web_caption" and (found := re.search(r'content="(.*?)"', answer, re.DOTALL)):
        answer = html.unescape(found[1])
    if item.fields["task"] == "element_ocr" and ":" in answer:
        answer = answer.partition(":")[2].strip()
    return parse_trol(item, answer)


def measure(item: Item, parsed: str | None) -> dict[str, float]:
    """The task's measures, 0 to 1."""
    metric, said = METRIC[item.fields["task"]], parsed or " "
    if metric == LETTER:
        return {"accuracy": float(parsed == item.gold)}
    if metric == WORDS:
        return {"f1": max((rouge_n(said, text, 1) for text in item.gold), default=0.0)}
    return {
        "rouge_1": rouge_n(said, item.gold, 1),
        "rouge_2": rouge_n(said, item.gold, 2),
        "rouge_l": rouge_l(said, item.gold),
    }


def mark(item: Item, parsed: str | None) -> float:
    return list(measure(item, parsed).values())[-1]


def tasks(samples) -> Summary:
    """The mean of the tasks; every measure of each."""
    splits, mains = {}, []
    for task, group in grouped(samples, "task").items():
        found = [measure(sample.item, sample.parsed) for sample in group]
        splits[task] = {name: mean([each[name] for each in found])[0] for name in found[0]}
        mains.append([sample.score for sample in group])
    return Summary(*over(mains), splits)


PARTS = {"task": METRIC}
SCORINGS = {
    "trol": Scoring(
        "ROUGE, F1 and letters of answers as they are; mean of the tasks",
        parse_trol,
        mark,
        tasks,
        first_of_each_id,
        parts=PARTS,
    ),
    "standard": Scoring(
        "ROUGE, F1 and letters of what the answers' forms hold; mean of the tasks", parse, mark, tasks, parts=PARTS
    ),
}
BENCHMARK = Benchmark("visualwebbench", read, SCORINGS)
