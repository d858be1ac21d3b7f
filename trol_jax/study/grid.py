"""The runs of a study: each row with each seed, from one tower; started again it goes on where it was stopped.

    ROOT/start/NAME-SEED   what a run starts with: the tower, and a language model drawn by the seed
    ROOT/runs/NAME-SEED    the run (see `train.loop`)
    ROOT/answers/ROW-SEED  its answers to the test questions (see `evals.runner`)

Rows that differ in how they answer alone share their runs. A row's seed decides the language model it starts with and
the order of the data, alike for every row whose model has the same shapes, so that rows are compared seed by seed.
"""

import dataclasses
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from trol_jax import checkpoint, saved
from trol_jax.data.easy_vqa import EasyVQA
from trol_jax.errors import STOPPED, UserError
from trol_jax.evals import runner
from trol_jax.models.trol import TroL, abstract_params, init_params
from trol_jax.models.variants import ModelConfig, get_variant
from trol_jax.ops.traversal import RELEASED, traversed
from trol_jax.sharding import cost
from trol_jax.sharding.rules import Layout
from trol_jax.train import loop
from trol_jax.train.config import ModelOptions, RunConfig, model_config
from trol_jax.train.feed import Feed
from trol_jax.train.program import Program

ANSWERING = ("decode", "answer_passes")  # options of traversal that do not change training
DRAWN = r"decoder/(layers|norm|head|gate_\w+)(/.*)?"  # the rest is the tower's: it read and wrote the embedding


@dataclasses.dataclass(frozen=True)
class Result:
    """One row with one seed. accuracy: share of 1, over all questions, and by kind. curve: (step, loss) as logged.

    gates: "image" and "text", the mean gate of each layer over such tokens of the prompts, or None.
    parameters: of the language model; flops: forward, of a row of training; seconds: of a step, the median; memory: of
    a step, in bytes on each device, by the compiler.
    """

    row: str
    seed: int
    accuracy: float
    by_kind: dict[str, float]
    questions: int
    gates: dict[str, list[float] | None]
    parameters: int
    flops: int
    seconds: float
    memory: int
    curve: list[tuple[int, float]]


def measure(
    rows: Mapping[str, RunConfig], tower: Path, root: Path, seeds: int, limit: int | None = None
) -> Iterator[Result]:
    """Trains and measures each row of a study, seed after seed, so that all rows can be compared at any time.

    tower: a run of objective "words", at its end. limit: ask that many test questions only.
    """
    require_family(tower, rows)
    shared, memory = runs_of(rows), {}
    for seed in range(seeds):
        for row, config in rows.items():
            name = f"{shared[row]}-{seed}"
            start, run, answers = root / "start" / name, root / "runs" / name, root / "answers" / f"{row}-{seed}"
            trained = as_trained(dataclasses.replace(config, seed=seed, start_from=str(start)))
            graft(tower, trained.model, seed, start)
            print(f"{row}, seed {seed}: {run}", flush=True)
            train(trained, run)
            result = runner.evaluate(run, answers, limit=limit, root=config.data.root or None, traversal=how(config))
            here = saved.read(checkpoint.resolve(run))
            if row not in memory:
                memory[row] = step_memory(trained, here)
            yield gather(row, seed, config, run, here.model, result, memory[row])


def train(config: RunConfig, run: Path) -> None:
    """To the end. Told to stop, it ends the program as launch.train does."""
    if not loop.train(config, run):
        sys.exit(STOPPED)


def as_trained(config: RunConfig) -> RunConfig:
    """Without what only answers differ by."""
    plain = {name: getattr(RELEASED, name) for name in ANSWERING}
    traversal = dataclasses.replace(config.model.traversal, **plain)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, traversal=traversal))


def how(config: RunConfig) -> str | None:
    """What a row's answers differ by, as `Answerer.load` takes it."""
    options = {name: getattr(config.model.traversal, name) for name in ANSWERING}
    return ",".join(f"{name}={value}" for name, value in options.items() if value != getattr(RELEASED, name)) or None


def runs_of(rows: Mapping[str, RunConfig]) -> dict[str, str]:
    """By row, the first row that is trained as it is. start_from does not count: a study starts all from one tower."""
    first, found = {}, {}
    for row, config in rows.items():
        plain = dataclasses.replace(as_trained(config), start_from="", seed=0)
        found[row] = first.setdefault(plain, row)
    return found


def require_family(tower: Path, rows: Mapping[str, RunConfig]) -> None:
    """UserError where a row cannot start from the tower, before anything is trained."""
    family = saved.read(checkpoint.resolve(tower)).model.family
    for row, config in rows.items():
        if (other := get_variant(config.model.variant).family) != family:
            raise UserError(f"{tower} is a tower of {family}, row {row} is of {other}; choose rows of one family")


def graft(tower: Path, options: ModelOptions, seed: int, folder: Path) -> None:
    """A checkpoint in `folder`, if there is none: the tower's, with a language model of these options."""
    if checkpoint.steps_in(folder / checkpoint.CHECKPOINTS):
        return
    origin = checkpoint.resolve(tower)
    loop.require_finished(origin, str(tower))
    checkpoint.require_sound(origin)
    here = saved.read(origin)
    model = model_config(options, here.model.decoder.vocab, here.model.image_token)
    params = flatten_dict(nn.unbox(init_params(TroL(model), jax.random.key(seed))), sep="/")
    for name, drawn in params.items():
        if not re.fullmatch(DRAWN, name):
            taken = checkpoint.open_array(origin, checkpoint.PARAMS + name).read().result()
            if taken.shape != drawn.shape:
                raise UserError(f"{tower} has {name} of {taken.shape}, the study's models of {drawn.shape}")
            params[name] = jax.numpy.asarray(taken)
    files = dataclasses.replace(here, model=model).files()
    with checkpoint.Checkpoints(folder / checkpoint.CHECKPOINTS) as checkpoints:
        checkpoints.save(0, {"params": unflatten_dict(params, sep="/")}, data_state=None, config=None, files=files)


def gather(
    row: str, seed: int, config: RunConfig, run: Path, model: ModelConfig, result: Mapping, memory: int
) -> Result:
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    rates = sorted(config.batch_size / line["examples_per_second"] for line in lines)
    shapes = flatten_dict(nn.unbox(abstract_params(TroL(model))), sep="/")
    return Result(
        row, seed, result["accuracy"], {kind: part["accuracy"] for kind, part in result["by_kind"].items()},
        result["n"], result["gates"], sum(leaf.size for name, leaf in shapes.items() if name.startswith("decoder/")),
        flops(model, config.data.max_length), rates[len(rates) // 2], memory,
        [(line["step"], line["loss"]) for line in lines],
    )  # fmt: skip


def guessed(root: str | None, limit: int | None = None) -> dict[str, float]:
    """By kind, the accuracy of its commonest answer, always given: what can be had without looking."""
    answers = {}
    for row in EasyVQA("test", root).questions()[:limit]:
        answers.setdefault(row["kind"], []).append(row["answer"])
    return {kind: Counter(given).most_common(1)[0][1] / len(given) for kind, given in answers.items()}


def step_memory(config: RunConfig, here: saved.Saved) -> int:
    program = Program(config, here.model, Layout.make(config.mesh, config.rules))
    with Feed(config, here.tokenizer, program, config.batch_size) as batches:
        lowered = program.step.lower(program.state, program.frozen, next(batches))
    return cost.peak_bytes(lowered.compile().memory_analysis())


def flops(model: ModelConfig, tokens: int) -> int:
    """Forward, of a row of training with one picture; layers that are not traversed take one pass."""
    share = sum(traversed(model.traversal.layers, model.decoder.layers)) / model.decoder.layers
    return round(cost.forward(model, tokens, 1, tokens, model.passes, tokens).total(1 + share * (model.passes - 1)))
