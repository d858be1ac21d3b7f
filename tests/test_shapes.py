"""The shapes task: every answer found again by another way, from the text of its question and the pixels."""

import collections
import hashlib
import json
import random
import re

import numpy as np
import pytest
from PIL import ImageColor

from trol_jax.data import shapes
from trol_jax.data.easy_vqa import EasyVQA
from trol_jax.data.pipeline import DataOptions, train_iterator
from trol_jax.errors import UserError
from trol_jax.evals.easy_vqa import score

THING = r"(\w+ (?:circle|rectangle|triangle))"
DIGEST = "63b40ca6"  # of the questions below; another one is another task, whose results do not compare


def scene_of(split: str, number: int, seed: int = 0) -> list[shapes.Thing]:
    return shapes.scene(random.Random(f"{seed} {split} {number}"))


def answer_to(question: str, things: list[shapes.Thing]) -> str:
    """By the words alone."""

    def group(words):  # "circles", "red shapes", "shapes"
        word = words.removesuffix(" shapes").removesuffix("s")
        return [t for t in things if words == "shapes" or word in (t.shape, t.color)]

    def beside(way, name):
        (place,) = [t for t in things if f"{t.color} {t.shape}" == name]
        x, y = place.middle
        lies = {
            "left of": lambda t: t.middle[0] < x - 10, "right of": lambda t: t.middle[0] > x + 10,
            "above": lambda t: t.middle[1] < y - 10, "below": lambda t: t.middle[1] > y + 10,
        }  # fmt: skip
        return [*filter(lies[way], things)]

    yes = lambda true: "yes" if true else "no"  # noqa: E731
    way = "(left of|right of|above|below)"
    if found := re.fullmatch(rf"how many shapes are {way} the {THING}\?", question):
        return str(len(beside(*found.groups())))
    if found := re.fullmatch(rf"what (color is the shape|shape is) {way} the {THING}\?", question):
        (only,) = beside(*found.groups()[1:])
        return only.color if found[1].startswith("color") else only.shape
    if found := re.fullmatch(rf"is the {THING} {way} the {THING}\?", question):
        return yes(found[1] in [t.name for t in beside(found[2], found[3])])
    if found := re.fullmatch(r"how many (.*) are there\?", question):
        return str(len(group(found[1])))
    if found := re.fullmatch(r"are there more (.*) than (.*)\?", question):
        return yes(len(group(found[1])) > len(group(found[2])))
    if found := re.fullmatch(rf"is there a {THING}\?", question):
        return yes(found[1] in [t.name for t in things])
    if found := re.fullmatch(r"what color is the (\w+)\?", question):
        ((only),) = group(f"{found[1]}s")
        return only.color
    if found := re.fullmatch(r"what shape is (\w+)\?", question):
        (only,) = group(f"{found[1]} shapes")
        return only.shape
    assert question == "what is in the picture?"
    return ", ".join(t.name for t in things)


def test_every_answer_is_true_and_every_kind_is_asked():
    answers = collections.defaultdict(collections.Counter)
    for number in range(300):
        things = scene_of("train", number)
        picture, rows = shapes.example("train", number)
        assert len({question for question, *_ in rows}) == len(rows)
        for question, answer, kind in rows:
            assert answer_to(question, things) == answer, (number, question)
            answers[kind][answer] += 1
        pixels = np.asarray(picture)
        for thing in things:
            x, y = (round(each) for each in thing.middle)
            assert tuple(pixels[y, x]) == ImageColor.getrgb(thing.color)
    assert set(answers) == {*shapes.KINDS, "describe"}
    for kind in ("exist", "compare", "relation"):
        assert 0.42 < answers[kind]["yes"] / answers[kind].total() < 0.58
    assert max(answers["count"].values()) < 0.4 * answers["count"].total()


def test_the_task_is_always_the_same():
    rows = [shapes.example(split, number)[1] for split in ("train", "test") for number in range(50)]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:8] == DIGEST
    assert shapes.example("train", 0, seed=1)[1] != rows[0]
    scenes = {split: {tuple(t.name for t in scene_of(split, n)) for n in range(50)} for split in ("train", "test")}
    assert scenes["train"] != scenes["test"]
    assert not any(kind == "describe" for row in rows[50:] for *_, kind in row)


def test_it_is_read_as_easy_vqa_is(tmp_path):
    written = shapes.write_shapes(tmp_path / "shapes", pictures={"train": 3, "test": 4})
    test, train = (EasyVQA(split, tmp_path / "shapes") for split in ("test", "train"))
    questions = test.questions()
    assert (len(test), len(questions), train.upright) == (4, written["test"], True)
    assert {row["kind"] for row in questions} <= set(shapes.KINDS)
    result = score([row | {"prediction": row["answer"]} for row in questions])
    assert result["accuracy"] == 1 and set(result["by_kind"]) == {row["kind"] for row in questions}
    options = DataOptions("", turns=4, isolate_turns=True, max_length=99, augment=("hflip",), system="", workers=0)
    with pytest.raises(UserError, match=r"data\.augment turns left into right"):
        train_iterator(train, options, None, image_size=64, image_tokens=16, batch_size=1, seed=0)
    with pytest.raises(UserError, match="shapes is there already; name a folder that is new or empty"):
        shapes.write_shapes(tmp_path / "shapes")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shapes"]
