"""Speed of launch.check_data on a folder that is made for it and removed.

    python -m launch.bench check [--rows=20000] [--pictures=500] [--processes=1] [--repeat=3]

Conversations of two questions with 600 letters about a picture, a photograph of 640 x 480, which several rows share.
The fastest of several rounds counts; starting processes is part of each.
"""

import json
import os
import tempfile
import time
from pathlib import Path

from absl import flags

from bench import decode
from trol_jax.data import check_run
from trol_jax.data.check import Rules
from trol_jax.data.sources import SOURCES

ROWS = flags.DEFINE_integer("rows", 20_000, "Records.", lower_bound=1)
PROCESSES = flags.DEFINE_integer("processes", 1, "That look.", lower_bound=1)
NAME = "sharegpt4v_instruct"
flags.set_default(decode.PICTURES, 500)
flags.set_default(decode.REPEAT, 3)


def run() -> None:
    with tempfile.TemporaryDirectory() as root:
        size = write(Path(root))
        print(f"{ROWS.value:,} records, pictures of {size / 1e3:.0f} KB, processes: {PROCESSES.value}")
        for pictures in ("none", "header", "decode"):
            wall, core = map(min, zip(*(taken(root, pictures) for _ in range(decode.REPEAT.value)), strict=True))
            rates = f"{ROWS.value / wall:>8,.0f} records a second, {ROWS.value / core:>8,.0f} a second of one core"
            print(f"--pictures={pictures:<7} {rates}", flush=True)


def taken(root: str, pictures: str) -> tuple[float, float]:
    """Seconds of the wall, and of cores, those of other processes too."""
    wall, core = time.perf_counter(), cores()
    (report,) = check_run.check(root, [NAME], Rules(pictures), processes=PROCESSES.value)
    assert report.rows == ROWS.value and set(report.found.problems) == {"count"}
    return time.perf_counter() - wall, cores() - core


def cores() -> float:
    """Seconds of cores, of this process and of those that it waited for."""
    return time.process_time() + sum(os.times()[2:4])


def write(root: Path) -> float:
    """The files; returns bytes of a picture."""
    paths = [f"coco/train2017/{number:012d}.jpg" for number in range(decode.PICTURES.value)]
    (root / paths[0]).parent.mkdir(parents=True)
    files = [
        decode.photograph(number, decode.WIDTH.value, decode.HEIGHT.value) for number in range(min(32, len(paths)))
    ]
    for number, path in enumerate(paths):
        (root / path).write_bytes(files[number % len(files)])
    answer = "so " * 97
    turns = ("<image>\nWhat is it?", answer, "And then?", answer)
    talk = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(turns)]
    rows = ({"id": str(n), "image": paths[n % len(paths)], "conversations": talk} for n in range(ROWS.value))
    (root / SOURCES[NAME].file).write_text("[" + ",\n".join(map(json.dumps, rows)) + "]")
    return sum(map(len, files)) / len(files)
