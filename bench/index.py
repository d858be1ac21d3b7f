"""Time and memory of indexing a large JSON array, and of reading it, in a folder that is made for it and removed.

    python -m launch.bench index [--megabytes=1000] [--folder=DIR]

Rows are conversations of a picture with 600 letters. They were just written, so they come from memory, not a disk.
"""

import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable

from absl import flags

from trol_jax.data.records import JsonRecords

MEGABYTES = flags.DEFINE_integer("megabytes", 1000, "Size of the array.", lower_bound=1)
FOLDER = flags.DEFINE_string("folder", None, "Where it is made, by default where temporary files are.")
READ = 10_000  # rows, in random order
TOGETHER = 1024  # rows written at once


def run() -> None:
    with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
        path = os.path.join(folder, "data.json")
        rows = write(path, MEGABYTES.value * 1_000_000)
        size, before = os.path.getsize(path), peak()
        print(f"{rows:,} rows, {size / 1e6:,.0f} MB")
        records = told("index", lambda: JsonRecords(path))
        assert len(records) == rows
        records = told("open again", lambda: JsonRecords(path))
        places = random.Random(0).choices(range(rows), k=READ)
        told(f"read {READ:,} rows", lambda: [records[place] for place in places])
        print(f"memory: {peak() - before:,.0f} MB more than {before:,.0f} before")


def told(what: str, work: Callable):
    began = time.perf_counter()
    made = work()
    print(f"{what:<20} {time.perf_counter() - began:>9.3f} s", flush=True)
    return made


def peak() -> float:
    """Megabytes, the most that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def write(path: str, size: int) -> int:
    """A JSON array of at least so many bytes; returns its rows."""
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "so " * 200}]
    rows = 0
    with open(path, "w") as file:
        file.write("[")
        while file.tell() < size:
            part = range(rows, rows + TOGETHER)
            text = (json.dumps({"id": f"{n:09}", "image": f"coco/{n:012}.jpg", "conversations": talk}) for n in part)
            file.write((",\n" if rows else "") + ",\n".join(text))
            rows += TOGETHER
        file.write("]")
    return rows
