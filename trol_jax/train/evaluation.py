"""What is measured while a run goes on: the loss on data it never trains on, and benchmarks; the best step is kept."""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import jax

from trol_jax import checkpoint, journal
from trol_jax.data.tokenizer import Tokenizer
from trol_jax.errors import UserError
from trol_jax.evals import ask, score
from trol_jax.evals.files import Root
from trol_jax.evals.items import Item
from trol_jax.infer.answer import Answerer
from trol_jax.models.layers import unstack_layers
from trol_jax.sharding import hosts
from trol_jax.train.config import HELD_OUT, RunConfig
from trol_jax.train.feed import Feed
from trol_jax.train.program import Program
from trol_jax.train.step import OBJECTIVES

FOLDER, RESULT = "evaluations", "evaluation.json"  # the second for each step in a folder of its own in the first


class Interrupted(Exception):
    """The run was told to stop in the midst of it."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Watched(Answerer):
    """look: is called after each answer that was taken, and may raise Interrupted."""

    look: Callable[[], None]

    def answer(self, *questions, **options):
        for each in super().answer(*questions, **options):
            yield each
            self.look()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    config: RunConfig
    workdir: Path
    program: Program
    tokenizer: Tokenizer
    tell: Callable[[str], None]  # prints a line

    def due(self, step: int) -> bool:
        every = self.config.evaluation.every
        return bool(every) and step > 0 and step % every == 0

    def left(self, step: int) -> bool:
        """Whether it is due and not done."""
        return self.due(step) and not (self._folder(step) / RESULT).exists()

    def check(self) -> None:
        """UserError where a benchmark's files cannot be read, or the best is one without a value: better now than in
        hours.
        """
        options = self.config.evaluation
        if options.benchmarks and options.every and jax.process_count() > 1:
            raise UserError(
                "config.evaluation.benchmarks are asked by one process; of several, measure the loss (rows)"
            )
        for benchmark in score.chosen(options.benchmarks) if options.every else ():
            try:
                first = next(iter(benchmark.read(Root(options.root, look=False))), None)
            except UserError as error:
                raise UserError(f"config.evaluation.benchmarks: {benchmark.name}: {error}") from None
            rules = benchmark.scorings["trol"]
            scored = not isinstance(first, Item) or rules.mark(first, rules.parse(first, "")) is not None
            if benchmark.name == options.best and not scored:
                raise UserError(
                    f"config.evaluation.best is {benchmark.name}, which has no value while a run trains ({rules.rule})"
                )

    def __call__(self, step_dir: Path, params, frozen, look: Callable[[], None]) -> dict[str, float]:
        """The metrics of a step that is saved there; they are written beside the answers, which are asked once.

        look: is called between batches and answers, and may raise Interrupted; done again, it goes on with the answers.
        """
        options, folder = self.config.evaluation, self._folder(int(step_dir.name))
        values = self.held_out(params, frozen, look) if options.rows else {}
        if options.benchmarks:
            values |= self.benchmarks(step_dir, params, frozen, folder, look)
        if hosts.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            journal.write(folder / RESULT, (json.dumps(values, indent=1) + "\n").encode())
        return values

    def held_out(self, params, frozen, look: Callable[[], None]) -> dict[str, float]:
        rows = self.config.batch_size // self.config.accumulation
        with Feed(self.config, self.tokenizer, self.program, rows, held_out=True) as batches:
            count = -(-self.config.evaluation.rows // rows)
            sums = []
            for batch in itertools.islice(batches, count):
                look()
                sums.append(jax.block_until_ready(self._sums(params, frozen, batch)))
            batches.compare_hosts()  # or each would measure other samples, and nobody would know
        total = jax.device_get(jax.tree.map(lambda *parts: sum(parts), *sums))
        return {HELD_OUT + name: float(value / max(count, 1)) for name, (value, count) in total.items()}

    def benchmarks(self, step_dir: Path, params, frozen, folder: Path, look: Callable[[], None]) -> dict[str, float]:
        """The value of each that has one. Questions that cannot be asked are left out and counted."""
        options, model = self.config.evaluation, dataclasses.replace(self.program.model, separate=True)
        whole = jax.jit(lambda *parts: unstack_layers(self.program.join(*parts)))(params, frozen)
        answerer = Watched(model, whole, self.tokenizer, self.config.data.system, look=look)
        asked = dict(limit=options.limit or None, beams=1, answerer=answerer, bad_rows="skip")
        results = list(ask.evaluate(step_dir, options.benchmarks, options.root, folder, **asked))
        for failed in (each for each in results if isinstance(each, UserError)):
            self.tell(str(failed))
        values = {each["benchmark"]: each["value"] for each in results if not isinstance(each, UserError)}
        for name in (name for name, value in values.items() if value is None):
            self.tell(f"{name} has answers in {folder} and no value: a judge or a server scores them")
        return {name: value for name, value in values.items() if value is not None}

    def _folder(self, step: int) -> Path:
        return self.workdir / FOLDER / str(step)

    @functools.cached_property
    def _sums(self) -> Callable:
        program = self.program

        def sums(params, frozen, batch):
            found = OBJECTIVES[self.config.objective](program.model, program.join(params, frozen), batch, None)
            return {name: found[name] for name in ("loss", "token_accuracy")}

        state, frozen = program.shardings
        return jax.jit(sums, in_shardings=(state.params, frozen, program.over_devices))


def keep_best(metric: str, step: int, values: dict[str, float], checkpoints: checkpoint.Checkpoints) -> None:
    """Lets the checkpoint of a step stay if its metric is the best until now; what is no number never is."""
    if not math.isfinite(values.get(metric, math.nan)):
        return
    best, sign = checkpoint.read_best(checkpoints.directory), -1 if metric == f"{HELD_OUT}loss" else 1
    known = best is not None and best["metric"] == metric and math.isfinite(best["value"])
    if not known or sign * values[metric] > sign * best["value"]:
        checkpoints.keep_best({"step": step, "metric": metric, "value": values[metric]})
