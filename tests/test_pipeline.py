"""The training pipeline: fixed shapes, every picture once an epoch, and a position that means the same everywhere."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from trol_jax.data import pipeline
from trol_jax.data.easy_vqa import ANSWERS, EasyVQA
from trol_jax.data.pipeline import DataOptions, train_iterator
from trol_jax.data.prompts import FORMATS, encode_chat
from trol_jax.data.tokenizer import train_tokenizer
from trol_jax.errors import UserError

FORMAT = FORMATS["internlm2"]
OPTIONS = DataOptions(
    root="", turns=3, isolate_turns=True, max_length=64, augment=("hflip", "vflip", "rot90"), system="", workers=0
)


class Painted:
    """Ten pictures whose first pixel tells their number, with 5 questions each."""

    def __init__(self, folder):
        self.paths = [str(folder / f"{i}.png") for i in range(10)]
        for i, path in enumerate(self.paths):
            pixels = np.zeros((8, 8, 3), np.uint8)
            pixels[..., 0], pixels[0, 0, 1], pixels[0, 1, 2] = i, 255, 255
            Image.fromarray(pixels).save(path)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return {"id": index, "image": self.paths[index], "turns": [(f"{index} {n}?", "yes") for n in range(5)]}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(ANSWERS, FORMAT)


@pytest.fixture(scope="module")
def easy():
    return EasyVQA("test")


@pytest.fixture
def painted(tmp_path):
    return Painted(tmp_path)


@contextlib.contextmanager
def batches(source, tokenizer, options=OPTIONS, batch_size=4, seed=0, image_size=8, **kwargs):
    sizes = dict(image_size=image_size, image_tokens=4, batch_size=batch_size)
    iterator = train_iterator(source, tokenizer, FORMAT, options, seed=seed, **sizes, **kwargs)
    with contextlib.closing(iterator):
        yield iterator


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def pictures(batch):
    return batch["images"][:, 0, 2, 2, 0].tolist()


def test_shapes_and_padding(easy, tokenizer):
    with batches(easy, tokenizer, image_size=64) as iterator:
        batch = next(iterator)
    expected = {"images": ((4, 1, 64, 64, 3), np.uint8), "loss_mask": ((4, 64), np.bool_)}
    expected |= {name: ((4, 64), np.int32) for name in ("tokens", "positions", "segment_ids", "turn_ids")}
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == expected
    padding = batch["segment_ids"] == 0
    assert padding.any() and set(batch["segment_ids"].ravel()) == {0, 1}
    assert (np.diff(batch["segment_ids"], axis=1) <= 0).all()  # on the right only
    assert (batch["tokens"][padding] == tokenizer.pad_id).all()
    assert not batch["loss_mask"][padding].any()
    assert batch["loss_mask"].any(axis=1).all()
    assert ((batch["tokens"] == tokenizer.image_id).sum(axis=1) == 4).all()


def test_every_epoch_shows_each_picture_once_in_a_new_order(painted, tokenizer):
    with batches(painted, tokenizer, OPTIONS, batch_size=5) as iterator:
        epochs = [pictures(next(iterator)) + pictures(next(iterator)) for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    with batches(painted, tokenizer, OPTIONS, batch_size=5, seed=1) as iterator:
        assert pictures(next(iterator)) + pictures(next(iterator)) != epochs[0]


def test_rows_hold_turns_of_their_picture_in_a_random_order(painted, tokenizer):
    options = dataclasses.replace(OPTIONS, augment=())
    seen = set()
    with batches(painted, tokenizer, options, batch_size=10) as iterator:
        for batch in take(iterator, 4):
            for picture, tokens, turn_ids in zip(pictures(batch), batch["tokens"], batch["turn_ids"], strict=True):
                asked = []
                for turn in (1, 2, 3):
                    text = tokenizer.decode(tokens[turn_ids == turn])
                    number, rest = text.split(" ", 1)
                    assert int(number) == picture
                    asked.append(int(rest[0]))
                assert len(set(asked)) == 3
                seen.add((picture, *asked))
    assert len(seen) > 30


def test_augmentations_are_drawn_anew_and_keep_the_pixels(painted, tokenizer):
    with batches(painted, tokenizer, OPTIONS, batch_size=10) as iterator:
        images = np.concatenate([batch["images"][:, 0] for batch in take(iterator, 12)])
    corners = {(tuple(np.argwhere(image[..., 1])[0]), tuple(np.argwhere(image[..., 2])[0])) for image in images}
    assert len(corners) == 8  # all flips and turns of a square
    with batches(painted, tokenizer, dataclasses.replace(OPTIONS, augment=()), batch_size=10) as iterator:
        assert (next(iterator)["images"][:, 0, 0, 0, 1] == 255).all()


def test_a_restored_position_gives_the_same_batches(painted, tokenizer):
    with batches(painted, tokenizer, OPTIONS) as iterator:
        start = json.loads(json.dumps(iterator.get_state()))
        reference = take(iterator, 3)
        state = json.loads(json.dumps(iterator.get_state()))  # of the batches taken, whatever was fetched ahead
        rest = take(iterator, 6)
        iterator.set_state(state)
        assert_equal(take(iterator, 6), rest)
    with batches(painted, tokenizer, OPTIONS) as iterator:
        next(iterator)
        iterator.set_state(start)
        assert_equal(take(iterator, 9), reference + rest)


def test_worker_processes_change_nothing(easy, tokenizer):
    with batches(easy, tokenizer, image_size=64) as iterator:
        take(iterator, 3)
        state = iterator.get_state()
        rest = take(iterator, 5)
        end = iterator.get_state()
    with batches(easy, tokenizer, dataclasses.replace(OPTIONS, workers=2), image_size=64) as iterator:
        iterator.set_state(state)
        assert_equal(take(iterator, 5), rest)
        assert iterator.get_state() == end


def test_hosts_share_out_the_global_batch(painted, tokenizer):
    with batches(painted, tokenizer, OPTIONS) as iterator:
        whole = take(iterator, 5)
        state = iterator.get_state()
    parts = []
    shares = [(1, 2), (0, 3)]
    for share in range(2):
        with batches(painted, tokenizer, OPTIONS, shares=shares, share=share) as iterator:
            parts.append(take(iterator, 5))
            assert iterator.get_state() == state
    for step, batch in enumerate(whole):
        for key in batch:
            for own, part in zip(shares, parts, strict=True):
                np.testing.assert_array_equal(batch[key][list(own)], part[step][key])


@pytest.mark.parametrize("isolate_turns", [True, False])
def test_a_row_that_is_too_long_drops_its_last_turns(painted, tokenizer, isolate_turns):
    example = painted[0] | {"turns": [("0 0?", "yes")] * 5}  # alike, so that their order does not matter
    options = dataclasses.replace(OPTIONS, turns=5, isolate_turns=isolate_turns)
    lengths = [
        len(encode_chat(tokenizer, FORMAT, example["turns"][:count], 4, "", isolate_turns).tokens)
        for count in range(1, 6)
    ]
    for max_length in (lengths[0], lengths[2] - 1, lengths[2], lengths[4] + 9):
        encode = pipeline.RowEncoder(tokenizer, FORMAT, dataclasses.replace(options, max_length=max_length), 8, 4)
        row = encode(example, np.random.default_rng(0))
        kept = sum(length <= max_length for length in lengths)
        assert row["segment_ids"].sum() == lengths[kept - 1]
        assert (row["tokens"][row["loss_mask"]] == tokenizer.end_id).sum() == kept


@pytest.mark.parametrize("workers", [0, 1])
def test_a_question_that_cannot_fit_is_named(painted, tokenizer, workers):
    options = dataclasses.replace(OPTIONS, max_length=12, workers=workers)
    message = r"\d\.png: the question '\d \d\?' makes a row of \d+ tokens, longer than max_length 12"
    with pytest.raises(UserError, match=message), batches(painted, tokenizer, options):
        pytest.fail("no row fits: that is told before the first batch")
    fits = len(encode_chat(tokenizer, FORMAT, [("?", "yes")], 4, "", True).tokens)
    some = [painted[0] | {"turns": [("?", "yes")]}, *map(painted.__getitem__, range(1, 10))]
    options, message = dataclasses.replace(options, max_length=fits), message.replace("12", str(fits))
    with batches(some, tokenizer, options) as iterator, pytest.raises(UserError, match=message):
        next(iterator)


def test_a_bad_picture_is_named(painted, tokenizer):
    for path in painted.paths[1:]:
        open(path, "wb").close()
    with batches(painted, tokenizer, OPTIONS) as iterator, pytest.raises(UserError, match=r"\d\.png is not a picture"):
        next(iterator)


@pytest.mark.parametrize(
    ("change", "batch_size", "message"),
    [
        ({"augment": ("hflop",)}, 4, "'hflop' is not known; choose from hflip"),
        ({"turns": 0}, 4, r"data\.turns is 0, must be at least 1"),
        ({"workers": -1}, 4, r"data\.workers is -1"),
        ({}, 0, "batch_size 0"),
    ],
)
def test_bad_options_are_named(painted, tokenizer, change, batch_size, message):
    options = dataclasses.replace(OPTIONS, **change)
    with pytest.raises(UserError, match=message):
        next(batches(painted, tokenizer, options, batch_size).gen)
    with pytest.raises(UserError, match="no pictures"):
        next(batches([], tokenizer).gen)


def test_worker_processes_end_with_a_parent_that_is_killed(tmp_path):
    """A parent that makes batches with two workers is killed; soon nothing of it runs."""
    code = (
        "import pathlib, sys, time; from test_pipeline import *\n"
        "if __name__ == '__main__':\n"
        "    tokenizer = train_tokenizer(ANSWERS, FORMAT)\n"
        f"    source = Painted(pathlib.Path({str(tmp_path)!r}))\n"
        "    with batches(source, tokenizer, dataclasses.replace(OPTIONS, workers=2)) as iterator:\n"
        "        next(iterator); print('ready', flush=True); time.sleep(60)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.wait()
    process.stdout.close()
    for _ in range(100):
        left = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True).stdout.split()
        if not left:
            return
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail(f"{len(left)} processes outlived their parent")
