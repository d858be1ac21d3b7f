"""Pictures of a measurement, as the bytes of PNG files. Made without pyplot, so that no global state changes."""

import io
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trol_jax.data.images import load_image

RIGHT, WRONG, QUIET = "#1a7f37", "#c62828", "#57606a"
IMAGE, TEXT = "#0969da", "#bc4c00"
COLUMNS = 8
WRONG_SHOWN = 2  # of each kind, more only if too few are right
HEADER, TITLE, PICTURE, CAPTION, COLUMN, MARGIN = 0.75, 0.38, 1.4, 0.85, 1.6, 0.2  # inches


def samples(rows: Sequence[Mapping], result: Mapping) -> bytes:
    """A line of pictures for each kind of question, each with question and answer.

    rows: with "image" (path), "id", "question", "answer", "prediction", "kind" and "right".
    result: as `easy_vqa.score` gives it.
    """
    kinds, band = result["by_kind"], TITLE + PICTURE + CAPTION
    width, height = COLUMNS * COLUMN + 2 * MARGIN, HEADER + band * len(kinds) + MARGIN
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    write = lambda x, y, text, **style: figure.text(x / width, 1 - y / height, text, va="top", **style)  # noqa: E731
    title = f"easy-vqa test: {percent(result)} of {result['n']:,} questions right"
    write(MARGIN, 0.15, title, fontsize=16, weight="bold")
    chosen = {kind: choose([row for row in rows if row["kind"] == kind]) for kind in kinds}
    shown = [row for examples in chosen.values() for row in examples]
    wrong = sum(not row["right"] for row in shown)
    note = f"Shown are {len(shown)} questions, {wrong} of them answered wrongly: of each kind "
    note += f"up to {WRONG_SHOWN} wrong answers come first, more only where too few are right."
    write(MARGIN, 0.47, note, fontsize=9.5, color=QUIET)
    for number, (kind, part) in enumerate(kinds.items()):
        top = HEADER + number * band
        write(MARGIN, top + 0.1, kind, fontsize=12, weight="bold")
        write(MARGIN + 0.8, top + 0.12, f"{percent(part)} of {part['n']:,} right", fontsize=11, color=QUIET)
        for column, row in enumerate(chosen[kind]):
            left, under = MARGIN + column * COLUMN, top + TITLE
            color = RIGHT if row["right"] else WRONG
            box = (left / width, 1 - (under + PICTURE) / height, PICTURE / width, PICTURE / height)
            _picture(figure.add_axes(box), row["image"], color)
            question = "\n".join(textwrap.wrap(plain(row["question"]), 24, max_lines=2, placeholder=" …"))
            write(left, under + PICTURE + 0.06, question, fontsize=8)
            write(left, under + PICTURE + 0.36, verdict(row), fontsize=8.5, weight="bold", color=color)
    return png(figure)


def gates(values: Mapping[str, Sequence[float] | None], result: Mapping) -> bytes:
    """Mean gate by layer. values: {"image": float[L] or None, "text": float[L] or None}."""
    figure = Figure(figsize=(7.5, 4.6), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(0.5, color="#afb8c1", linestyle=":", linewidth=1.2, label="before training (s = 0.5)")
    series = {name: v for name, v in values.items() if v}
    for name, color, marker in (("image", IMAGE, "o"), ("text", TEXT, "s")):
        if name in series:
            layers = range(1, len(series[name]) + 1)
            axes.plot(layers, series[name], color=color, marker=marker, linewidth=2, label=f"{name} tokens")
            others = [v for other, v in series.items() if other != name]
            _label(axes, series[name], others[0] if others else None, color)
    axes.set(ylim=(-0.06, 1), xlabel="layer", ylabel="mean gate s (share of the second pass)")
    axes.set_title(
        f"How much of the second pass each layer keeps\nmean over the prompts of {result['n']:,} test questions",
        fontsize=11, loc="left",
    )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, max(len(v) for v in series.values()) + 0.5)
    axes.grid(axis="y", color="#eaeef2")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center", ncols=3, fontsize=9)
    return png(figure)


def percent(part: Mapping) -> str:
    return f"{100 * part['accuracy']:.2f}%"


def plain(text: str, length: int = 60) -> str:
    """What fonts can show, in one line; `$` would start a formula."""
    return "".join(c if c.isascii() and c.isprintable() else "\N{WHITE SQUARE}" for c in text[:length]).replace(
        "$", r"\$"
    )


def verdict(row: Mapping) -> str:
    """The answer given and, if wrong, the one expected below it."""
    given = plain(row["prediction"], 18) or "(nothing)"
    return given if row["right"] else f"{given}\nexpected: {plain(row['answer'])}"


def choose(rows: Sequence[Mapping], count: int = COLUMNS, wrong: int = WRONG_SHOWN) -> list[Mapping]:
    """`count` rows spread over the answers, up to `wrong` wrong ones first; more of those only if too few are right."""
    rows = sorted(rows, key=lambda row: (row["answer"], row["id"]))
    bad, good = [row for row in rows if not row["right"]], [row for row in rows if row["right"]]
    shown = min(len(bad), max(wrong, count - len(good)))
    return spread(bad, shown) + spread(good, min(count - shown, len(good)))


def spread(items: Sequence, count: int) -> list:
    """`count` of the items at even distances."""
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _picture(axes, path: str, color: str) -> None:
    axes.imshow(load_image(path), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=3)


def _label(axes, values: Sequence[float], others: Sequence[float] | None, color: str) -> None:
    """The numbers at the points, above or below so that two lines do not write over each other."""
    if len(values) > 8:
        return
    for i, value in enumerate(values):
        above = others is None or value >= others[i]
        axes.annotate(
            f"{value:.2f}", (i + 1, value), xytext=(0, 8 if above else -8), textcoords="offset points", ha="center",
            va="bottom" if above else "top", fontsize=9, color=color,
        )  # fmt: skip
