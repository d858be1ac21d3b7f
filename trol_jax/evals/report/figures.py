"""Figures and tables of a report, as the bytes of PNG files."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from trol_jax.evals.pictures import QUIET, plain, png
from trol_jax.evals.report.runs import COLUMNS, Run, published, size
from trol_jax.evals.report.tables import DASH, PART, Table, number

INK, LINE, TINT, FAINT = "#1f2328", "#d0d7de", "#f0f6ff", "#afb8c1"
OURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#9a6700")
PUBLISHED = ("#c8d1da", "#a3b1bf", "#73879b")  # of the three sizes of TroL, from the smallest
CENTRE = 0.5  # of the lowest value, where an axis of the radar begins
TICKS = (2, 4, 8, 16, 32, 64, 128)
ROW, CHARACTER = 0.27, 0.085  # inches


def values(run: Run) -> dict[str, float | None]:
    """By the paper's names; None where there is no value."""
    found = {name: run.column(name) for name in COLUMNS}
    return {name: result.value if result else None for name, result in found.items()}


def label(run: Run) -> str:
    """Name and scoring."""
    found = [result for name in COLUMNS if (result := run.column(name)) and result.value is not None]
    scorings = ", ".join(dict.fromkeys(result.scoring for result in found)) or "not scored"
    return f"{readable(run.name)} ({scorings}){PART if any(result.partial for result in found) else ''}"


# ---------------------------------------------------------------------- radar


def radar(runs: Sequence[Run]) -> bytes:
    """Every benchmark of the paper on an axis of its own, from half of the lowest value shown to the highest."""
    theirs = published()["trol"]
    mine = [values(run) for run in runs]
    spans = {name: span(row.get(name) for row in (*theirs.values(), *mine)) for name in COLUMNS}
    angles = [2 * math.pi * i / len(COLUMNS) for i in range(len(COLUMNS))]
    figure = canvas(9.2, 8.6)
    axes = figure.add_subplot(projection="polar")
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    styles = [dict(color=color, linewidth=1.4, linestyle="--") for color in PUBLISHED]
    for (name, row), style in zip(theirs.items(), styles, strict=True):
        outline(axes, angles, placed(row, spans), label=f"{name}, published", **style)
    for place, (run, row) in enumerate(zip(runs, mine, strict=True)):
        style = dict(color=OURS[place % len(OURS)], linewidth=2.2, marker="o", markersize=4)
        outline(axes, angles, placed(row, spans), label=label(run), **style)
    axes.set_xticks(
        angles, [f"{name}\n{number(high, name)}" for name, (_, high) in spans.items()], fontsize=9, color=INK
    )
    axes.tick_params(axis="x", pad=16)
    axes.set(ylim=(0, 1.02), yticks=[0.25, 0.5, 0.75, 1], yticklabels=[])
    axes.grid(color=LINE, linewidth=0.8)
    axes.spines["polar"].set_color(LINE)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9.5)
    return png(figure)


def span(figures: Iterable[float | None]) -> tuple[float, float]:
    known = [figure for figure in figures if figure is not None]
    return CENTRE * min(known), max(known)


def placed(row: Mapping[str, float | None], spans: Mapping[str, tuple[float, float]]) -> list[float]:
    """0 to 1 on each axis; NaN, a gap, where there is no value."""
    return [
        math.nan if row.get(name) is None else (row[name] - low) / (high - low) if high > low else 1.0
        for name, (low, high) in spans.items()
    ]


def outline(axes, angles: Sequence[float], radii: Sequence[float], **style) -> None:
    axes.plot([*angles, angles[0]], [*radii, radii[0]], **style)


# ---------------------------------------------------------------------- size against score


def sizes(runs: Sequence[Run]) -> bytes:
    """A panel for each benchmark that the paper has for other models whose size is known; others are left out."""
    rows = {model: row for table in published()["tables"].values() for model, row in table.items() if size(model)}
    known = {name: {model: row[name] for model, row in rows.items() if row.get(name) is not None} for name in COLUMNS}
    trol = published()["trol"]
    names = [name for name in COLUMNS if set(known[name]) - set(trol)]
    figure = canvas(13, 5.6)
    panels = figure.subplots(2, math.ceil(len(names) / 2), squeeze=False).flat
    for axes, name in zip(panels, names, strict=False):
        others = {model: value for model, value in known[name].items() if model not in trol}
        dots(axes, others, color=FAINT, label="others, published")
        dots(axes, {model: row[name] for model, row in trol.items()}, color=INK, linestyle="-", label="TroL, published")
        for place, run in enumerate(runs):
            dots(
                axes, {run.name: values(run)[name]}, color=OURS[place % len(OURS)], marker="D", markersize=7,
                label=label(run),
            )  # fmt: skip
        panel(axes, name)
    for axes in list(panels)[len(names) :]:
        axes.set_visible(False)
    labels = dict(pair[::-1] for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True))
    figure.legend(labels.values(), labels.keys(), loc="outside upper center", ncols=5, frameon=False, fontsize=9.5)
    figure.supxlabel("parameters, billions", fontsize=9.5, color=QUIET)
    return png(figure)


def dots(axes, points: Mapping[str, float | None], linestyle: str = "", **style) -> None:
    """points: value by the name of a model, which tells its size."""
    found = sorted((size(name), value) for name, value in points.items() if size(name) and value is not None)
    if found:
        axes.plot(*zip(*found, strict=True), **{"marker": "o", "markersize": 5, "linestyle": linestyle} | style)


def panel(axes, name: str) -> None:
    axes.set_title(name, fontsize=11, loc="left", color=INK)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, map(str, TICKS))
    axes.set_xticks([], minor=True)
    axes.set_xlim(1.4, 150)
    axes.tick_params(labelsize=8.5, color=LINE, labelcolor=QUIET)
    axes.grid(color="#eaeef2")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)


# ---------------------------------------------------------------------- tables


def tables(shown: Sequence[Table]) -> bytes:
    """One below the other, our own rows tinted."""
    columns = [[max(map(len, texts)) for texts in texts_of(table)] for table in shown]
    width = CHARACTER * max(sum(lengths) + 2 * len(lengths) for lengths in columns) + 0.4
    heights = [ROW * (len(table.lines) + 3 + len(noted(table, width))) for table in shown]
    height = sum(heights) + 0.2
    figure = canvas(width, height, layout=None)
    top = 0.15
    for table, lengths, own in zip(shown, columns, heights, strict=True):
        draw(figure, table, lengths, width, height, top)
        top += own
    return png(figure)


def texts_of(table: Table) -> list[tuple[str, ...]]:
    """By column."""
    return list(zip(table.header, *(line.cells for line in table.lines), strict=True))


def noted(table: Table, width: float) -> list[str]:
    return [line for note in table.notes for line in textwrap.wrap(note, int(width / 0.07))]


def draw(figure: Figure, table: Table, lengths: Sequence[int], width: float, height: float, top: float) -> None:
    def write(left: float, row: int, text: str, **style) -> None:
        y = 1 - (top + ROW * (row + 0.5)) / height
        figure.text(left / width, y, readable(text), va="center", **{"fontsize": 9, "color": INK} | style)

    def band(row: int, color: str, thickness: float) -> None:
        corner = 0.15 / width, 1 - (top + ROW * row + thickness) / height
        box = Rectangle(corner, 1 - 0.3 / width, thickness / height, color=color, linewidth=0, zorder=-1)
        figure.add_artist(box)

    write(0.2, 0, table.title, fontsize=11.5, weight="bold")
    band(2, LINE, 0.015)
    for row, (cells, ours) in enumerate([(table.header, False), *((line.cells, line.ours) for line in table.lines)], 1):
        if ours:
            band(row, TINT, ROW)
        left = 0.2
        for place, (text, length) in enumerate(zip(cells, lengths, strict=True)):
            style = dict(color=QUIET) if row == 1 else dict(weight="bold") if ours and not place else {}
            write(left, row, text, **style)
            left += CHARACTER * (length + 2)
    for row, text in enumerate(noted(table, width), len(table.lines) + 2):
        write(0.2, row, text, fontsize=8, color=QUIET)


def readable(text: str) -> str:
    """What fonts can show."""
    return "".join(letter if letter in f"{DASH}±" else plain(letter) for letter in text)


def canvas(width: float, height: float, layout: str | None = "constrained") -> Figure:
    figure = Figure(figsize=(width, height), dpi=130, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure
