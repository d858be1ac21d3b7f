"""Files of questions, a JSON object a line:

    {"question": "what is this?", "image": "cat.jpg"}

"image" may be a list of files, or missing; names are relative to the folder of the file. Other fields go into the
answers as they are, each of which is its question's line with "prediction" (or "error") and "source" added.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

from trol_jax.errors import UserError
from trol_jax.infer.answer import Answerer, Question
from trol_jax.infer.decoding import Decoding
from trol_jax.journal import Journal

ADDED = ("id", "prediction", "error", "source")


def read(path: str | os.PathLike) -> list[dict]:
    """The lines as they are, with their number as "id"; UserError that names the first line that is no question."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not numbered:
        raise UserError(f'{path} holds no question; each line is one, as {{"question": "what is this?"}}')
    return [{"id": number, **_row(line, f"{path}, line {number}")} for number, line in numbered]


def _row(line: str, where: str) -> dict:
    try:
        row = json.loads(line, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f'{where} is not an object, as {{"question": "what is this?"}}')
    if not isinstance(row.get("question"), str) or not row["question"].strip():
        raise UserError(f'{where} has no text under "question"')
    if not all(isinstance(name, str) and name for name in _images(row)):
        raise UserError(f'{where}: "image" must be the name of a file, or a list of names')
    if taken := [name for name in ADDED if name in row]:
        raise UserError(f'{where}: the field "{taken[0]}" is written with the answers; give it another name')
    return row


def _refuse(constant: str):
    raise ValueError(f"{constant} is no number of JSON")


def _finite(text: str) -> float:
    """What could be written again."""
    return float(text) if math.isfinite(float(text)) else _refuse(text)


def _images(row: dict) -> list[str]:
    images = row.get("image")
    return [] if images is None else images if isinstance(images, list) else [images]


def answer(
    answerer: Answerer,
    path: str | os.PathLike,
    output: str | os.PathLike,
    source: str,
    max_new_tokens: int,
    decoding: Decoding,
    batch_size: int = 8,
) -> Iterator[dict]:
    """Writes the answers to `output`, a line as soon as it is ready, and yields those lines.

    source: names the checkpoint and how it is asked. Started again it goes on where it was stopped, and asks again what
    could not be asked; a file of another source is never changed.
    """
    rows, journal = read(path), Journal(Path(output), source, ADDED)
    found = journal.read({row["id"]: row for row in rows})
    known = {number: found[number] for number in sorted(found) if "error" not in found[number]}
    if len(known) < len(found):
        journal.write(known.values())
    yield from known.values()
    todo = [row for row in rows if row["id"] not in known]
    folder = Path(path).parent
    questions = [Question(row["question"], [folder / name for name in _images(row)]) for row in todo]
    numbers = [row["id"] for row in todo]
    given = answerer.answer(questions, max_new_tokens, decoding, batch_size, numbers=numbers, skip=True)
    for row, each in zip(todo, given, strict=True):
        said = {"error": str(each)} if isinstance(each, UserError) else {"prediction": each.text}
        line = row | said | {"source": source}
        journal.append([line])
        yield line
