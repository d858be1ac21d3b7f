"""A miniature of the whole mixture: the eleven files and the folders of pictures in the layout of the original.

The pictures are those of the easy-vqa package, and most questions too; the rest is made up. It holds what readers must
cope with: rows that the filters drop, rows of text only, several turns, several pictures, a GIF named .jpg, a picture
that its EXIF orientation turns. The same on every machine that has the same releases of Pillow and pyarrow.
"""

import io
import json
import os
from collections.abc import Iterable

import pyarrow
import pyarrow.parquet
from PIL import Image

from trol_jax.data.easy_vqa import EasyVQA
from trol_jax.data.folders import new_folder
from trol_jax.data.sources import SOURCES

WORD = "Answer the question using a single word or phrase."
EXPLAIN = "Answer the question with detailed explanation."
TURN = pyarrow.struct({"from": pyarrow.string(), "value": pyarrow.string()})
GEOMETRY = pyarrow.schema({"image": pyarrow.string(), "conversations": pyarrow.list_(TURN)})
PROBLEM = pyarrow.schema(
    {"id": pyarrow.string(), "question": pyarrow.string(), "options": pyarrow.list_(pyarrow.string())}
    | {"image": pyarrow.string(), "answer": pyarrow.string(), "solution": pyarrow.string(), "level": pyarrow.int64()}
    | {"subject": pyarrow.string()}
    | {"decoded_image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})}
)
SOLUTION = pyarrow.schema({"instruction": pyarrow.string(), "output": pyarrow.string()})
ORIENTATION, QUARTER_TURN = 0x0112, 6  # of EXIF: the picture is stored lying on its left side


def write_demo(root: str | os.PathLike) -> str:
    """Writes the miniature and returns its folder. UserError if there is something already."""
    with new_folder(root) as folder:
        Demo(folder).write()
    return os.path.abspath(root)


class Demo:
    """Writes the files of each source below `root`, with the next pictures of easy-vqa for it."""

    def __init__(self, root: str):
        self.root = root
        source = EasyVQA("train")
        self._examples = (source[number] for number in range(len(source)))

    def write(self) -> None:
        self._json("sharegpt4v_caption", self._captions())
        self._json("sharegpt4v_instruct", self._instructions())
        self._json("allava_text", self._texts())
        self._json("minigemini", self._documents())
        self._json("docdownstream", self._downstream())
        self._json("docreason", self._reasons())
        self._parquet("gllava_align", GEOMETRY, self._figures())
        self._parquet("gllava_qa", GEOMETRY, self._figure_questions())
        self._parquet("mathvision", PROBLEM, self._competitions())
        self._json("mathinstruct", self._sums())
        self._parquet("mathplus", SOLUTION, self._equations())

    def _captions(self) -> Iterable[dict]:
        for number in range(4):
            path = f"coco/train2017/{number:012d}.jpg"
            yield llava(path, [("What do you see?", self._caption(path))])
        path = "sam/images/sa_1.jpg"  # dropped
        yield llava(path, [("Describe this picture.", self._caption(path))])
        path = "llava/llava_pretrain/images/00000/000000001.jpg"
        yield llava(path, [("What is this about?", self._caption(path))], mark_last=True)

    def _instructions(self) -> Iterable[dict]:
        for number, folder in enumerate(("coco/train2017", "gqa/images", "vg/VG_100K", "vg/VG_100K_2")):
            path = f"{folder}/{number}.jpg"
            turns = self._questions(path, 3)
            yield llava(path, [(f"{turns[0][0]}\n{WORD}", turns[0][1]), *turns[1:]])
        path = "ocr_vqa/images/1558700000.jpg"
        yield llava(path, self._questions(path, 2, format="GIF"))
        path = "textvqa/train_images/turned.jpg"
        yield llava(path, self._questions(path, 1, turned=True))
        path = "sam/images/sa_2.jpg"  # kept, unlike that of the captions
        yield llava(path, self._questions(path, 1))
        for path in ("share_textvqa/images/1.png", "web-celebrity/images/1.jpg", "web-landmark/images/1.jpg"):
            yield llava(path, [("Describe it.", self._caption(path))], mark_last=True)
        path = "wikiart/images/1.jpg"
        yield llava(path, self._questions(path, 1))
        haiku = 'Soft taps on the roof,\nthe café "Zur Brücke" fills:\nsteam, umbrellas, 雨.'
        talk = [("Write a haiku about rain.", haiku), ("Shorter?", "Rain taps; tea steams.")]
        yield {"id": "aBcD123_0", "model": "", "conversations": turns_of(talk)}

    def _texts(self) -> Iterable[dict]:
        topics = {"baking soda": "cleaning", "vinegar": "rinsing", "salt": "seasoning", "string": "tying"}
        for number, (thing, use) in enumerate(topics.items()):
            turns = [(f"Name a use of {thing}.", f"A common use of {thing} is {use}.")]
            yield {"idx": f"demo{number}", "conversations": turns_of(turns)}

    def _documents(self) -> Iterable[dict]:
        for path in ("docvqa/images/1.png", "chartqa/train/images/1.png", "dvqa/images/1.png", "ai2d/images/1.png"):
            question, answer = self._questions(path, 1)[0]
            yield llava(path, [(f"{question}\n{WORD}", answer)])
        yield llava("gqa/images/9.jpg", [("What is it?", "A shape.")])  # dropped, as the next two: no picture needed
        yield {"id": "text", "conversations": turns_of([("Say hello.", "Hello.")])}
        yield {"id": "generation", "conversations": turns_of([("Draw a cat.", "Here: <h> a cat in the sun </h>")])}

    def _downstream(self) -> Iterable[dict]:
        tables = ("DocVQA", "InfographicsVQA", "DeepForm", "KleisterCharity", "WikiTableQuestions", "TabFact")
        folders = [("DUE_Benchmark/" + name, name) for name in tables]
        for folder, name in folders + [(name, name) for name in ("ChartQA", "TextCaps", "TextVQA", "VisualMRC")]:
            path = f"./imgs/{folder}/1.png"
            yield docowl([path], *self._questions(path, 1)[0], task="qa_sft", name=name)
        pair = [f"./imgs/DUE_Benchmark/DocVQA/pages_{page}.png" for page in (1, 2)]
        first, second = (self._questions(path, 1)[0] for path in pair)
        question = f"Of the first page: {first[0]} Of the second: {second[0]}"
        yield docowl(pair, question, f"{first[1]}; {second[1]}", task="qa_sft", name="DocVQA")

    def _reasons(self) -> Iterable[dict]:
        for name in ("ChartQA", "VisualMRC", "TextVQA"):
            path = f"./imgs/{name}/reason.png"
            question, answer = self._questions(path, 1)[0]
            explained = f"{answer}\nTo explain in detail, the picture shows one shape, and the answer is {answer}."
            yield docowl([path], f"{question} {EXPLAIN}", explained, task="explanation_sft", name=name)

    def _figures(self) -> Iterable[dict]:
        for path in ("geo3k/train/1/img_diagram.png", "geo3k/train/2/img_diagram.png", "geoqa_plus/1.png"):
            yield geometry(path, "Describe the figure.", self._caption(path))

    def _figure_questions(self) -> Iterable[dict]:
        for number in range(2, 6):
            path = f"geoqa_plus/{number}.png"
            question, answer = self._questions(path, 1)[0]
            yield geometry(path, question, f"One shape is in the figure. The answer is {answer}.")

    def _competitions(self) -> Iterable[dict]:
        questions = {
            "Which shape is it?\n<image1>": ("B", ["none", "one of those that easy-vqa draws"]),
            "Which letter comes first?\n<image1>\n<image2>": ("A", list("ABCDE")),  # choices that the picture shows
            "<image1>How many shapes are there?": ("1", []),
        }
        for number, (question, (answer, options)) in enumerate(questions.items(), start=9001):
            path = f"images/{number}.jpg"
            self._picture(path)
            with open(os.path.join(self.root, path), "rb") as file:
                stored = {"bytes": file.read(), "path": path}
            row = {"id": str(number), "question": question, "options": options, "image": path, "decoded_image": stored}
            yield row | {"answer": answer, "solution": None, "level": 2, "subject": "counting"}

    def _sums(self) -> Iterable[dict]:
        for a, b in ((6, 7), (10, 5), (3, 9)):
            question = f"Ann has {a} pens and buys {b}. How many has she?"
            words = f"{a} + {b} = {a + b}. The answer is {a + b}"
            yield {"source": "data/CoT/demo.json", "output": words, "instruction": question}
            program = f"{question} Let's write a Python program."
            yield {"source": "data/PoT/demo.json", "output": f"pens = {a} + {b}\nprint(pens)", "instruction": program}

    def _equations(self) -> Iterable[dict]:
        for factor in range(2, 8):
            solved = f"Divide both sides by {factor}. The answer is {factor + 1}."
            yield {"instruction": f"Solve {factor}x = {factor * (factor + 1)}.", "output": solved}

    def _questions(self, path: str, count: int, **picture) -> list[tuple[str, str]]:
        return self._picture(path, **picture)[:count]

    def _caption(self, path: str) -> str:
        said = " ".join(f"To {question!r} one would say {answer}." for question, answer in self._picture(path)[:3])
        return f"One coloured shape on a plain ground. {said}"

    def _picture(self, path: str, format: str | None = None, turned: bool = False) -> list[tuple[str, str]]:
        """Writes the next picture of easy-vqa and returns its questions with answers."""
        example = next(self._examples)
        with Image.open(example["image"]) as image:
            image = image.convert("RGB")
        options = {}
        if turned:
            options["exif"] = Image.Exif()
            options["exif"][ORIENTATION] = QUARTER_TURN
            image = image.transpose(Image.Transpose.ROTATE_90)
        encoded = io.BytesIO()
        image.save(encoded, format or ("JPEG" if path.endswith(".jpg") else "PNG"), **options)
        place = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(encoded.getvalue())
        return example["turns"]

    def _json(self, name: str, rows: Iterable[dict]) -> None:
        file = SOURCES[name].file
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        text = "\n".join(lines) if file.endswith(".jsonl") else "[" + ",\n ".join(lines) + "]"
        with open(os.path.join(self.root, file), "w", encoding="utf-8") as file:
            file.write(text + "\n")

    def _parquet(self, name: str, schema: pyarrow.Schema, rows: Iterable[dict]) -> None:
        table = pyarrow.Table.from_pylist(list(rows), schema)
        pyarrow.parquet.write_table(table, os.path.join(self.root, SOURCES[name].file), row_group_size=2)


def turns_of(turns: Iterable[tuple[str, str]]) -> list[dict]:
    return [{"from": who, "value": text} for pair in turns for who, text in zip(("human", "gpt"), pair, strict=True)]


def llava(path: str, turns: list[tuple[str, str]], mark_last: bool = False) -> dict:
    (question, answer), *rest = turns
    question = f"{question}\n<image>" if mark_last else f"<image>\n{question}"
    name = os.path.splitext(path)[0].replace("/", "_")
    return {"id": name, "image": path, "conversations": turns_of([(question, answer), *rest])}


def geometry(path: str, question: str, answer: str) -> dict:
    return {"image": path, "conversations": turns_of([(f"<image>\n{question}", answer)])}


def docowl(paths: list[str], question: str, answer: str, task: str, name: str) -> dict:
    messages = [
        {"role": "user", "content": "<|image|>" * len(paths) + question},
        {"role": "assistant", "content": answer},
    ]
    return {"image": paths, "messages": messages, "task_name": task, "dataset_name": name}
