"""What may be wrong with a record of the training data, and what records are like: lengths, turns, pictures."""

import base64
import collections
import dataclasses
import functools
import math
import os
import re
from collections.abc import Iterable

import numpy as np
import xxhash

from trol_jax.data import images
from trol_jax.data.paths import resolve
from trol_jax.data.prompts import FORMATS
from trol_jax.data.sources import IMAGE, SOURCES, Sample, Source
from trol_jax.data.sources.sample import ASSISTANT, USER
from trol_jax.data.tokenizer import Tokenizer
from trol_jax.errors import StorageError, UserError

ERROR, WARNING = "error", "warning"  # training leaves the sample out, or fails; it uses it, not quite as meant
KINDS = {
    "file": (ERROR, "the file is missing, or damaged between its rows"),
    "row": (ERROR, "a row that cannot be read, or names a path beyond the root"),
    "roles": (ERROR, "turns do not alternate, or begin with the assistant"),
    "marks": (ERROR, "the questions have not as many picture marks as there are pictures"),
    "empty answer": (ERROR, "an answer has no text"),
    "picture missing": (ERROR, "a picture is not there"),
    "picture unreadable": (ERROR, "a picture that is none, is damaged or has more pixels than are decoded"),
    "open end": (WARNING, "the last question has no answer; it is left out"),
    "mark in answer": (WARNING, "an answer has a picture mark, which is learned as text"),
    "special token": (WARNING, "a text spells a token of the chat format, which is read as text"),
    "too long": (WARNING, "longer than --max_length"),
    "duplicate id": (WARNING, "an id that an earlier row has"),
    "extension": (WARNING, "the name of a picture ends otherwise than its content; it is read by content"),
    "picture size": (WARNING, "a picture is tiny or a strip"),
    "count": (WARNING, "not as many rows as were published"),
}
EXAMPLES = 3  # of each kind in a block, and of each source
SHORTEST_SIDE, LONGEST_STRIP = 10, 20  # pixels; one side to the other
EXTENSIONS = {
    "PNG": ("png",), "JPEG": ("jpg", "jpeg", "jfif"), "GIF": ("gif",), "BMP": ("bmp",), "WEBP": ("webp",),
    "TIFF": ("tif", "tiff"), "PPM": ("ppm", "pgm", "pbm", "pnm"),
}  # fmt: skip
SPECIALS = re.compile("|".join(
    re.escape(mark) for mark in sorted({m for f in FORMATS.values() for m in (*f.specials, f.image)} - {IMAGE})
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rules:
    """How records are looked at.

    pictures: not at all, their headers, or their pixels too (JPEGs at an eighth of their size).
    max_length: tokens of the tokeniser in a file (tokenizer.json), or characters where that is "".
    """

    pictures: str = "header"
    max_length: int = 8192
    tokenizer: str = ""


@dataclasses.dataclass
class Findings:
    """Of some records of a source.

    problems: how often, by kind; examples: [row, id, message] of each kind. lengths, sides: how many, by `step`.
    ids: uint64[rows], hashes of the ids.
    """

    rows: int = 0
    problems: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, list] = dataclasses.field(default_factory=dict)
    lengths: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    turns: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    sides: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    formats: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    ids: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.uint64))

    def add(self, kind: str, row: int | None, identity: str, message: str) -> None:
        self.problems[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append([row, identity[:80], message[:300]])

    def count(self, level: str) -> int:
        return sum(number for kind, number in self.problems.items() if KINDS[kind][0] == level)

    def to_json(self) -> dict:
        return vars(self) | {"ids": base64.b64encode(self.ids.tobytes()).decode()}

    @classmethod
    def from_json(cls, values: dict) -> "Findings":
        """Of what `to_json` gave. Any error of Python for anything else."""
        counters = {
            field.name: collections.Counter({_number(key): int(n) for key, n in values[field.name].items()})
            for field in dataclasses.fields(cls)
            if field.default_factory is collections.Counter
        }
        ids = np.frombuffer(base64.b64decode(values["ids"]), np.uint64)
        return cls(values["rows"], examples=values["examples"], ids=ids, **counters)


def _number(key: str) -> str | int:
    return int(key) if key.isdigit() else key


def joined(parts: Iterable[Findings]) -> Findings:
    """All of them, which come in the order of their rows."""
    whole, ids = Findings(), []
    for part in parts:
        whole.rows += part.rows
        for name in ("problems", "lengths", "turns", "sides", "formats"):
            getattr(whole, name).update(getattr(part, name))
        for kind, examples in part.examples.items():
            known = whole.examples.setdefault(kind, [])
            known += examples[: EXAMPLES - len(known)]
        ids.append(part.ids)
    whole.ids = np.concatenate(ids) if ids else whole.ids
    return whole


def step(value: int) -> int:
    """Two steps to a doubling: step k holds 2**(k/2) up to 2**((k+1)/2)."""
    return int(2 * math.log2(max(1, value)))


# ---------------------------------------------------------------------- records
def check_rows(root: str, name: str, indexes: Iterable[int], rules: Rules) -> Findings:
    """Findings in the samples of these numbers of a source."""
    source, found, ids = opened(root, name), Findings(), []
    for index in indexes:
        found.rows += 1
        try:
            row, sample = source.read(index)
        except StorageError:
            raise
        except UserError as error:
            found.add("row", None, "", str(error))
            ids.append(f"\0{index}")  # equal to no other
            continue
        ids.append(sample.id)
        _check(sample, row, source.root, rules, found)
    hashes = (xxhash.xxh3_64_intdigest(each.encode("utf-8", "surrogatepass")) for each in ids)
    found.ids = np.fromiter(hashes, np.uint64, len(ids))
    return found


@functools.lru_cache(32)
def opened(root: str, name: str) -> Source:
    """The same for all blocks of a process."""
    return Source(SOURCES[name], root)


def _check(sample: Sample, row: int, root: str, rules: Rules, found: Findings) -> None:
    for kind, message in (*_of_text(sample), *_of_length(sample, rules, found)):
        found.add(kind, row, sample.id, message)
    if rules.pictures != "none":
        for picture in sample.pictures:
            for kind, message in _of_picture(picture, root, rules, found):
                found.add(kind, row, sample.id, message)


def _of_text(sample: Sample) -> Iterable[tuple[str, str]]:
    """(kind, message) of each problem."""
    roles = [role for role, _ in sample.turns]
    if roles != [(USER, ASSISTANT)[number % 2] for number in range(len(roles))]:
        yield "roles", f"turns are by {', '.join(roles[:6])}"
    elif roles[-1] == USER:
        yield "open end", f"the last of {len(roles)} turns is a question"
    marks = sum(text.count(IMAGE) for role, text in sample.turns if role == USER)
    if marks != len(sample.pictures):
        yield "marks", f"{marks} marks {IMAGE} in the questions, {len(sample.pictures)} pictures"
    answers = [text for role, text in sample.turns if role == ASSISTANT]
    if not answers or not all(answer.strip() for answer in answers):
        yield "empty answer", f"{sum(not answer.strip() for answer in answers)} of {len(answers)} answers are empty"
    if any(IMAGE in answer for answer in answers):
        yield "mark in answer", f"{IMAGE} in {next(answer for answer in answers if IMAGE in answer)[:80]!r}"
    if mark := next(filter(None, (SPECIALS.search(text) for _, text in sample.turns)), None):
        yield "special token", f"{mark[0]} in {mark.string[max(0, mark.start() - 30) : mark.end() + 30]!r}"


def _of_length(sample: Sample, rules: Rules, found: Findings) -> Iterable[tuple[str, str]]:
    found.turns[len(sample.turns)] += 1
    tokenizer = rules.tokenizer and _tokenizer(rules.tokenizer)
    measure = (lambda text: len(tokenizer.encode(text, specials=False))) if tokenizer else len
    length = sum(measure(text) for _, text in sample.turns)
    found.lengths[step(length)] += 1
    if length > rules.max_length:
        yield "too long", f"{length:,} {'tokens' if tokenizer else 'characters'}"


@functools.lru_cache(1)
def _tokenizer(path: str) -> Tokenizer:
    with open(path, "rb") as file:
        return Tokenizer.parse(file.read(), path)


def _of_picture(picture: str | bytes, root: str, rules: Rules, found: Findings) -> Iterable[tuple[str, str]]:
    path = picture if isinstance(picture, bytes) else resolve(root, picture)
    if isinstance(path, str) and not os.path.isfile(path):
        yield "picture missing", picture
        return
    try:
        header = images.read_header(path)
        images.check_pixels(header.height, header.width, "the picture" if isinstance(path, bytes) else path)
        if rules.pictures == "decode":
            images.try_to_decode(path)
    except UserError as error:
        yield "picture unreadable", str(error)
        return
    found.formats[header.format] += 1
    sides = sorted((header.height, header.width))
    found.sides[step(sides[1])] += 1
    name = "a stored picture" if isinstance(picture, bytes) else picture
    if sides[0] < SHORTEST_SIDE or sides[1] > LONGEST_STRIP * sides[0]:
        yield "picture size", f"{name} is {header.width} x {header.height}"
    extension = os.path.splitext(name)[1][1:].lower()
    if isinstance(picture, str) and extension not in EXTENSIONS[header.format]:
        yield "extension", f"{name} is a {header.format}"
