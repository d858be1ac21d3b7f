"""Reader of the `easy-vqa` package: pictures of one coloured shape, and questions with 13 answers."""

import importlib.util
import json
import os
import pathlib

import xxhash

from trol_jax.errors import UserError

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
KINDS = {"yes/no": ("no", "yes"), "color": COLORS, "shape": SHAPES}
ANSWERS = tuple(answer for answers in KINDS.values() for answer in answers)
SPLITS = ("train", "test")


def kind_of(answer: str) -> str:
    """The kind of question that has this answer: "yes/no", "color" or "shape"."""
    for kind, answers in KINDS.items():
        if answer in answers:
            return kind
    raise UserError(f"{answer!r} is none of the answers {', '.join(ANSWERS)}")


class EasyVQA:
    """Pictures with all their questions, by number: {"id", "image": path, "turns": [(question, answer), ...]}.

    root: a folder with train/ and test/, each with questions.json (rows [question, answer, picture]) and
    images/<picture>.png; by default that of the installed package. Every row is checked here; UserError names it.
    Rows of another task (`data.shapes`) have a fourth entry, the kind of question, and any answer; `upright` tells
    that there are some, whose pictures must not be turned.
    """

    def __init__(self, split: str, root: str | os.PathLike | None = None):
        if split not in SPLITS:
            raise UserError(f"split {split!r} is not known; choose one of {', '.join(SPLITS)}")
        folder = (package_data() if root is None else pathlib.Path(root)) / split
        file = folder / "questions.json"
        rows = _read(file)
        present = {path.name for path in (folder / "images").glob("*.png")}
        self._images = str(folder / "images")
        self._rows: list[tuple] = []  # as they were read
        pictures: dict[int, list[tuple[str, str]]] = {}
        for number, row in enumerate(rows):
            where = f"{file}, row {number}"
            question, answer, picture, *_ = check_row(row, where)
            if f"{picture}.png" not in present:
                raise UserError(f"{where}: the picture {self._path(picture)} is missing")
            self._rows.append(tuple(row))
            pictures.setdefault(picture, []).append((question, answer))
        self._pictures = list(pictures.items())
        self.upright = any(len(row) > 3 for row in self._rows)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> dict:
        picture, turns = self._pictures[index]
        return {"id": picture, "image": self._path(picture), "turns": list(turns)}

    def questions(self) -> list[dict]:
        """One dict a question in file order: "id" (row number), "image" (path), "question", "answer", "kind"."""
        return [
            {"id": i, "image": self._path(picture), "question": question, "answer": answer}
            | {"kind": kind[0] if kind else kind_of(answer)}
            for i, (question, answer, picture, *kind) in enumerate(self._rows)
        ]

    def fingerprint(self) -> str:
        """The same for the same rows and pictures, wherever they lie."""
        digest = xxhash.xxh3_64(json.dumps(self._rows).encode())
        for picture, _ in self._pictures:
            with open(self._path(picture), "rb") as file:
                digest.update(file.read())
        return digest.hexdigest()

    def texts(self) -> list[str]:
        """Everything that is asked and answered, for the training of a tokeniser."""
        return [text for question, answer, *_ in self._rows for text in (question, answer)]

    def _path(self, picture: int) -> str:
        return os.path.join(self._images, f"{picture}.png")


def package_data() -> pathlib.Path:
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the package easy-vqa is not installed; run `pip install easy-vqa` or name a data folder")
    return pathlib.Path(spec.submodule_search_locations[0]) / "data"


def _read(file: pathlib.Path) -> list:
    if not file.parent.is_dir():
        raise UserError(f"{file.parent} is not a folder; it should hold questions.json and images/")
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing; it should hold rows [question, answer, picture]") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{file} holds no list of rows [question, answer, picture]")
    return rows


def check_row(row, where: str) -> list:
    match row:
        case [str(question), str(answer), int(picture), str(kind)] if not isinstance(picture, bool):
            if question.strip() and answer.strip() and kind.strip():
                return row
        case [str(question), str(answer), int(picture)] if question.strip() and not isinstance(picture, bool):
            if answer not in ANSWERS:
                raise UserError(f"{where}: answer {answer!r} is none of {', '.join(ANSWERS)}")
            return row
    raise UserError(f"{where}: {json.dumps(row)[:80]} is not [question, answer, picture number]")
