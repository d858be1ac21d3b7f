"""Writes a report: REPORT (everything, one page), MARKDOWN, and the figures and tables as pictures."""

import html
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

import trol_jax
from trol_jax.errors import UserError
from trol_jax.evals.report import compare, figures, samples, splits, tables
from trol_jax.evals.report.runs import Run, read, size
from trol_jax.evals.report.tables import Table
from trol_jax.journal import write

REPORT, MARKDOWN = "report.html", "report.md"
RADAR = (
    "Each benchmark has its own axis, from half of the lowest value shown (centre) to the highest (written there). "
    "A benchmark that a run lacks is a gap. Beside a run's name stands its scoring; * over a part of the questions."
)
SIZES = "Published models whose size is known, and runs whose name tells theirs, as in mine-7B."
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TroL: report</title>
<style>
{style}</style>
<header><h1>{heading}</h1><p class="quiet">{about}</p></header>
<nav><ul><li><a href="#tables">Tables</a><li><a href="#figures">Figures</a>{links}
<li><a href="#samples">Samples</a></ul></nav>
<main>
<section id="tables">{tables}</section>
<section id="figures">{figures}</section>
<section id="comparison">{comparisons}</section>
<section id="samples"><h2>Samples</h2>{samples}</section>
</main>
"""
BROWSER = """<p class="quiet">{note}</p>
<div class="tools"><select id="benchmark" aria-label="Benchmark"></select><select id="shows" aria-label="Shown answers">
</select><input id="text" type="search" placeholder="text in question or answers" aria-label="Text">
</div>
<div id="cards"></div>
<div class="tools pager"><span id="count" class="quiet" role="status"></span>
<button id="before" type="button">Previous</button><button id="after" type="button">Next</button></div>
<script type="application/json" id="data">{data}</script>
<script>
{script}</script>"""


def report(folders: Sequence[str], output: Path, root: Path | None = None) -> list[Path]:
    """Files written, whole or not at all, once all is made. folders: see `runs.read`; root: see `samples.collect`."""
    runs = read(folders)
    if not runs:
        raise UserError("name at least one folder of results, as: python -m launch.report runs/eval --output=report")
    if root and not root.is_dir():
        raise UserError(f"--root={root} is no folder; name the one that holds the benchmarks")
    found, compared = tables.all_tables(runs), compare.all_tables(runs)
    pictures = {
        "radar.png": figures.radar(runs),
        "size.png": figures.sizes(runs),
        "tables.png": figures.tables(found[:-1]),
    }
    files = pictures | {
        MARKDOWN: markdown(runs, [*found, *compared]).encode(errors="replace"),
        REPORT: page(runs, found, compared, pictures, samples.collect(runs, output, root)).encode(errors="replace"),
    }
    for name, data in files.items():
        write(output / name, data)
    return [output / name for name in files]


def about(runs: Sequence[Run]) -> str:
    said = "; ".join(f"{run.name}: {run.folder}" for run in runs)
    return f"Made by trol_jax {trol_jax.__version__} of {said}."


def heading(runs: Sequence[Run]) -> str:
    return ", ".join(run.name for run in runs)


def sizes_note(runs: Sequence[Run]) -> str:
    unknown = [run.name for run in runs if size(run.name) is None]
    return f"{SIZES} Left out, of unknown size: {', '.join(unknown)}." if unknown else SIZES


# ---------------------------------------------------------------------- Markdown


def markdown(runs: Sequence[Run], shown: Sequence[Table]) -> str:
    pictures = [
        f"## By benchmark\n\n![By benchmark](radar.png)\n\n{RADAR}\n",
        f"## By size\n\n![By size](size.png)\n\n{tables.escaped(sizes_note(runs))}\n",
    ]
    top = f"# {tables.escaped(heading(runs))}\n\n{tables.escaped(about(runs))}\n"
    return "\n".join([top, *map(tables.markdown, shown), *pictures])


# ---------------------------------------------------------------------- page


def page(
    runs: Sequence[Run],
    found: Sequence[Table],
    compared: Sequence[Table],
    pictures: Mapping[str, bytes],
    browsed: Mapping,
) -> str:
    here = Path(__file__).parent
    drawn = (("By benchmark", "radar.png", RADAR), ("By size", "size.png", sizes_note(runs)))
    lost = (
        f"{browsed['lost']:,} could not be read; --root names the folder of the benchmarks." if browsed["lost"] else ""
    )
    return PAGE.format(
        style=(here / "page.css").read_text(encoding="utf-8"),
        heading=html.escape(heading(runs)),
        about=html.escape(about(runs)),
        links='<li><a href="#comparison">Comparison</a>' if compared else "",
        tables="".join(map(table, found)) + details(splits.all_tables(runs)),
        figures="".join(figure(title, pictures[name], caption) for title, name, caption in drawn),
        comparisons="".join(map(table, compared)),
        samples=BROWSER.format(
            note=f"Wrong: a score below 1. Pictures are small copies. {lost}",
            data=samples.script(browsed),
            script=(here / "page.js").read_text(encoding="utf-8"),
        ),
    )


def figure(title: str, png: bytes, caption: str) -> str:
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    return (
        f'<figure><h2>{title}</h2><div class="pane"><img alt="{title}" src="{source}"></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def table(shown: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in shown.header)
    mixed = not all(line.ours for line in shown.lines)
    rows = "".join(
        f"<tr{' class=ours' if mixed and line.ours else ''}>{''.join(map(cell, line.cells))}</tr>"
        for line in shown.lines
    )
    notes = "".join(f'<p class="quiet">{html.escape(note)}</p>' for note in shown.notes)
    return f'<h2>{html.escape(shown.title)}</h2><div class="wide"><table><tr>{head}</tr>{rows}</table></div>{notes}'


def details(shown: Sequence[Table]) -> str:
    """Tables that are closed at first."""
    closed = (f"<details><summary>{html.escape(each.title)}</summary>{table(each)}</details>" for each in shown)
    return f"<h2>Parts of benchmarks</h2>{''.join(closed)}" if shown else ""


def cell(text: str) -> str:
    value, plus_minus, error = html.escape(text).partition(" ± ")
    small = f" <small>± {error}</small>" if plus_minus else ""
    kind = " class=long" if len(text) > 80 else " class=text" if len(text) > 40 else ""
    return f"<td{kind}>{value}{small}</td>"
