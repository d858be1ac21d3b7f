"""A harder task than easy-vqa, drawn here: several coloured shapes in a picture, and questions that take steps.

    kind       an example                                           it takes
    attribute  what color is the circle?                            one look
    exist      is there a red circle?                               binding: of a "no" both words are in the picture
    count      how many red shapes are there?                       counting: 0 to 6
    compare    are there more circles than red shapes?              counting twice
    relation   is the red circle left of the blue triangle?         two places
    chain      what color is the shape left of the red circle?      a place, then a look
    tally      how many shapes are left of the red circle?          a place, then counting
    describe   what is in the picture?                              training only: what pretrains the tower

Three to six shapes of three kinds and of two or three colours lie in a grid of 4 x 4 cells, about in its middles; left,
right, above and below are those of columns and rows. A cell is what one image token of the tiny models covers: to see
is easy, so that what is hard is left to the language model. Yes and no are about equally frequent. A picture depends on
seed, split and its number alone. The folder is that of `data.easy_vqa`, with the kind as a fourth entry of each row;
turned or mirrored its questions would have other answers.
"""

import dataclasses
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence

from PIL import Image, ImageDraw

from trol_jax.data.easy_vqa import COLORS, SHAPES
from trol_jax.data.folders import new_folder

PICTURES = {"train": 4000, "test": 1000}
SIZE, GRID = 64, 4  # pixels of a picture, cells a side
CELL = SIZE / GRID
COLUMN, ROW = 0, 1
DIRECTIONS = {"left of": (COLUMN, -1), "right of": (COLUMN, 1), "above": (ROW, -1), "below": (ROW, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

Turn = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Thing:
    shape: str
    color: str
    cell: tuple[int, int]  # column, row
    middle: tuple[float, float]  # pixels
    radius: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


# ---------------------------------------------------------------------- pictures
def scene(rng: random.Random) -> list[Thing]:
    """In reading order."""
    cells = sorted(rng.sample(list(itertools.product(range(GRID), range(GRID))), rng.randint(3, 6)))
    colors = rng.sample(COLORS, rng.randint(2, 3))
    return [
        Thing(
            rng.choice(SHAPES), rng.choice(colors), (column, row),
            ((column + 0.5) * CELL + rng.uniform(-1, 1), (row + 0.5) * CELL + rng.uniform(-1, 1)), rng.uniform(5, 7),
        )
        for row, column in cells
    ]  # fmt: skip


def draw(things: Sequence[Thing], ground: tuple[int, int, int]) -> Image.Image:
    picture = Image.new("RGB", (SIZE, SIZE), ground)
    pen = ImageDraw.Draw(picture)
    for thing in things:
        (x, y), r = thing.middle, thing.radius
        if thing.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=thing.color)
        elif thing.shape == "rectangle":
            pen.rectangle((x - r, y - 0.7 * r, x + r, y + 0.7 * r), fill=thing.color)
        else:
            pen.polygon(((x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)), fill=thing.color)
    return picture


# ---------------------------------------------------------------------- questions: None where a scene allows none
def attribute(things: Sequence[Thing], rng: random.Random) -> Turn | None:
    turns = [(f"what color is the {each.shape}?", each.color) for each in _only(things, lambda t: t.shape)]
    turns += [(f"what shape is {each.color}?", each.shape) for each in _only(things, lambda t: t.color)]
    return rng.choice(turns) if turns else None


def exist(things: Sequence[Thing], rng: random.Random) -> Turn | None:
    there = {each.name for each in things}
    crossed = {f"{a.color} {b.shape}" for a in things for b in things}
    names, answer = (there, "yes") if rng.random() < 0.5 else (crossed - there, "no")
    return (f"is there a {rng.choice(sorted(names))}?", answer) if names else None


def count(things: Sequence[Thing], rng: random.Random) -> Turn:
    groups = _groups(things)
    groups.append(("shapes", len(things)))
    name, number = rng.choice(groups)
    return f"how many {name} are there?", str(number)


def compare(things: Sequence[Thing], rng: random.Random) -> Turn | None:
    more = rng.random() < 0.5
    pairs = [(a, b) for (a, m), (b, n) in itertools.permutations(_groups(things), 2) if (m > n) == more and m + n]
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    return f"are there more {one} than {other}?", "yes" if more else "no"


def relation(things: Sequence[Thing], rng: random.Random) -> Turn | None:
    named = _only(things, lambda t: t.name)
    facts = [(a, way, b) for a, b in itertools.permutations(named, 2) for way in DIRECTIONS if _lies(a, way, b)]
    if not facts:
        return None
    one, way, other = rng.choice(facts)
    true = rng.random() < 0.5
    return f"is the {one.name} {way if true else OPPOSITE[way]} the {other.name}?", "yes" if true else "no"


def chain(things: Sequence[Thing], rng: random.Random) -> Turn | None:
    turns = []
    for place, way, there in _sides(things):
        if len(there) == 1:
            turns.append((f"what color is the shape {way} the {place.name}?", there[0].color))
            turns.append((f"what shape is {way} the {place.name}?", there[0].shape))
    return rng.choice(turns) if turns else None


def tally(things: Sequence[Thing], rng: random.Random) -> Turn | None:
    turns = [(f"how many shapes are {way} the {place.name}?", str(len(there))) for place, way, there in _sides(things)]
    return rng.choice(turns) if turns else None


def describe(things: Sequence[Thing], rng: random.Random) -> Turn:
    return "what is in the picture?", ", ".join(each.name for each in things)


KINDS: dict[str, Callable] = {
    each.__name__: each for each in (attribute, exist, count, compare, relation, chain, tally)
}  # fmt: skip


def _only(things: Sequence[Thing], key: Callable) -> list[Thing]:
    """Those that are the only one of their key."""
    keys = [*map(key, things)]
    return [each for each in things if keys.count(key(each)) == 1]


def _groups(things: Sequence[Thing]) -> list[tuple[str, int]]:
    """Every kind of shape, also where there is none, and the colours that are there, with their numbers."""
    colors = sorted({each.color for each in things})
    groups = [(f"{shape}s", sum(each.shape == shape for each in things)) for shape in SHAPES]
    return groups + [(f"{color} shapes", sum(each.color == color for each in things)) for color in colors]


def _lies(one: Thing, way: str, other: Thing) -> bool:
    axis, sign = DIRECTIONS[way]
    return sign * (one.cell[axis] - other.cell[axis]) > 0


def _sides(things: Sequence[Thing]) -> Iterator[tuple[Thing, str, list[Thing]]]:
    """Of each thing that its name tells, and each direction, what lies there."""
    for place in _only(things, lambda t: t.name):
        for way in DIRECTIONS:
            yield place, way, [each for each in things if _lies(each, way, place)]


# ---------------------------------------------------------------------- files
def example(split: str, number: int, seed: int = 0) -> tuple[Image.Image, list[tuple[str, str, str]]]:
    """(picture, [(question, answer, kind), ...]); in training two questions of each kind, where there are as many."""
    rng = random.Random(f"{seed} {split} {number}")
    things = scene(rng)
    picture = draw(things, tuple(rng.randint(215, 250) for _ in range(3)))
    rows = {}
    for kind, ask in [*KINDS.items()] * (2 if split == "train" else 1):
        if turn := ask(things, rng):
            rows.setdefault(turn[0], (*turn, kind))
    if split == "train":
        rows["describe"] = (*describe(things, rng), "describe")
    return picture, list(rows.values())


def write_shapes(root: str | os.PathLike, seed: int = 0, pictures: dict[str, int] = PICTURES) -> dict[str, int]:
    """Writes the folder; returns the questions of each split. UserError if there is something already."""
    with new_folder(root) as folder:
        return {split: _write(f"{folder}/{split}", split, seed, count) for split, count in pictures.items()}


def _write(folder: str, split: str, seed: int, pictures: int) -> int:
    os.makedirs(os.path.join(folder, "images"))
    rows = []
    for number in range(pictures):
        picture, turns = example(split, number, seed)
        picture.save(os.path.join(folder, "images", f"{number}.png"))
        rows += [[question, answer, number, kind] for question, answer, kind in turns]
    with open(os.path.join(folder, "questions.json"), "w", encoding="utf-8") as file:
        json.dump(rows, file)
    return len(rows)
