"""What a folder holds of the benchmarks, whether it can be used, and where the rest comes from."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from trol_jax.errors import UserError
from trol_jax.evals.files import BadRow, Root
from trol_jax.evals.items import Benchmark, Item
from trol_jax.evals.score import chosen

HUB, CODE, COCO = "https://huggingface.co/datasets", "https://github.com", "http://images.cocodataset.org/zips"
MADE = "python -m launch.prepare_data --benchmarks makes the questions"
MMBENCH = f"{CODE}/open-compass/MMBench"

# How many questions are published (None: it depends on the release), and where they and their pictures are.
SOURCES: dict[str, tuple[int | None, str]] = {
    "vqav2": (447_793, f"https://visualqa.org/download.html, {COCO}/test2015.zip"),
    "gqa": (12_578, "https://cs.stanford.edu/people/dorarad/gqa/download.html"),
    "sqa": (2_017, f"{CODE}/lupantech/ScienceQA"),
    "vizwiz": (8_000, "https://vizwiz.org/tasks-and-datasets/vqa"),
    "textvqa": (5_000, f"https://textvqa.org/dataset; {MADE}"),
    "textvqa_no_ocr": (5_000, f"https://textvqa.org/dataset; {MADE}"),
    "pope": (9_000, f"{CODE}/AoiDragon/POPE, {COCO}/val2014.zip"),
    "mme": (2_374, f"{CODE}/BradyFU/Awesome-Multimodal-Large-Language-Models; {MADE}"),
    "mm-vet": (218, f"{CODE}/yuweihao/MM-Vet"),
    "mmmu": (900, f"{HUB}/MMMU/MMMU"),
    "mathvista": (1_000, f"{HUB}/AI4Math/MathVista"),
    "ai2d": (3_088, f"https://prior.allenai.org/projects/diagram-understanding; {MADE}"),
    "hallusionbench": (1_129, f"{CODE}/tianyi-lab/HallusionBench"),
    "chartqa": (2_500, f"{CODE}/vis-nlp/ChartQA"),
    "seed": (14_232, f"{HUB}/AILab-CVC/SEED-Bench"),
    "llava": (60, f"{HUB}/liuhaotian/llava-bench-in-the-wild"),
    "mmstar": (1_500, f"{HUB}/Lin-Chen/MMStar"),
    "mathverse": (4_728, f"{HUB}/AI4Math/MathVerse"),
    "visualwebbench": (None, f"{HUB}/visualwebbench/VisualWebBench"),
    "mmbench": (None, MMBENCH),
    "mmbench_cn": (None, MMBENCH),
    "mmbench_dev": (None, MMBENCH),
    "mmbench_cn_dev": (None, MMBENCH),
    "qbench": (None, f"{CODE}/Q-Future/Q-Bench"),
    "qbench_cn": (None, f"{CODE}/Q-Future/Q-Bench"),
    "easy_vqa": (9_673, "the package easy-vqa"),
}


@dataclasses.dataclass(frozen=True)
class Found:
    """questions: those that can be asked. bad: what is wrong with the others; missing: why there are none at all;
    absent: parts of which there are none.
    """

    name: str
    questions: int = 0
    bad: Sequence[str] = ()
    missing: str = ""
    absent: Sequence[str] = ()

    @property
    def sound(self) -> bool:
        return not (self.bad or self.missing or self.absent)

    def __str__(self) -> str:
        published, where = SOURCES[self.name]
        if self.missing:
            return f"{self.name:<15} missing: {self.missing}; it is from {where}"
        of = "" if published in (None, self.questions) else f" of {published:,} that are published"
        bad = f"; bad rows: {len(self.bad):,}, the first: {self.bad[0]}" if self.bad else ""
        absent = f"; missing: {', '.join(self.absent)}; the whole is from {where}" if self.absent else ""
        return f"{self.name:<15} {self.questions:,} questions{of}{bad}{absent}"


def check(root: str | os.PathLike, names: Sequence[str] = ("all",), decode: bool = False) -> Iterator[Found]:
    """Yields what there is of each benchmark, every row and picture looked at.

    names: of BENCHMARKS, or ["all"]. decode: also read every picture, which takes long.
    """
    if not Path(root).is_dir():
        raise UserError(f"{root} is not a folder; it should hold the folders of the benchmarks")
    for benchmark in chosen(names):
        try:
            yield look(benchmark, Root(root), decode)
        except UserError as error:
            yield Found(benchmark.name, missing=str(error))


def look(benchmark: Benchmark, root: Root, decode: bool) -> Found:
    bad, good = [], []
    for each in benchmark.read(root):
        if isinstance(each, BadRow):
            bad.append(str(each))
        elif decode and (problems := unreadable(root, each)):
            bad.append(f"{each.row}: {problems[0]}")
        else:
            good.append(dataclasses.replace(each, images=()))  # pictures of all would be too much to hold
    if not good and not bad:
        raise UserError(f"{root.path} holds no questions of it")
    return Found(benchmark.name, len(good), bad, absent=benchmark.scorings["standard"].absent(good))


def unreadable(root: Root, item: Item) -> list[str]:
    """What is wrong with its pictures."""
    pictures = (root.path / root.spelled(image) if isinstance(image, str) else image for image in item.images)
    return [problem for problem in map(problem_of, pictures) if problem]


@functools.lru_cache(64)  # several questions have the same picture
def problem_of(picture: Path | bytes) -> str:
    from trol_jax.data.images import load_image

    try:
        load_image(picture)
    except UserError as error:
        return str(error)
    return ""
