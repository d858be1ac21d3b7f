"""Questions with pictures and the answers of every run, as the report's page takes them."""

import contextlib
import io
import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash
from PIL import Image
from tqdm import tqdm

from trol_jax import journal
from trol_jax.data.images import load_image
from trol_jax.errors import UserError
from trol_jax.evals.benchmarks import BENCHMARKS
from trol_jax.evals.files import Root
from trol_jax.evals.instructions import IMAGE
from trol_jax.evals.items import Item
from trol_jax.evals.report.runs import Run, Sample

FOLDER = "pictures"  # below the output: pictures that the page does not hold itself
EMBEDDED = 1000  # so many it does: about 10 MB
LONGEST_SIDE, QUALITY = 320, 55
LONGEST_TEXT = 4000  # characters


class Pictures:
    """Small copies, each once, as addresses that a page takes: the first as data, the others beside it."""

    def __init__(self, output: Path):
        self.output, self.addresses, self.places, self.lost = output, [], {}, 0

    def place(self, image: bytes | Path) -> int | None:
        """Of its address; None for one that cannot be read."""
        key = image if isinstance(image, Path) else xxhash.xxh3_128_digest(image)
        if key not in self.places:
            small = thumbnail(image)
            self.places[key] = None if small is None else self._keep(small)
        self.lost += self.places[key] is None
        return self.places[key]

    def _keep(self, small: bytes) -> int:
        if len(self.addresses) < EMBEDDED:
            self.addresses.append(f"data:image/webp;base64,{b64encode(small).decode()}")
        else:
            name = f"{FOLDER}/{len(self.addresses)}.webp"
            journal.write(self.output / name, small)
            self.addresses.append(name)
        return len(self.addresses) - 1


def thumbnail(image: bytes | Path) -> bytes | None:
    try:
        picture = Image.fromarray(load_image(image))
    except UserError:
        return None
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=QUALITY, method=1)  # method: of 6, the slower the smaller
    return file.getvalue()


def collect(runs: Sequence[Run], output: Path, root: Path | None = None) -> dict[str, Any]:
    """What the page reads. root: where the pictures are, by default where the run had them that a question is from.

    samples: [benchmark, index, id, prompt, pictures, gold, answers]; an answer is [answer, parsed, score], one for each
    run, null where it has none; benchmarks and pictures are places in the lists of that name.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.samples))
    pictures, rows = Pictures(output), []
    for number, name in enumerate(names):
        own = [run.samples.get(name, {}) for run in runs]
        asked = questions(own)
        looks = dict(total=len(asked), unit="question", mininterval=1.0, leave=False, dynamic_ncols=True)
        with tqdm(desc=f"pictures of {name}", **looks) as bar:
            places = {}
            for which in sorted({run for run, _ in asked}):
                used = root or Path(str(runs[which].results[name].settings.get("root")))
                for index, found in images(name, [sample for run, sample in asked if run == which], used):
                    places[which, index] = [pictures.place(image) for image in found]
                    bar.update()
        for which, sample in asked:
            prompt, gold = sample.prompt.replace(IMAGE, " ").strip(), shown(sample.gold)
            question = [number, sample.index, sample.id, cut(prompt), places.get((which, sample.index), []), gold]
            rows.append([*question, [answer(run.get(sample.index), sample) for run in own]])
    told = {"runs": [run.name for run in runs], "benchmarks": names, "pictures": pictures.addresses}
    return told | {"lost": pictures.lost, "samples": rows}


def questions(runs: Sequence[Mapping[int, Sample]]) -> list[tuple[int, Sample]]:
    """(Number of the first run that has it, question) of all runs, in the reader's order; what other data asks at the
    same place is another question.
    """
    known = {}
    for number, samples in enumerate(runs):
        for sample in samples.values():
            known.setdefault((sample.index, *asks(sample)), (number, sample))
    return sorted(known.values(), key=lambda each: each[1].index)


def answer(given: Sample | None, asked: Sample) -> list | None:
    same = given and asks(given) == asks(asked)
    return [cut(given.answer), shown(given.parsed), given.score] if same else None


def asks(sample: Sample) -> tuple:
    return sample.id, sample.prompt, json.dumps([sample.gold, sample.images])


def images(name: str, asked: Sequence[Sample], root: Path) -> Iterator[tuple[int, list[bytes | Path]]]:
    """(Index, pictures) of the questions. Those inside of a benchmark's files are read there, one after the other;
    what is not found comes as a file that is not there, or as b"".
    """
    here, wanted = Root(root, look=False), {sample.index: sample.images for sample in asked}
    path = lambda image: root / here.spelled(image) if isinstance(image, str) else image or b""  # noqa: E731
    if not all(found and None not in found for found in wanted.values()):
        with contextlib.suppress(UserError):
            for index, item in enumerate(BENCHMARKS[name].read(here)):
                if index in wanted and isinstance(item, Item):
                    del wanted[index]
                    yield index, list(map(path, item.images))
    yield from ((index, list(map(path, found))) for index, found in wanted.items())


def shown(value: Any) -> str | None:
    return value if value is None else cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"


def script(data: Mapping[str, Any]) -> str:
    """As JSON that no text in it can end, where it stands inside of a page."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
