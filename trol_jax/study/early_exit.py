"""Early exit of the second pass: layers whose gate is small on average take one pass. What it saves, what it changes.

A calibration set tells the mean gate of each layer over the tokens of prompts; layers below a threshold are left out by
the option `layers` of `ops.traversal`. Other samples are answered with and without, and their prompts timed in turns.
"""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from trol_jax.data.encode import paired
from trol_jax.data.paths import resolve
from trol_jax.data.sources.sample import IMAGE
from trol_jax.errors import UserError
from trol_jax.evals.easy_vqa import is_right
from trol_jax.evals.pictures import IMAGE as BLUE
from trol_jax.evals.pictures import RIGHT, png
from trol_jax.infer.answer import Answer, Answerer, Question
from trol_jax.infer.engine import Engine, padded
from trol_jax.journal import write
from trol_jax.models.variants import ModelConfig, with_traversal
from trol_jax.ops.traversal import traversed
from trol_jax.study.report import Table, markdown, page
from trol_jax.study.samples import Samples

JSON, MARKDOWN, HTML, PLOT = "early_exit.json", "early_exit.md", "early_exit.html", "early_exit.png"
ROUNDS = 5, 25  # of timing, at least and at most
SECONDS = 10.0  # for each option, after the least rounds


@dataclasses.dataclass(frozen=True)
class Point:
    """option: of traversal, "" = the model as it is; kept: layers from 0 on that still take all passes.

    agreement: part of the answers that are the same token by token; right: part that is the data's. seconds: of the
    prompts timed, the median; ratio: to the model as it is, the median of rounds, and its quartiles. logits: largest
    difference of the logits that choose the first token, of the same prompts.
    """

    threshold: float
    option: str
    kept: list[int]
    agreement: float
    right: float
    seconds: float
    ratio: tuple[float, float, float]
    logits: float


@dataclasses.dataclass(frozen=True)
class Found:
    """gates: mean by layer; calibrated, asked, bad: samples; prompts, tokens: of what was timed, padding included."""

    gates: list[float]
    points: list[Point]
    calibrated: int
    asked: int
    bad: int
    prompts: int
    tokens: int


def parsed(texts: Sequence[str]) -> list[float]:
    """Thresholds in order, 0 among them."""
    try:
        values = {0.0, *map(float, texts)}
    except ValueError:
        values = {math.nan}
    if not all(0 <= value <= 1 for value in values):
        raise UserError(f"--thresholds={','.join(texts)} must be numbers from 0 to 1, as 0,0.1,0.2")
    return sorted(values)


def option(config: ModelConfig, gates: Sequence[float], threshold: float) -> str:
    """What leaves out the further passes of layers whose mean gate is below the threshold, as `with_traversal` takes
    it; "" where there are none.
    """
    before = _kept(config)
    kept = [layer for layer in before if not gates[layer] < threshold]
    if kept == before:
        return ""
    return f"layers={' '.join(map(str, kept))}" if kept else "answer_passes=1"


def measure(
    answerer: Answerer, samples: Samples, thresholds: Sequence[float], calibration: int, limit: int,
    batch_size: int = 8, max_new_tokens: int = 32,
) -> Found:  # fmt: skip
    """Calibrates on the first samples, answers the next; each is asked its first question. Those that cannot be asked
    are left out. UserError for a model of one pass, and for too few samples.
    """
    config = answerer.model.config
    if config.prompt_passes == 1:
        raise UserError(f"{config.name} takes one pass over prompts: there is none to leave out")
    if len(samples.each) <= calibration:
        raise UserError(
            f"{samples.root} has {len(samples.each):,} samples, all for --calibration={calibration}; calibrate on fewer"
        )
    questions = _questions(samples)
    first = list(itertools.islice(questions, calibration))
    asked = list(itertools.islice(questions, limit))
    gates, calibrated = calibrate(answerer, [question for question, _ in first], batch_size)
    options = {threshold: option(config, gates, threshold) for threshold in thresholds}
    models = {text: _with(answerer, text) for text in dict.fromkeys(["", *options.values()])}
    given = {}
    for text, model in tqdm(models.items(), desc="early exit", unit="option", dynamic_ncols=True):
        answers = model.answer([question for question, _ in asked], max_new_tokens, batch_size=batch_size, skip=True)
        given[text] = [each if isinstance(each, UserError) else (each.text, each.tokens) for each in answers]
    sound = [i for i, answer in enumerate(given[""]) if not isinstance(answer, UserError)]
    if not sound:
        raise UserError(f"{samples.root}: none of the questions can be asked; the first: {given[''][0]}")
    tokens, tiles = _prompts(answerer, [asked[i][0] for i in sound], batch_size)
    times = dict(zip(models, timed(list(models.values()), tokens, tiles), strict=True))
    points = []
    for threshold, text in options.items():
        (seconds, logits), (whole, its_logits) = times[text], times[""]
        points.append(
            Point(
                threshold,
                text,
                kept=_kept(models[text].model.config),
                agreement=float(np.mean([given[text][i][1] == given[""][i][1] for i in sound])),
                right=float(np.mean([is_right(given[text][i][0], asked[i][1]) for i in sound])),
                seconds=float(np.median(seconds)),
                ratio=tuple(np.quantile(seconds / whole, (0.5, 0.25, 0.75)).tolist()),
                logits=float(np.abs(logits - its_logits).max()),
            )
        )
    bad = len(first) - calibrated + len(asked) - len(sound)
    return Found([*map(float, gates)], points, calibrated, len(sound), bad, *tokens.shape)


def calibrate(answerer: Answerer, questions: Sequence[Question], batch_size: int) -> tuple[np.ndarray, int]:
    """(mean gate float64[L] over all tokens of the prompts, number of prompts)."""
    total, tokens, prompts = np.zeros(answerer.model.config.decoder.layers), 0, 0
    for answer in answerer.answer(questions, 1, batch_size=batch_size, skip=True):
        if isinstance(answer, Answer):
            total += answer.gate.sum(axis=1, dtype=np.float64)
            tokens, prompts = tokens + answer.gate.shape[1], prompts + 1
        else:
            error = answer
    if not prompts:
        raise UserError(f"no sample can be calibrated on; the last: {error}")
    return total / tokens, prompts


def timed(answerers: Sequence[Answerer], tokens: np.ndarray, tiles: np.ndarray | None) -> list[tuple]:
    """(seconds float[rounds] of running the prompts, their logits) of each model. The models take turns, so that what
    else the machine does falls on all alike.
    """
    engines = [Engine(each.model, each.params, each.stop, cache=each.cache) for each in answerers]
    run = lambda engine: jax.block_until_ready(engine.prompt(tokens, tiles))  # noqa: E731
    logits = [np.asarray(run(engine)[0]) for engine in engines]  # and compiled
    seconds, (least, most), began = [[] for _ in engines], ROUNDS, time.monotonic()
    for number in range(most):
        if number >= least and time.monotonic() - began > SECONDS * len(engines):
            break
        for place in range(len(engines))[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            run(engines[place])
            seconds[place].append(time.perf_counter() - start)
    return list(zip(map(np.array, seconds), logits, strict=True))


# ---------------------------------------------------------------------- samples
def _kept(config: ModelConfig) -> list[int]:
    """Layers that are traversed, when answering."""
    if config.prompt_passes == 1:
        return []
    return [layer for layer, whether in enumerate(traversed(config.traversal.layers, config.decoder.layers)) if whether]


def _with(answerer: Answerer, text: str) -> Answerer:
    model = dataclasses.replace(answerer.model, config=with_traversal(answerer.model.config, text))
    return dataclasses.replace(answerer, model=model)


def _questions(samples: Samples) -> Iterator[tuple[Question, str]]:
    """The first question of each sample, its pictures before it, and the answer of the data."""
    for number in range(len(samples.each)):
        try:
            sample = samples.each[number]
            question, answer = paired(sample.turns)[0]
            paths = sample.pictures[: question.count(IMAGE)]
            pictures = [path if isinstance(path, bytes) else resolve(samples.root, path) for path in paths]
        except UserError:
            question, answer, pictures = "", "", []  # is refused, and counted, as the question that it is
        yield Question(question.replace(IMAGE, "").strip(), pictures), answer


def _prompts(answerer: Answerer, questions: Sequence[Question], size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The first `size` of the prompts that have the shape of the first, as `Engine.prompt` takes them."""
    requests = (answerer.request(question, 1) for question in questions)
    shape = lambda each: (padded(len(each.tokens)), None if each.tiles is None else each.tiles.shape)  # noqa: E731
    first = next(requests)
    alike = [first, *itertools.islice((each for each in requests if shape(each) == shape(first)), size - 1)]
    tokens = np.full((len(alike), shape(first)[0]), -1, np.int32)
    for row, request in zip(tokens, alike, strict=True):
        row[: len(request.tokens)] = request.tokens
    return tokens, None if first.tiles is None else np.stack([each.tiles for each in alike])


# ---------------------------------------------------------------------- report
def write_report(root: Path, title: str, command: str, found: Found, about: Mapping) -> None:
    """Into `root`, each file as a whole. about: what was measured."""
    layers = Table(["layer", "mean gate"], [[str(n + 1), f"{gate:.4f}"] for n, gate in enumerate(found.gates)])
    plots = {PLOT: "Time of prompts against agreement"}
    texts = dict(note=f"Checkpoint: {about['source']}. Data: {about['data']}. {_note(found)}", plots=plots)
    drawn = {PLOT: plot(found)}
    write(root / PLOT, drawn[PLOT])
    write(root / JSON, (json.dumps(dict(about) | dataclasses.asdict(found), indent=1) + "\n").encode())
    write(root / HTML, page(title, command, [points_table(found), layers], drawn, **texts).encode())
    write(root / MARKDOWN, markdown(title, command, [points_table(found), layers], **texts).encode())


def _note(found: Found) -> str:
    left = f" {found.bad:,} samples could not be asked." if found.bad else ""
    return (
        f"A layer whose mean gate over the prompts of {found.calibrated:,} samples is below the threshold takes one "
        f"pass. Agreement: part of the answers to {found.asked:,} other questions that are those of the whole model, "
        f"token by token; right: part that is the answer of the data, exactly. Time: running {found.prompts:,} prompts "
        f"of {found.tokens:,} tokens, the vision tower included, the models in turns; as a part of the whole model's "
        f"the median of the rounds (quartiles). Logits: largest difference over these prompts. The option goes with "
        f"--traversal.{left}"
    )


def points_table(found: Found) -> Table:
    """A line for the thresholds that leave out the same layers."""
    lines = []
    for text, group in itertools.groupby(found.points, lambda each: each.option):
        first, *_, last = [*group] * 2
        which = f"{first.threshold:g}" + f" to {last.threshold:g}" * (last != first)
        ratio = "{:.3f} ({:.3f} to {:.3f})".format(*first.ratio)
        agreement = f"{100 * first.agreement:.1f} ± {100 * _error(first.agreement, found.asked):.1f}"
        line = [which, f"{len(first.kept)} of {len(found.gates)}", text or "(as it is)", f"{1000 * first.seconds:.1f}"]
        lines.append([*line, ratio, agreement, f"{100 * first.right:.1f}", f"{first.logits:.2g}"])
    head = ["threshold", "layers traversed", "option", "time, ms", "time, part", "agreement, %", "right, %", "logits"]
    return Table(head, lines)


def plot(found: Found) -> bytes:
    figure = Figure(figsize=(7.5, 4.6), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = {each.option: each for each in reversed(found.points)}.values()  # of equal ones the least threshold
    times, agreed = [each.ratio[0] for each in points], [100 * each.agreement for each in points]
    errors = [100 * _error(each.agreement, found.asked) for each in points]
    spread = [[abs(each.ratio[i] - each.ratio[0]) for each in points] for i in (1, 2)]
    style = dict(color=BLUE, marker="o", capsize=3)
    axes.errorbar(times, agreed, errors, spread, **style, label="the answer of the whole model")
    axes.plot(times, [100 * each.right for each in points], color=RIGHT, marker="s", label="the answer of the data")
    for each in points:
        place = each.ratio[0], 100 * each.agreement
        axes.annotate(f"{each.threshold:g}", place, xytext=(6, 6), textcoords="offset points", fontsize=9)
    axes.set(xlabel="time of prompts, part of the whole model's", ylabel="% of the questions")
    axes.margins(0.12)
    axes.set_title("Points: the least threshold that leaves out these layers", fontsize=10, loc="left")
    axes.grid(color="#eaeef2")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return png(figure)


def _error(part: float, number: int) -> float:
    return math.sqrt(part * (1 - part) / number)
