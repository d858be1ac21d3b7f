"""What a check of the training data found: a table for the terminal, JSON, and a page."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from trol_jax.data.check import ERROR, KINDS, WARNING
from trol_jax.data.check_run import SourceReport
from trol_jax.data.images import load_image
from trol_jax.data.paths import resolve
from trol_jax.data.sources import Sample
from trol_jax.errors import UserError, one_line

COLUMNS = ("source", "rows", "published", "looked at", "pictures", "errors", "warnings")
SHOWN = 600  # characters of a text
THUMBNAIL = 160  # pixels of the longer side
STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em}table{border-collapse:"
    "collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{"
    "text-align:left}.error{color:#b00}.warning{color:#960}pre{white-space:pre-wrap;background:#f6f6f6;padding:.5em}"
)


def row(report: SourceReport) -> tuple[str, ...]:
    found = report.found
    numbers = report.rows, report.published, found.rows, found.formats.total(), found.count(ERROR), found.count(WARNING)
    return report.name, *(f"{number:,}" for number in numbers)


def total(reports: Sequence[SourceReport]) -> tuple[str, ...]:
    columns = zip(*(row(report)[1:] for report in reports), strict=True)
    return "all", *(f"{sum(int(cell.replace(',', '')) for cell in column):,}" for column in columns)


def table(reports: Sequence[SourceReport]) -> str:
    """Counts of each source, then each kind of problem with examples."""
    rows = [COLUMNS, *map(row, reports), total(reports)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])
        for cells in rows
    ]
    for report in reports:
        for kind, count, level, what, examples in problems(report):
            if kind == "count":
                continue  # a column shows it
            lines.append(f"\n{report.name}: {count:,} x {kind} ({level}): {what}")
            lines += [f"  {example}" for example in examples]
    return "\n".join(lines)


def problems(report: SourceReport) -> Iterable[tuple[str, int, str, str, list[str]]]:
    """(kind, how often, level, what it is, examples), errors first."""
    for kind, (level, what) in KINDS.items():
        if count := report.found.problems.get(kind):
            examples = report.found.examples.get(kind, [])
            yield kind, count, level, what, [_example(*each) for each in examples]


def _example(row: int | None, identity: str, message: str) -> str:
    where = f"row {row}, id {identity}: " if row is not None else ""
    return one_line(f"{where}{message}")


def to_json(reports: Sequence[SourceReport]) -> dict:
    """lengths and sides: how many from 2**(k/2) up to 2**((k+1)/2), by k."""
    return {report.name: _source_to_json(report) for report in reports}


def _source_to_json(report: SourceReport) -> dict:
    found = report.found
    plain = {"file": report.file, "rows": report.rows, "total": report.total, "published": report.published}
    counted = {name: dict(sorted(getattr(found, name).items())) for name in ("lengths", "turns", "sides", "formats")}
    told = {
        kind: {"level": level, "count": count, "examples": found.examples.get(kind, [])}
        for kind, count, level, _, _ in problems(report)
    }
    sums = {"errors": found.count(ERROR), "warnings": found.count(WARNING)}
    return plain | {"looked_at": found.rows} | sums | {"problems": told} | counted


# ---------------------------------------------------------------------- the page
def page(reports: Sequence[SourceReport], samples: Mapping[str, Sample], root: str, unit: str = "characters") -> str:
    """One file, that needs no other. samples: one of each source, to be shown."""
    head = "".join(f"<th>{column}</th>" for column in COLUMNS)
    body = "".join(_cells(cells) for cells in (*map(row, reports), total(reports)))
    sections = "".join(_section(report, samples.get(report.name), root, unit) for report in reports)
    return (
        f"<!doctype html><meta charset=utf-8><title>Training data</title><style>{STYLE}</style>"
        f"<h1>Training data</h1><p>{html.escape(root)}</p><table><tr>{head}</tr>{body}</table>{sections}\n"
    )


def _cells(cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _section(report: SourceReport, sample: Sample | None, root: str, unit: str) -> str:
    parts = [f"<h2>{report.name}</h2><p>{report.file}</p>"]
    for kind, count, level, what, examples in problems(report):
        parts.append(f"<p class={level}><b>{count:,} &times; {kind}</b>: {what}</p>")
        parts.append(f"<pre>{html.escape(chr(10).join(examples))}</pre>")
    if report.found.lengths:
        parts.append(f'<img alt="histograms" src="data:image/png;base64,{_base64(histograms(report, unit))}">')
    if sample is not None:
        text = "\n".join(f"{role}: {text[:SHOWN]}" for role, text in sample.turns[:6])
        parts.append(f"<p>A sample, {html.escape(sample.id)}:</p>{_thumbnails(sample, root)}")
        parts.append(f"<pre>{html.escape(text)}</pre>")
    return "".join(parts)


def _thumbnails(sample: Sample, root: str) -> str:
    made = []
    for picture in sample.pictures[:4]:
        try:
            image = Image.fromarray(load_image(picture if isinstance(picture, bytes) else resolve(root, picture)))
        except UserError:
            continue
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        image.save(file, "JPEG")
        made.append(f'<img alt="picture" src="data:image/jpeg;base64,{_base64(file.getvalue())}"> ')
    return "".join(made)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def histograms(report: SourceReport, unit: str) -> bytes:
    """PNG: lengths of the samples and longer sides of the pictures."""
    from matplotlib.figure import Figure  # the only use of it here; half a second

    figure = Figure(figsize=(9, 2.4), layout="constrained")
    charts = figure.subplots(1, 2)
    found = report.found
    for axes, counts, label in (
        (charts[0], found.lengths, f"{unit} of a sample"),
        (charts[1], found.sides, "pixels of a picture's longer side"),
    ):
        starts = [2 ** (k / 2) for k in counts]
        axes.bar(starts, counts.values(), [start * (2**0.5 - 1) for start in starts], align="edge", edgecolor="white")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel(label)
        axes.set_visible(bool(counts))
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()
