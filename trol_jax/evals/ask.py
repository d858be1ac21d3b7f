"""Asks a checkpoint the questions of the benchmarks, and scores what it says.

`<output>/answers/<benchmark>.jsonl` holds a line for each question as soon as it is answered: its place in the reader's
order, its id, the answer (or what kept it from being asked), a digest of prompt and pictures (of those in files of
their own: of their names and sizes), one of the prompt alone, and the source: the checkpoint, how it was asked and by
which code. What can be read there is not asked again; a file of another source, or with answers to other questions, is
never changed.

Several processes, each with a model of its own, share the questions. Each writes `<benchmark>.part<number>.jsonl`; the
first puts these together. What is left of processes that were stopped counts too, however many there were.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import xxhash
from tqdm import tqdm

from trol_jax import checkpoint, manifest, version
from trol_jax.errors import UserError, look_for_signals
from trol_jax.evals import score
from trol_jax.evals.files import BadRow, Root
from trol_jax.evals.instructions import IMAGE, INSTRUCTIONS, instruct
from trol_jax.evals.items import Benchmark, Item
from trol_jax.infer import weights
from trol_jax.infer.answer import Answerer, Question
from trol_jax.infer.decoding import Decoding
from trol_jax.journal import Journal
from trol_jax.models.layers import anywhere
from trol_jax.sharding import hosts

ANSWERS = "answers"  # folder below the output
DAY = 86400  # seconds that the slowest process may come behind
ADDED = ("answer", "error")  # to a question


@dataclasses.dataclass(frozen=True)
class Asker:
    """A checkpoint and how it is asked. max_new_tokens: None = as many as the original lets each benchmark have."""

    step_dir: Path
    root: Path
    answers: Path
    decoding: Decoding
    batch_size: int = 8  # changes no answer
    max_new_tokens: int | None = None
    weight_kind: str | None = None
    cache: str | None = None
    layout: Callable = anywhere  # see `Answerer.load`
    traversal: str | None = None
    system: str | None = None
    loaded: Answerer | None = None  # what answers, where it is at hand

    @functools.cached_property
    def answerer(self) -> Answerer:
        options = (self.weight_kind, self.cache, self.layout, self.traversal, self.system)
        return self.loaded or Answerer.load(self.step_dir, *options)

    def tokens(self, benchmark: Benchmark) -> int:
        return self.max_new_tokens or INSTRUCTIONS[benchmark.asks_as()].max_new_tokens

    def source(self, benchmark: Benchmark) -> str:
        changed = weights.named(self.weight_kind, self.cache, self.traversal, self.system)
        how = f"{self.decoding}, {self.tokens(benchmark)} tokens{changed}"
        return f"{manifest.identity(self.step_dir)}, {how}, trol_jax {version.of(version.ANSWERING)}"

    def read(self, benchmark: Benchmark) -> Iterator[Item | BadRow]:
        """With pictures, a few at a time; those in files of their own are not looked for."""
        return benchmark.read(Root(self.root, look=False))

    # ------------------------------------------------------------------ one benchmark
    def journal(self, benchmark: Benchmark, part: str = "") -> Journal:
        return Journal(self.answers / f"{benchmark.name}{part}.jsonl", self.source(benchmark), ADDED, key="index")

    def open(self, benchmark: Benchmark, part: slice) -> tuple[dict[int, dict], dict[int, dict]]:
        """(What lines say of the questions, by index; the lines of those that need not be asked).

        UserError for a file of another source or to other questions, and where the benchmark cannot be read.
        """
        rows = dict(enumerate(self.asked(benchmark, each) for each in self.read(benchmark)))
        if not rows:
            raise UserError(f"{self.root} holds no questions of {benchmark.name}")
        if not range(len(rows))[part]:
            raise UserError(f"--offset={part.start} leaves out all of its {len(rows)} questions")
        return rows, {index: line for index, line in self.lines(benchmark, rows).items() if "error" not in line}

    def lines(self, benchmark: Benchmark, rows: Mapping[int, dict]) -> dict[int, dict]:
        """By index, of all files."""
        found = {}
        for each in (self.journal(benchmark), *self.parts(benchmark)):
            found |= each.read(rows, strict=True)
        return found

    def parts(self, benchmark: Benchmark) -> list[Journal]:
        """What processes have written and nobody has put together."""
        paths = sorted(self.answers.glob(f"{benchmark.name}.part*.jsonl"))
        return [
            self.journal(benchmark, path.name.removeprefix(benchmark.name).removesuffix(".jsonl")) for path in paths
        ]

    def gather(self, benchmark: Benchmark, known: Mapping[int, dict]) -> None:
        """The first process makes the benchmark's one file hold what is known, in the order of the questions."""
        if not hosts.is_first():
            return
        if known or self.journal(benchmark).path.exists():
            self.journal(benchmark).write(known[index] for index in sorted(known))
        for each in self.parts(benchmark):
            each.path.unlink()

    def asked(self, benchmark: Benchmark, each: Item | BadRow) -> dict[str, Any]:
        """What a line says of its question."""
        if isinstance(each, BadRow):
            return {"id": None, "question": None, "prompt_digest": None}
        digest, files = xxhash.xxh3_64(), [image for image in each.images if isinstance(image, str)]
        for piece in (prompt(benchmark, each), *each.images, *(self.size(file) for file in files)):
            data = piece.encode(errors="surrogatepass") if isinstance(piece, str) else piece
            digest.update(len(data).to_bytes(8, "little") + data)
        alone = score.prompt_digest(benchmark, each)
        return {"id": each.id, "question": digest.hexdigest(), "prompt_digest": alone}

    def size(self, image: str) -> str:
        """Of a picture in a file, which other pictures of its name hardly have and every copy has; "" without it."""
        try:
            return str((self.root / Root(self.root).spelled(image)).stat().st_size)
        except (OSError, ValueError):  # of a name that no file can have
            return ""

    def ask(self, benchmark: Benchmark, rows: dict[int, dict], todo: Sequence[int]) -> None:
        """Writes the lines of this process's share of `todo`, each as soon as it is there."""
        count, number = jax.process_count(), jax.process_index()
        todo, journal = todo[number::count], self.journal(benchmark, f".part{number}" if count > 1 else "")
        questions = Questions(self, benchmark, todo)
        options = (self.tokens(benchmark), self.decoding, self.batch_size)
        given = self.answerer.answer(questions, *options, skip=True) if todo else ()
        shown = dict(total=len(todo), unit="question", disable=not hosts.is_first())
        with tqdm(desc=benchmark.name, **shown, mininterval=1.0, dynamic_ncols=True) as bar:
            for index, each in zip(todo, given, strict=True):
                read, asked = questions.taken.pop(index)
                rows[index] = asked  # a picture may have come since
                if isinstance(read, BadRow):
                    said = {"error": str(read)}
                else:
                    said = {"error": f"{read.row}: {each}"} if isinstance(each, UserError) else {"answer": each.text}
                journal.append([{"index": index, **asked, **said, "source": journal.source}])
                bar.update()
                look_for_signals()

    def try_to_ask(self, benchmark: Benchmark, rows: dict[int, dict], todo: Sequence[int]) -> UserError | None:
        """What stopped it: other processes wait for this one, and other benchmarks may go well. A checkpoint that
        cannot answer ends everything.
        """
        if todo[jax.process_index() :: jax.process_count()]:
            _ = self.answerer
        try:
            self.ask(benchmark, rows, todo)
        except UserError as error:
            return error
        return None

    def collect(self, benchmark: Benchmark, rows: Mapping[int, dict]) -> None:
        """Puts what all have asked in the order of the questions. Parts are of this very run, as those of others were
        put together before it, and are taken as they are: a picture may have come since this process read `rows`.
        """
        found = self.journal(benchmark).read(rows, strict=True)
        for each in self.parts(benchmark):
            found |= each.read(None, strict=True)
        self.gather(benchmark, found)


@dataclasses.dataclass(frozen=True)
class Questions:
    """Those of `todo`, read while they are asked, as pictures of whole benchmarks are too much to hold.

    taken: of those that were read and not answered yet, (the item or what is wrong with it, what its line says).
    """

    asker: Asker
    benchmark: Benchmark
    todo: Sequence[int]
    taken: dict[int, tuple[Item | BadRow, dict]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.todo)

    def __iter__(self) -> Iterator[Question]:
        wanted = {*self.todo}
        for index, each in enumerate(self.asker.read(self.benchmark)):
            if index in wanted:
                self.taken[index] = each, self.asker.asked(self.benchmark, each)
                bad = isinstance(each, BadRow)
                yield Question("") if bad else question(self.benchmark, each, self.asker.root)


def prompt(benchmark: Benchmark, item: Item) -> str:
    """The user's message. Pictures come first, so the mark of a picture there is left out."""
    return instruct(benchmark.asks_as(), item.question).removeprefix(IMAGE)


def question(benchmark: Benchmark, item: Item, root: Path) -> Question:
    spelled = Root(root).spelled
    images = [root / spelled(image) if isinstance(image, str) else image for image in item.images]
    return Question(prompt(benchmark, item), images)


# ---------------------------------------------------------------------- all


def evaluate(
    path: str | os.PathLike,
    names: Sequence[str],
    root: str | os.PathLike,
    output: str | os.PathLike,
    *,
    limit: int | None = None,
    offset: int = 0,
    beams: int = 5,
    batch_size: int = 8,
    max_new_tokens: int | None = None,
    weight_kind: str | None = None,
    cache: str | None = None,
    layout: Callable = anywhere,
    traversal: str | None = None,
    system: str | None = None,
    answerer: Answerer | None = None,
    **scored,
) -> Iterator[dict | UserError]:
    """Yields of each benchmark its result, as `score.score` does, or what stopped it; of several processes the first,
    the others only what stopped them.

    names: of BENCHMARKS, or ["all"]. limit, offset: ask that many questions, from there on. answerer: the checkpoint's,
    where it is loaded. scored: see `score.score_one`. Started again it goes on where it was stopped, and asks again
    what could not be asked. A result of more questions stays as it is.
    """
    part = slice(offset, None if limit is None else offset + limit)
    decoding, answers = Decoding(beams=beams), Path(output) / ANSWERS
    options = (decoding, batch_size, max_new_tokens, weight_kind, cache, layout, traversal, system, answerer)
    asker = Asker(checkpoint.resolve(path), Path(root), answers, *options)
    for benchmark in score.chosen(names):
        began = time.monotonic()
        try:
            rows, known = asker.open(benchmark, part)
            keep_more(Path(output) / f"{benchmark.name}.json", len(rows), part)
        except UserError as error:
            if hosts.is_first():
                yield UserError(f"{benchmark.name}: {error}")
            continue
        todo = [index for index in range(len(rows))[part] if index not in known]
        hosts.meet(f"{benchmark.name}: all have read what stands")
        asker.gather(benchmark, known)
        hosts.meet(f"{benchmark.name}: it is put together")
        trouble = asker.try_to_ask(benchmark, rows, todo)
        hosts.meet(f"{benchmark.name}: all have asked", seconds=DAY)
        if trouble:
            yield UserError(f"{benchmark.name}: {trouble}")
        elif hosts.is_first():
            settings = settings_of(asker, benchmark) | {"offset": offset, "limit": limit, "asked": len(todo)}
            settings["seconds"] = round(time.monotonic() - began, 2)
            try:
                if todo:
                    asker.collect(benchmark, rows)
                yield score.score_one(benchmark, root, answers, output, part=part, settings=settings, **scored)
            except UserError as error:
                yield UserError(f"{benchmark.name}: {error}")
        hosts.meet(f"{benchmark.name}: it is scored", seconds=DAY)  # a judge may take long


def keep_more(file: Path, count: int, part: slice) -> None:
    """UserError if the result there is of the part's questions, of all the `count`, and of more."""
    try:
        known = json.loads(file.read_bytes())["settings"]
        offset, limit = known.get("offset") or 0, known.get("limit")
        there = range(count)[offset : None if limit is None else offset + limit]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # none, or none of ours
    here = range(count)[part]
    if len(here) < len(there) and here[0] in there and here[-1] in there:
        raise UserError(
            f"{file} is of {len(there):,} questions, these {len(here):,} among them; choose another --output, "
            f"or remove it to measure fewer"
        )


def settings_of(asker: Asker, benchmark: Benchmark) -> Mapping[str, Any]:
    return {
        "checkpoint": str(asker.step_dir),
        "source": asker.source(benchmark),
        "beams": asker.decoding.beams,
        "max_new_tokens": asker.tokens(benchmark),
        "batch_size": asker.batch_size,
    }
