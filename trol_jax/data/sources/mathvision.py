"""MATH-Vision: problems of competitions with a picture, the 3,040 rows of its public TEST split.

Who trains on it cannot report MATH-Vision any more. https://huggingface.co/datasets/mathvision/mathvision
"""

import re
from collections.abc import Mapping

from trol_jax.data.sources.sample import ASSISTANT, IMAGE, USER, Sample, field, identity, paths
from trol_jax.errors import UserError

MARK = re.compile(r"<image\d+>")
COLUMNS = "id", "question", "options", "answer", "image", "decoded_image"
LETTERS = "ABCDEFGHIJ"


def read(row: Mapping, source: str, number: int) -> Sample:
    question = field(row, "question", str) + _choices(row)
    turns = (USER, _one_mark(question)), (ASSISTANT, field(row, "answer", str))
    return Sample(source, identity(row, number, "id"), turns, _picture(row))


def _choices(row: Mapping) -> str:
    """A line each; those in the picture are letters only."""
    options = field(row, "options", list) if row.get("options") is not None else []
    if len(options) > len(LETTERS) or not all(isinstance(option, str) for option in options):
        raise UserError(f"field options is {str(options)[:40]!r}, must be a list of up to {len(LETTERS)} texts")
    pairs = zip(LETTERS, options, strict=False)
    return "".join(f"\n({letter})" if option == letter else f"\n({letter}) {option}" for letter, option in pairs)


def _one_mark(text: str) -> str:
    """<image1>, <image2>, ... are parts of the one picture that is stored: the first stays."""
    before, *rest = MARK.split(text)
    return f"{before}{IMAGE}{''.join(rest)}" if rest else f"{IMAGE}\n{text}"


def _picture(row: Mapping) -> tuple[str | bytes, ...]:
    stored = row.get("decoded_image")
    if stored is None or (isinstance(stored, dict) and stored.get("bytes") is None):
        return paths(row)
    if not isinstance(stored, dict):
        raise UserError("field decoded_image must be an object with bytes and path")
    return (field(stored, "bytes", bytes, "decoded_image."),)
