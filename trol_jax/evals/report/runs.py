"""What a report is made of: result folders of `launch.evaluate --benchmarks`, and the published figures."""

import functools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from trol_jax.errors import UserError
from trol_jax.evals.benchmarks import BENCHMARKS
from trol_jax.evals.files import Root, Row

# Names in the paper -> ours, the first that has a value. MMBench's test answers are known to its server alone.
COLUMNS = {
    "Q-Bench": ("qbench",),
    "SQA-IMG": ("sqa",),
    "AI2D": ("ai2d",),
    "ChartQA": ("chartqa",),
    "SEED-IMG": ("seed",),
    "POPE": ("pope",),
    "HallusionBench": ("hallusionbench",),
    "MME": ("mme",),
    "MathVista": ("mathvista",),
    "MMB": ("mmbench", "mmbench_dev"),
    "MMB-CN": ("mmbench_cn", "mmbench_cn_dev"),
    "MM-Vet": ("mm-vet",),
    "LLaVA-W": ("llava",),
    "MMStar": ("mmstar",),
    "MathVerse": ("mathverse",),
    "VisualWebBench": ("visualwebbench",),
}
SIZE = re.compile(r"(?<![\d.])(\d+(?:[._]\d+)?)[bB](?![A-Za-z])")


@dataclass(frozen=True)
class Result:
    """Of one benchmark, as `score.measure` made it."""

    benchmark: str
    scoring: str
    value: float | None
    standard_error: float | None
    unit: str
    n: int
    answered: int
    unparsed: int
    failed: int
    missing: int
    bad_rows: int
    unjudged: int
    scorer: str
    judge: str
    version: str
    settings: dict
    splits: dict  # as each benchmark has them
    absent: list = field(default_factory=list)  # parts of the benchmark that its files lack

    @property
    def partial(self) -> bool:
        """Whether some questions do not count: those of --limit and --offset, and those that could not be used,
        and parts that are absent.
        """
        left_out = (self.failed, self.missing, self.bad_rows, self.unjudged, self.absent, self.settings.get("offset"))
        return any(left_out) or self.settings.get("limit") is not None


@dataclass(frozen=True)
class Sample:
    """An answered question, as the result's file of samples has it. images: None for those inside of other files."""

    index: int
    id: str | int
    prompt: str
    images: list
    answer: str
    parsed: Any
    gold: Any
    score: float | None


@dataclass(frozen=True)
class Run:
    name: str
    folder: Path
    results: Mapping[str, Result]  # by benchmark
    samples: Mapping[str, Mapping[int, Sample]]  # by benchmark and index; of those whose samples lie in the folder

    def column(self, name: str) -> Result | None:
        """The result that stands in that column of the paper, if there is any."""
        found = [self.results[own] for own in COLUMNS[name] if own in self.results]
        return next((result for result in found if result.value is not None), found[0] if found else None)


def read(folders: Sequence[str]) -> list[Run]:
    """folders: each DIR, named by its last part, or NAME=DIR."""
    runs = [read_run(*named(folder)) for folder in folders]
    for number, run in enumerate(runs):
        if run.name in {other.name for other in runs[:number]}:
            raise UserError(f"two runs are named {run.name}; name one of them, as other={run.folder}")
    return runs


def named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or os.path.isdir(text):
        name, folder = Path(os.path.abspath(text)).name, text
    if not name or not folder:
        raise UserError(f"{text!r} names no run; write DIR, or NAME=DIR")
    return name, Path(folder)


def read_run(name: str, folder: Path) -> Run:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name one that launch.evaluate --benchmarks wrote with --output")
    found = {own: folder / f"{own}.json" for own in BENCHMARKS if (folder / f"{own}.json").is_file()}
    if not found:
        raise UserError(f"{folder} holds no results; launch.evaluate --benchmarks writes them, as pope.json")
    samples = {own: folder / f"{own}.samples.jsonl" for own in found}
    return Run(
        name,
        folder,
        {own: read_result(file) for own, file in found.items()},
        {own: read_samples(file) for own, file in samples.items() if file.is_file()},
    )


def read_result(file: Path) -> Result:
    row = Row(Root("").json(str(file)), str(file), 1)
    result = typed(Result, row)
    if not all(isinstance(name, str) for name in result.absent):
        raise row.bad(f'"absent" is {json.dumps(result.absent)}, must be a list of names')
    return result


def read_samples(file: Path) -> dict[int, Sample]:
    samples = [typed(Sample, row) for row in Root("").lines(str(file))]
    return {sample.index: sample for sample in samples}


def typed(cls: type, row: Row):
    """An object of the row's fields. What more a row has is left out; a field with a default may be missing."""
    if not isinstance(row.data, Mapping):
        raise row.bad("is no object")
    kinds = {float: (float, int), Any: (object, bool, type(None))}
    given = {}
    for one in fields(cls):
        if one.default_factory is not MISSING and one.name not in row.data:
            continue
        wanted = getattr(one.type, "__args__", None) or (one.type,)
        given[one.name] = row.get(one.name, *(kind for each in wanted for kind in kinds.get(each, (each,))))
        if isinstance(given[one.name], float) and not math.isfinite(given[one.name]):
            raise row.bad(f'"{one.name}" is {given[one.name]}, must be a number')
    return cls(**given)


# ---------------------------------------------------------------------- published


@functools.cache
def published() -> dict[str, Any]:
    """note; trol: {model: {benchmark: value}}; tables: {title: {model: {benchmark: value or None}}}."""
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def size(name: str) -> float | None:
    """Billions of parameters that a model's name tells: 7 of TroL-7B and trol_7b, 1.8 of trol_1_8b."""
    found = SIZE.search(name)
    return float(found[1].replace("_", ".")) if found else None
