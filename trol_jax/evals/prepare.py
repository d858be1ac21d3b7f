"""Makes the question files that nobody distributes, or not in the form the original takes, from what is distributed."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from trol_jax import journal
from trol_jax.errors import UserError
from trol_jax.evals.benchmarks import ai2d, mme, textvqa
from trol_jax.evals.files import Root, Row
from trol_jax.evals.instructions import SHORT

AI2D, AI2D_TEST = "ai2d/questions/*.json", "ai2d/ai2d_test_ids.csv"
MME = f"{mme.FOLDER}/llava_mme.json"
OCR = "TextVQA/TextVQA_Rosetta_OCR_v0.2_val.json"


@dataclasses.dataclass(frozen=True)
class Way:
    """How a file is made, where everything is there that it is made of."""

    file: str
    needs: tuple[str, ...]  # patterns
    rows: Callable[[Root], Iterator[dict]]

    def possible(self, root: Root) -> bool:
        return all(any(root.path.glob(pattern)) for pattern in self.needs)


def prepare(root: str | os.PathLike, output: str | os.PathLike) -> Iterator[tuple[str, str | UserError]]:
    """Yields of each file its name and what became of it. A file that is there stays as it is.

    root: what is distributed; output: where files go, to the same places below it (it may be the root).
    """
    root, output = Root(root), Path(output)
    if not root.path.is_dir():
        raise UserError(f"{root.path} is not a folder; it should hold the folders of the benchmarks")
    for file in dict.fromkeys(way.file for way in WAYS):
        ways = [way for way in WAYS if way.file == file]
        possible = [way for way in ways if way.possible(root)]
        if (output / file).exists():
            yield file, "there already"
        elif not possible:
            needs = "; or ".join(" and ".join(way.needs) for way in ways)
            yield file, f"not made: {root.path} needs {needs}"
        else:
            yield file, make(possible[0], root, output)


def make(way: Way, root: Root, output: Path) -> str | UserError:
    try:
        if not (rows := list(way.rows(root))):
            return UserError(f"{way.file} would hold no questions: there are none in {' and '.join(way.needs)}")
        text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        journal.write(output / way.file, f"[\n{text}\n]\n".encode())
    except UserError as error:
        return error
    return f"{len(rows):,} questions, from {' and '.join(way.needs)}"


# ---------------------------------------------------------------------- how


def as_they_are(file: str) -> Way:
    """Of JSON lines, as LLaVA distributes them."""
    return Way(file, (f"{file}l",), lambda root: (row.data for row in root.lines(f"{file}l") if sound(row)))


def sound(row: Row) -> bool:
    if not isinstance(row.data, dict):
        raise row.bad("is no object")
    return True


def flattened(root: Root) -> Iterator[dict]:
    """AI2D has a file of questions for each picture, and a list of the pictures that are for testing."""
    wanted = {*root.read(AI2D_TEST).split()}
    files = {Path(file).name.partition(".")[0]: file for file in root.find(AI2D)}
    for number in sorted(wanted & {*files}, key=lambda number: (len(number), number)):
        whole = Row(root.json(files[number]), files[number], 1)
        questions = whole.inner("questions")
        for question in questions.data:
            row = questions.inner(question)
            choices = row.texts("answerTexts")
            metadata = {
                "answerTexts": choices,
                "correctAnswer": row.index("correctAnswer", choices),
                "questionId": row.text("questionId"),
                "abcLabel": row.get("abcLabel", bool),
            }
            yield {"question": question, "imageName": whole.text("imageName"), "metadata": metadata}


def official(root: Root) -> Iterator[dict]:
    """MME has a text for each picture; of some categories texts and pictures are in folders of their own."""
    for category in mme.CATEGORIES:
        for file in sorted((root.path / mme.FOLDER / category).glob("**/*.txt")):
            name = file.relative_to(root.path).as_posix()
            lines = [(n, line) for n, line in enumerate(root.read(name).splitlines(), start=1) if line.strip()]
            if not (picture := picture_of(root, category, file.stem)):
                if not any(question_of(line) for _, line in lines):
                    continue  # a readme
                there = root.path / mme.FOLDER / category
                raise UserError(f"{there} has a text {file.name} and no picture {file.stem}.jpg or .png")
            for number, line in lines:
                if not (question := question_of(line)):
                    raise Row(line, name, number).bad(f"{line[:60]!r} must be a question, a tab, and Yes or No")
                yield {
                    "question_id": f"{category}/{Path(picture).name}",
                    "image": picture,
                    "text": question.replace(mme.THEIRS, "").strip() + SHORT,
                    "category": category,
                }


def question_of(line: str) -> str:
    """What stands before a tab and Yes or No; "" without these."""
    question, tab, gold = line.rpartition("\t")
    return question if tab and gold.strip().lower() in ("yes", "no") else ""


def picture_of(root: Root, category: str, stem: str) -> str | None:
    """Below MME's folder."""
    for name in (f"{category}{folder}/{stem}.{ending}" for folder in ("/images", "") for ending in ("jpg", "png")):
        if (root.path / mme.FOLDER / name).exists():
            return name
    return None


def asked(ocr: bool) -> Callable[[Root], Iterator[dict]]:
    """TextVQA's questions, with what Rosetta read in the pictures or without."""

    def rows(root: Root) -> Iterator[dict]:
        tokens = {row.text("image_id"): row.texts("ocr_tokens") for row in root.objects(OCR, "data")} if ocr else {}
        for row in root.objects(textvqa.ANNOTATIONS, "data"):
            image = row.text("image_id")
            if ocr and image not in tokens:
                raise row.bad(f"{OCR} has nothing of picture {image}")
            read = f"\nReference OCR token: {', '.join(tokens[image])}" if ocr else ""
            text = f"{row.text('question')}{read}{SHORT}"
            yield {"question_id": image, "image": f"{image}.jpg", "text": text, "category": "default"}

    return rows


WAYS = (
    Way(ai2d.FILE, (AI2D, AI2D_TEST), flattened),
    as_they_are(MME),
    Way(MME, (f"{mme.FOLDER}/*/**/*.txt",), official),
    as_they_are(textvqa.WITH_OCR),
    Way(textvqa.WITH_OCR, (textvqa.ANNOTATIONS, OCR), asked(ocr=True)),
    Way(textvqa.WITHOUT_OCR, (textvqa.ANNOTATIONS,), asked(ocr=False)),
)
