"""What `gates` found: gates.json, a Markdown and an HTML report, and pictures."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trol_jax.data.prompts import TEXT as BEFORE
from trol_jax.data.tokenizer import Tokenizer
from trol_jax.evals import heat
from trol_jax.evals.pictures import IMAGE, QUIET, RIGHT, TEXT, plain, png
from trol_jax.journal import write
from trol_jax.models.variants import ModelConfig
from trol_jax.study.gates import BINS, KINDS, Gates, Shown, Sums
from trol_jax.study.report import Table, markdown, page

JSON, MARKDOWN, HTML = "gates.json", "gates.md", "gates.html"
PLOTS = {
    "gates.png": "Mean gate by layer and kind of token",
    "tasks.png": "The same, task by task",
    "spread.png": "How the gates of tokens are spread: of each layer the part of its tokens by their gate",
    "pictures.png": "Gates over pictures; the colours of each go from its least to its greatest gate",
}
NOTE = (
    "The gate is the share of the second pass that is kept, 0 to 1; where a layer runs more than twice, the mean of "
    "its gates. Samples are run with their answers, as in training; generated tokens take one pass and have no gate. "
    "Marks are those of the chat, the end marks of answers among them. ± is the standard deviation over tokens."
)
COLORS = dict(zip(KINDS, (IMAGE, TEXT, QUIET, RIGHT, "#b8a8d8"), strict=True))
WORDS = 25  # in each half of the table


def write_report(
    root: Path, title: str, command: str, found: Gates, tokenizer: Tokenizer, config: ModelConfig,
    about: Mapping, least: int,
) -> None:  # fmt: skip
    """Into `root`, each file as a whole. about: what was measured, for gates.json; least: times that a word of the
    tables has been seen.
    """
    words = ranked(found, tokenizer, least)
    lines = f"{sum(found.samples.values()):,} samples" + (f", {found.bad:,} left out: {found.why}" if found.bad else "")
    tables = [kinds_table(found), tasks_table(found), layers_table(found)]
    tables += [words_table(words[:WORDS], "where the gate opens most")]
    tables += [words_table(words[WORDS:][::-1][:WORDS], "where it opens least")] if len(words) > WORDS else []
    drawn = {"gates.png": lines_plot({"": found.all}), "tasks.png": lines_plot(found.tasks)}
    drawn |= {"spread.png": spread_plot(found.all)}
    drawn |= {"pictures.png": pictures_plot(found.shown, config)} if found.shown else {}
    plots = {name: PLOTS[name] for name in drawn}
    for name, data in drawn.items():
        write(root / name, data)
    texts = dict(note=f"Checkpoint: {about['source']}. Data: {about['data']}, {lines}. {NOTE}", plots=plots)
    write(root / JSON, (json.dumps(to_json(found, words, about)) + "\n").encode())
    write(root / HTML, page(title, command, tables, drawn, **texts).encode())
    write(root / MARKDOWN, markdown(title, command, tables, **texts).encode())


def to_json(found: Gates, words: Sequence[Mapping], about: Mapping) -> dict:
    def told(sums: Sums, histogram: bool) -> dict:
        return {
            kind: {"tokens": int(sums.count[i]), "mean": sums.mean(i).tolist(), "deviation": sums.deviation(i).tolist()}
            | ({"histogram": sums.histogram[i].tolist()} if histogram else {})
            for i, kind in enumerate(KINDS)
            if sums.count[i]
        }

    tasks = {task: {"samples": found.samples[task], **told(sums, False)} for task, sums in found.tasks.items()}
    left = {"bad": found.bad, "why": found.why}
    return {**about, "bins": BINS, **left, "kinds": told(found.all, True), "tasks": tasks, "words": words}


def ranked(found: Gates, tokenizer: Tokenizer, least: int) -> list[dict]:
    """Tokens of text, the most open first."""
    made = []
    for kind, token in found.words.ranked(least):
        count = int(found.words.count[kind, token])
        means = found.words.total[kind, token] / count
        highest = int(means.argmax())
        made.append(
            {"word": text_of(tokenizer, token), "id": token, "kind": KINDS[kind], "count": count}
            | {"mean": float(means.mean()), "layer": highest + 1, "highest": float(means[highest])}
        )
    return made


def text_of(tokenizer: Tokenizer, token: int) -> str:
    """With the space before it, if it has one."""
    before = tokenizer.encode(BEFORE)
    known, text = tokenizer.decode(before), tokenizer.decode([*before, token], specials=True)
    return text[len(known) :] if text.startswith(known) else tokenizer.decode([token], specials=True)


# ---------------------------------------------------------------------- tables
def kinds_table(found: Gates) -> Table:
    lines = []
    for i, kind in enumerate(KINDS):
        if found.all.count[i]:
            means = found.all.mean(i)
            most, least = int(means.argmax()), int(means.argmin())
            ends = [f"{means[layer]:.3f} (layer {layer + 1})" for layer in (most, least)]
            lines.append([kind, f"{found.all.count[i]:,}", f"{means.mean():.3f}", *ends])
    return Table(["tokens", "number", "mean gate", "highest", "lowest"], lines)


def tasks_table(found: Gates) -> Table:
    lines = []
    for task, sums in sorted(found.tasks.items()):
        cells = [f"{sums.mean(i).mean():.3f}" if sums.count[i] else "" for i in range(len(KINDS))]
        lines.append([task, f"{found.samples[task]:,}", *cells])
    return Table(["task", "samples", *KINDS], lines)


def layers_table(found: Gates) -> Table:
    kinds = [i for i in range(len(KINDS)) if found.all.count[i]]
    pairs = [(found.all.mean(i), found.all.deviation(i)) for i in kinds]
    lines = [
        [str(layer + 1), *(f"{mean[layer]:.3f} ± {deviation[layer]:.3f}" for mean, deviation in pairs)]
        for layer in range(found.all.total.shape[1])
    ]
    return Table(["layer", *(KINDS[i] for i in kinds)], lines)


def words_table(words: Sequence[Mapping], what: str) -> Table:
    lines = [
        [
            json.dumps(each["word"], ensure_ascii=False), each["kind"], f"{each['count']:,}", f"{each['mean']:.3f}",
            f"{each['highest']:.3f} (layer {each['layer']})",
        ]
        for each in words
    ]  # fmt: skip
    return Table([f"word {what}", "of", "times", "mean gate", "highest"], lines)


# ---------------------------------------------------------------------- pictures
def lines_plot(parts: Mapping[str, Sums]) -> bytes:
    """Mean gate by layer, a line a kind of token, a panel a part; of one part also where half of the tokens are."""
    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    width, height = (7.5, 4.6) if len(parts) == 1 else (4 * columns, 2.8 * rows)
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (name, sums) in zip(panels, sorted(parts.items()), strict=False):
        layers = np.arange(1, sums.total.shape[1] + 1)
        for i, kind in enumerate(KINDS):
            if sums.count[i]:
                axes.plot(layers, sums.mean(i), color=COLORS[kind], marker="o", markersize=4, linewidth=2, label=kind)
                if len(parts) == 1:
                    low, high = (quantile(sums.histogram[i], q) for q in (0.25, 0.75))
                    axes.fill_between(layers, low, high, color=COLORS[kind], alpha=0.12, linewidth=0)
        axes.set(ylim=(0, 1), xlim=(0.5, len(layers) + 0.5))
        axes.set_title(plain(name), fontsize=10, loc="left")
        axes.axhline(0.5, color="#afb8c1", linestyle=":", linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(parts) :]:
        axes.set_visible(False)
    figure.supxlabel("layer", fontsize=10)
    figure.supylabel("gate: share of the second pass", fontsize=10)
    lines = {line.get_label(): line for axes in panels for line in axes.get_lines() if line.get_label() in KINDS}
    figure.legend(lines.values(), lines, frameon=False, loc="outside upper center", ncols=len(KINDS), fontsize=9)
    return png(figure)


def quantile(histogram: np.ndarray, q: float) -> np.ndarray:
    """int[L, BINS] of 0 to 1 -> float[L], straight within a bin."""
    share = np.cumsum(histogram, axis=1) / histogram.sum(axis=1, keepdims=True)
    edges = np.linspace(0, 1, histogram.shape[1] + 1)
    return np.array([np.interp(q, [0, *line], edges) for line in share])


def spread_plot(sums: Sums) -> bytes:
    kinds = [i for i in range(len(KINDS)) if sums.count[i]]
    figure = Figure(figsize=(2.6 * len(kinds), 3.2), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, i in zip(figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0], kinds, strict=True):
        share = sums.histogram[i] / sums.count[i]
        axes.imshow(
            share.T, origin="lower", aspect="auto", extent=(0.5, len(share) + 0.5, 0, 1), cmap="Blues", vmin=0,
            interpolation="nearest",
        )  # fmt: skip
        axes.set_title(KINDS[i], fontsize=10)
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.axes[0].set_ylabel("gate")
    return png(figure)


def pictures_plot(shown: Sequence[Shown], config: ModelConfig) -> bytes:
    """A row a picture: itself, then its gates, the mean over layers, of the first, a middle and the last layer."""
    layers = shown[0].gate.shape[0]
    numbers = [0, *sorted({1, math.ceil(layers / 2), layers})]
    columns = 1 + len(numbers)
    figure = Figure(figsize=(2.1 * columns, 2.5 * len(shown)), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for each, row in zip(shown, figure.subplots(len(shown), columns, squeeze=False), strict=True):
        row[0].imshow(each.picture, interpolation="nearest")
        row[0].set_title(f"{plain(each.task)}\n{plain(each.text, 38)}", fontsize=7, loc="left")
        (cells,) = heat.maps(each.gate, [each.size], config)
        for axes, number in zip(row[1:], numbers, strict=True):
            values = heat.layer(cells.cells, number)
            low, high = float(values.min()), float(values.max())
            axes.imshow(heat.paint(each.picture, values, low, high), interpolation="nearest")
            name = f"layer {number}" if number else "all layers"
            axes.set_title(f"{name}\n{low:.3f} to {high:.3f}", fontsize=7, loc="left")
        for axes in row:
            axes.set(xticks=[], yticks=[])
    return png(figure)
