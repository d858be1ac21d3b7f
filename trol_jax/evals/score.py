"""Scores answers that lie in files: what was asked is read again, nothing is asked. Needs neither JAX nor pictures.

An answer file is `<benchmark>.jsonl`, an object a line with "id", "index" (the place in the reader's order) and
"answer", or "error" where the question could not be asked. The id says which question is meant; the index does where
several have the same id, or where a line has no id.
"""

import contextlib
import dataclasses
import difflib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from trol_jax import journal, version
from trol_jax.errors import UserError
from trol_jax.evals import submit
from trol_jax.evals.benchmarks import BENCHMARKS
from trol_jax.evals.files import BadRow, Root, Row
from trol_jax.evals.instructions import instruct
from trol_jax.evals.items import Benchmark, Item, Sample
from trol_jax.evals.judges import Judge, NoJudge
from trol_jax.evals.judging import judge_all

SCORINGS, BAD_ROWS = ("trol", "standard"), ("fail", "skip")
SUBMISSION = "submission"  # folder below the output
TOLD = 20  # bad rows and failures that a result quotes; it counts them all


@dataclasses.dataclass
class Problems:
    """Of one benchmark; every message names a file and a row."""

    rows: list[str] = dataclasses.field(default_factory=list)  # questions and answers that cannot be used
    missing: list[str] = dataclasses.field(default_factory=list)  # questions without an answer
    failed: list[str] = dataclasses.field(default_factory=list)  # questions that could not be asked
    unread: list[Mapping] = dataclasses.field(default_factory=list)  # what bad rows of the benchmark hold, of all parts

    def refuse(self) -> None:
        """UserError if there are any, with the first."""
        kinds = (("bad rows", self.rows), ("questions that could not be asked", self.failed),
                 ("questions without an answer", self.missing))  # fmt: skip
        said = [f"{kind}: {len(found)}, the first: {found[0]}" for kind, found in kinds if found]
        if said:
            raise UserError(f"{'; '.join(said)}; mend them, or leave them out with --bad_rows=skip")


def score(
    root: str | os.PathLike,
    names: Sequence[str],
    answers: str | os.PathLike,
    output: str | os.PathLike,
    *,
    scoring: str = "trol",
    bad_rows: str = "fail",
    pictures: bool = False,
    judge: Judge | None = None,
    submission: bool = False,
) -> Iterator[dict | UserError]:
    """Yields of each benchmark its result, once `<name>.json` and `<name>.samples.jsonl` exist, or what stopped it.

    names: of BENCHMARKS, or ["all"] for those that have an answer file. bad_rows: whether rows that cannot be used,
    questions without an answer and those that could not be asked stop a benchmark, or are left out and
    counted. pictures: whether to look for them. submission: whether to write what servers take, see `submit`.
    """
    if list(names) == ["all"]:
        names = [name for name in BENCHMARKS if (Path(answers) / f"{name}.jsonl").is_file()]
        if not names:
            raise UserError(f"{answers} holds no answers; they are named <benchmark>.jsonl, as pope.jsonl")
    how = dict(scoring=scoring, bad_rows=bad_rows, pictures=pictures, judge=judge, submission=submission)
    for benchmark in chosen(names):
        try:
            yield score_one(benchmark, root, answers, output, **how)
        except UserError as error:
            yield UserError(f"{benchmark.name}: {error}")


def score_one(
    benchmark: Benchmark,
    root: str | os.PathLike,
    answers: str | os.PathLike,
    output: str | os.PathLike,
    *,
    scoring: str = "trol",
    bad_rows: str = "fail",
    pictures: bool = False,
    judge: Judge | None = None,
    submission: bool = False,
    part: slice = slice(None),
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """See `score`. part: of the questions, those that count; settings: what the result says beside where it lies."""
    answers, output = Path(answers), Path(output)
    items, problems = read(benchmark, Root(root, pictures), part)
    samples = take(benchmark, scoring, items, answers / f"{benchmark.name}.jsonl", problems, part)
    if bad_rows == "fail":
        problems.refuse()
    where = {"root": str(root), "answers": str(answers), "source": source(answers / f"{benchmark.name}.jsonl")}
    where["bad_rows"] = bad_rows
    judge, unjudged = judge or NoJudge(), 0
    rules = benchmark.scorings[scoring]
    if rules.judged is None:
        judge = NoJudge()
    elif judge.name != NoJudge.name:
        samples, unjudged = judge_all(rules.judged, samples, judge)
    absent = rules.absent(item for item in items if item is not None)
    result = measure(benchmark, scoring, samples, problems, judge, unjudged) | {"absent": absent}
    result["settings"] = where | dict(settings or {})
    if submission and (made := submit.submission(benchmark.name, scoring, items[part], samples)):
        file = output / SUBMISSION / f"{benchmark.name}.{made[0]}"
        journal.write(file, made[1])
        result["submission"] = str(file)
    journal.write(output / f"{benchmark.name}.samples.jsonl", journal.encode(map(line(benchmark), samples)))
    journal.write(output / f"{benchmark.name}.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


def chosen(names: Sequence[str]) -> list[Benchmark]:
    """Those of BENCHMARKS that are named, or ["all"] that are published."""
    if list(names) == ["all"]:
        return [benchmark for benchmark in BENCHMARKS.values() if benchmark.published]
    for name in names:
        if name not in BENCHMARKS:
            close = difflib.get_close_matches(name, BENCHMARKS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are all, {', '.join(BENCHMARKS)}"
            raise UserError(f"{name!r} is not a benchmark; {hint}")
    return [BENCHMARKS[name] for name in dict.fromkeys(names)]


# ---------------------------------------------------------------------- questions


def read(benchmark: Benchmark, root: Root, part: slice = slice(None)) -> tuple[list[Item | None], Problems]:
    """The items in the reader's order, None for rows that cannot be used; those of `part` are counted."""
    problems, items, bad = Problems(), [], []
    for index, each in enumerate(benchmark.read(root)):
        if isinstance(each, BadRow):
            problems.unread.append(each.data)
        bad.append(str(each) if isinstance(each, BadRow) else None)
        items.append(None if isinstance(each, BadRow) else dataclasses.replace(each, index=index))
    if not items:
        raise UserError(f"{root.path} holds no questions of {benchmark.name}")
    problems.rows += filter(None, bad[part])
    return items, problems


# ---------------------------------------------------------------------- answers


def take(
    benchmark: Benchmark,
    scoring: str,
    items: Sequence[Item | None],
    file: Path,
    problems: Problems,
    part: slice = slice(None),
) -> list[Sample]:
    """The samples of the questions that count in this scoring and have an answer, parsed and scored, in order."""
    rules, places = benchmark.scorings[scoring], Places(items)
    answers, failed = {}, {}
    for row in answer_lines(file):
        try:
            index = places.of(row)
            same_question(benchmark, items[index], row)
            if index in answers or index in failed:
                raise row.bad(f"is a second answer to question {index}")
            if "error" in row.data and "answer" not in row.data:
                failed[index] = f"{row.file}, row {row.number}: {row.data['error']}"
            else:
                answers[index] = row.text("answer")
        except BadRow as error:
            problems.rows.append(str(error))
    samples = []
    for item in rules.select([item for item in items[part] if item is not None]):
        if item.index in answers:
            answer = answers[item.index]
            parsed = rules.parse(item, answer)
            samples.append(Sample(item, answer, parsed, rules.mark(item, parsed)))
        elif item.index in failed:
            problems.failed.append(failed[item.index])
        else:
            problems.missing.append(f"{file} has none to question {item.index}, id {item.id!r}")
    rows = [item.fields for item in rules.select([item for item in items if item is not None])] + problems.unread
    for name, key in rules.groups.items():
        samples = noted(samples, name, key, rows)
    return samples


def prompt_digest(benchmark: Benchmark, item: Item) -> str:
    """In the lines of `ask`: of the prompt without its pictures, which may lie elsewhere when answers are scored."""
    text = instruct(benchmark.asks_as(), item.question)
    return xxhash.xxh3_64_hexdigest(text.encode(errors="surrogatepass"))


def same_question(benchmark: Benchmark, item: Item | None, row: Row) -> None:
    """UserError where the line says what it was asked, and that is not this question: no other line can be trusted."""
    said = row.data.get("prompt_digest")
    if item is not None and said is not None and said != prompt_digest(benchmark, item):
        raise UserError(
            f"{row.file}, row {row.number} answers another question than the one with the id {item.id!r} in --root; "
            f"give the root that was asked, or ask anew"
        )


def noted(samples: Sequence[Sample], name: str, key: Callable[[Mapping], Any], rows: Iterable[Mapping]) -> list[Sample]:
    """With the group's name where others of it, also bad rows and those beyond the part that is asked, lack an answer.

    Of a bad row it may be unknown to which group it belongs.
    """
    wanted, found = Counter(), Counter(key(sample.item.fields) for sample in samples)
    for row in rows:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            wanted[key(row)] += 1
    partly = {group for group, count in wanted.items() if found[group] < count}
    lacks = lambda sample: sample.lacking | ({name} if key(sample.item.fields) in partly else set())  # noqa: E731
    return [dataclasses.replace(sample, lacking=lacks(sample)) for sample in samples]


def answer_lines(file: Path) -> Iterator[Row]:
    return Root("").lines(str(file))


def source(file: Path) -> str | None:
    """What the answers say that they are of: a checkpoint, and how it was asked."""
    found = {
        str(row.data["source"]) for row in answer_lines(file) if isinstance(row.data, dict) and "source" in row.data
    }
    return "; ".join(sorted(found)) or None


class Places:
    """Which question an answer belongs to."""

    def __init__(self, items: Sequence[Item | None]):
        self.items, self.by_id = items, {}
        for item in items:
            if item is not None:
                self.by_id.setdefault(str(item.id), []).append(item.index)
        self.repeated = any(len(found) > 1 for found in self.by_id.values())

    def of(self, row: Row) -> int:
        if not isinstance(row.data, Mapping):
            raise row.bad('is no object, as {"index": 0, "id": 7, "answer": "yes"}')
        index = row.get("index", int) if "index" in row.data else None
        if row.data.get("id") is None:
            if index is None or not 0 <= index < len(self.items):
                raise row.bad(f'without "id", "index" must be a number from 0 to {len(self.items) - 1}')
            return index
        name = str(row.get("id", str, int))
        found = self.by_id.get(name, ())
        unread = self._unread(index) and (self.repeated or not found)
        if index in found or unread:
            return index
        if len(found) == 1:
            return found[0]
        several = f'{len(found)} questions have the id {name!r}, and "index" says none of them'
        raise row.bad(several if found else f"there is no question with the id {name!r}")

    def _unread(self, index: int | None) -> bool:
        """Whether the question there is a bad row, whose id is not known."""
        return index is not None and 0 <= index < len(self.items) and self.items[index] is None


# ---------------------------------------------------------------------- results


def measure(
    benchmark: Benchmark, scoring: str, samples: Sequence[Sample], problems: Problems, judge: Judge, unjudged: int
) -> dict[str, Any]:
    rules = benchmark.scorings[scoring]
    rules = rules if judge.name == NoJudge.name else rules.judged
    summary = rules.summarise(samples)
    return {
        "benchmark": benchmark.name,
        "scoring": scoring,
        "value": summary.value,
        "standard_error": summary.error,
        "unit": benchmark.unit,
        "n": sum(sample.score is not None for sample in samples) if summary.n is None else summary.n,
        "answered": len(samples),
        "unparsed": sum(sample.parsed is None for sample in samples),
        "failed": len(problems.failed),
        "missing": len(problems.missing),
        "bad_rows": len(problems.rows),
        "bad": [*problems.rows, *problems.failed][:TOLD],
        "scorer": rules.rule,
        "judge": judge.name,
        "judge_account": judge.account(),
        "unjudged": unjudged,
        "version": version.of(version.SCORING),  # the code that answered is in the source
        "splits": summary.splits,
    }


def line(benchmark: Benchmark):
    """What is kept of a sample."""

    def kept(sample: Sample) -> dict[str, Any]:
        item = sample.item
        return {
            "index": item.index,
            "id": item.id,
            "prompt": instruct(benchmark.asks_as(), item.question),
            "images": [image if isinstance(image, str) else None for image in item.images],
            "answer": sample.answer,
            "parsed": sample.parsed,
            "gold": item.gold,
            "score": sample.score,
        }

    return kept


def report(result: Mapping[str, Any]) -> str:
    """One line."""
    value = "not scored" if result["value"] is None else f"{result['value']:.2f} ± {result['standard_error']:.2f}"
    counts = [
        f"{result[name]:,} {name.replace('_', ' ')}"
        for name in ("unparsed", "unjudged", "failed", "missing", "bad_rows")
    ]
    absent = [f"without {', '.join(result['absent'])}"] if result["absent"] else []
    told = ", ".join([f"n {result['n']:,}", *(text for text in counts if not text.startswith("0 ")), *absent])
    return f"{result['benchmark']:<15} {value:>16}  {result['scoring']}, {told} ({result['scorer']})"


def run(results: Iterable[dict | UserError]) -> None:
    """Prints what comes; in the end UserError if something stopped a benchmark."""
    stopped = []
    for result in results:
        if isinstance(result, UserError):
            stopped.append(str(result))
        else:
            print(report(result), flush=True)
    if stopped:
        raise UserError(" | ".join(stopped))
