"""What a study found: results.jsonl, a Markdown and an HTML report, two plots."""

import base64
import dataclasses
import html
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trol_jax.evals.pictures import QUIET, png
from trol_jax.journal import write
from trol_jax.study.grid import Result
from trol_jax.study.statistics import Difference, Mean, difference, mean

RESULTS, MARKDOWN, HTML = "results.jsonl", "report.md", "report.html"
PLOTS = {"accuracy.png": "Accuracy: each point a seed, bars the mean and its standard error", "loss.png": "Loss"}
NOTE = (
    "Mean ± standard error over seeds, in percent of the test questions. Differences are from the row named, seed by "
    "seed; p is of a paired t-test, two-sided, and not corrected for the number of comparisons. FLOPs are those of a "
    "row of training, forward; seconds are those of a step of training, the median of all; memory is what such a step "
    "takes on each device, by the compiler."
)


@dataclasses.dataclass(frozen=True)
class Table:
    head: list[str]
    lines: list[list[str]]


def write_report(
    root: Path, title: str, command: str, results: Sequence[Result],
    guess: Mapping[str, float], against: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Into `root`, each file as a whole. guess: by kind of question, see `grid.guessed`.

    against: by row, the row that it is compared with; by default all others are with the first.
    """
    rows = by_row(results)
    first, *others = rows
    pairs = dict.fromkeys(others, first) if against is None else against
    pairs = {row: other for row, other in pairs.items() if row in rows and other in rows}
    drawn = dict(zip(PLOTS, (accuracy_plot(rows), loss_plot(rows)), strict=True))
    for name, data in drawn.items():
        write(root / name, data)
    lines = (json.dumps(dataclasses.asdict(each)) + "\n" for each in results)
    write(root / RESULTS, "".join(lines).encode())
    tables = [main_table(rows, pairs), *kinds_tables(rows, guess, pairs), gates_table(rows), cost_table(rows)]
    write(root / MARKDOWN, markdown(title, command, tables).encode())
    write(root / HTML, page(title, command, tables, drawn).encode())


def by_row(results: Sequence[Result]) -> dict[str, list[Result]]:
    rows = {}
    for each in results:
        rows.setdefault(each.row, []).append(each)
    return rows


# ---------------------------------------------------------------------- tables
def main_table(rows: Mapping[str, Sequence[Result]], pairs: Mapping[str, str]) -> Table:
    lines = []
    for row, results in rows.items():
        line = [row, str(len(results)), told(mean([each.accuracy for each in results])), "", "", ""]
        if row in pairs:
            paired = compared(results, rows[pairs[row]])
            line[3:] = pairs[row], told(paired, "+"), p_value(paired.p)
        lines.append(line)
    return Table(["row", "seeds", "accuracy", "compared with", "difference", "p"], lines)


def kinds_tables(
    rows: Mapping[str, Sequence[Result]], guess: Mapping[str, float], pairs: Mapping[str, str]
) -> list[Table]:
    """Accuracy by kind of question; differences of the pairs, each with its p."""
    kinds = list(dict.fromkeys(kind for results in rows.values() for each in results for kind in each.by_kind))
    lines = [
        [row, *(told(mean([each.by_kind[kind] for each in results if kind in each.by_kind])) for kind in kinds)]
        for row, results in rows.items()
    ]
    lines.append(["(the commonest answer)", *(f"{100 * guess[kind]:.2f}" for kind in kinds)])
    tables = [Table(["row", *kinds], lines)]
    if pairs:
        found = {
            f"{row} - {other}": [compared(rows[row], rows[other], kind) for kind in kinds]
            for row, other in pairs.items()
        }
        lines = [[both, *map(with_p, differences)] for both, differences in found.items()]
        tables.append(Table(["difference (p)", *kinds], lines))
    return tables


def gates_table(rows: Mapping[str, Sequence[Result]]) -> Table:
    """Mean over seeds, layer by layer."""
    lines = []
    for row, results in rows.items():
        by_kind = ([each.gates[kind] for each in results if each.gates[kind]] for kind in ("image", "text"))
        lines.append([row, *(", ".join(f"{mean(a).mean:.2f}" for a in zip(*gates, strict=True)) for gates in by_kind)])
    return Table(["row", "gate of image tokens, by layer", "gate of text tokens, by layer"], lines)


def cost_table(rows: Mapping[str, Sequence[Result]]) -> Table:
    lines = []
    for row, results in rows.items():
        one, seconds = results[0], statistics.median(each.seconds for each in results)
        memory = f"{one.memory / 2**20:,.0f} MiB"
        lines.append([row, f"{one.parameters:,}", f"{one.flops / 1e6:,.0f} M", f"{seconds:.3f}", memory])
    return Table(["row", "parameters of the language model", "FLOPs", "seconds", "memory"], lines)


def compared(results: Sequence[Result], others: Sequence[Result], kind: str | None = None) -> Difference | None:
    """Over the seeds that both have; of one kind of question, None where they have none."""
    score = lambda each: each.by_kind.get(kind) if kind else each.accuracy  # noqa: E731
    mine, its = ({each.seed: score(each) for each in part} for part in (results, others))
    seeds = [seed for seed in sorted(mine.keys() & its.keys()) if None not in (mine[seed], its[seed])]
    return difference([mine[seed] for seed in seeds], [its[seed] for seed in seeds]) if seeds else None


def told(value: Mean, sign: str = "") -> str:
    error = "" if math.isnan(value.error) else f" ± {100 * value.error:.2f}"
    return f"{100 * value.mean:{sign}.2f}{error}"


def with_p(value: Difference | None) -> str:
    if value is None:
        return ""
    return told(value, "+") + (f" ({p})" if (p := p_value(value.p)) else "")


def p_value(p: float) -> str:
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


# ---------------------------------------------------------------------- texts
def markdown(
    title: str, command: str, tables: Sequence[Table], note: str = NOTE, plots: Mapping[str, str] = PLOTS
) -> str:
    parts = [f"# {title}", f"    {command}", note]
    for table in tables:
        lines = [table.head, ["---"] * len(table.head), *table.lines]
        parts.append(
            "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
        )
    parts += [f"![{what}]({name})" for name, what in plots.items()]
    return "\n\n".join(parts) + "\n"


def page(
    title: str, command: str, tables: Sequence[Table], drawn: Mapping[str, bytes],
    note: str = NOTE, plots: Mapping[str, str] = PLOTS,
) -> str:  # fmt: skip
    style = "body{font:15px sans-serif;max-width:60em;margin:2em auto}td,th{padding:.2em .8em;text-align:right}"
    style += "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
    parts = [f"<h1>{html.escape(title)}</h1>", f"<pre>{html.escape(command)}</pre>", f"<p>{html.escape(note)}</p>"]
    for table in tables:
        cells = lambda tag, line: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line)  # noqa: E731
        lines = [cells("th", table.head), *(cells("td", line) for line in table.lines)]
        parts.append(f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")
    for name, what in plots.items():
        parts.append(f"<img alt='{what}' src='data:image/png;base64,{base64.b64encode(drawn[name]).decode()}'>")
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{style}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


# ---------------------------------------------------------------------- plots
def accuracy_plot(rows: Mapping[str, Sequence[Result]]) -> bytes:
    axes = _axes()
    for place, results in enumerate(rows.values()):
        values = [100 * each.accuracy for each in results]
        found = mean(values)
        axes.errorbar(place, found.mean, None if math.isnan(found.error) else found.error, fmt="_", ms=24, capsize=6)
        axes.plot([place] * len(values), values, "o", color=QUIET, alpha=0.6, ms=4)
    axes.set_xticks(range(len(rows)), list(rows))
    axes.set_ylabel("test questions right, %")
    return png(axes.figure)


def loss_plot(rows: Mapping[str, Sequence[Result]]) -> bytes:
    axes = _axes()
    for row, results in rows.items():
        steps = [step for step, _ in results[0].curve]
        curves = zip(*([loss for _, loss in each.curve] for each in results), strict=False)
        means = [mean(losses).mean for losses in curves]
        axes.plot(steps[: len(means)], means, label=row, linewidth=1)
    axes.set(xlabel="step", ylabel="loss, mean over seeds (nats a token)", yscale="log")
    axes.legend(frameon=False)
    return png(axes.figure)


def _axes():
    figure = Figure(figsize=(8, 4), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eaeef2")
    return axes
