"""The paper's three tables with rows of our own, and a table of everything that was measured. All cells are texts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trol_jax.evals.report.runs import COLUMNS, Result, Run, published

DASH = "\N{EN DASH}"  # nothing was measured; never a zero
PART = "*"
HOW = ("Scoring", "Judge", "Version")


@dataclass(frozen=True)
class Line:
    cells: tuple[str, ...]
    ours: bool  # else published


@dataclass(frozen=True)
class Table:
    title: str
    header: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def all_tables(runs: Sequence[Run]) -> list[Table]:
    return [*(paper_table(title, runs) for title in published()["tables"]), everything(runs)]


# ---------------------------------------------------------------------- those of the paper


def paper_table(title: str, runs: Sequence[Run]) -> Table:
    rows = published()["tables"][title]
    names = list(next(iter(rows.values())))
    theirs = [
        Line((model, *(number(values[name], name) for name in names), "published", DASH, DASH), ours=False)
        for model, values in rows.items()
    ]
    ours = [line for run in runs for line in lines_of(run, names)]
    return Table(title, ("Model", *names, *HOW), (*theirs, *ours), tuple(notes(runs, names)))


def lines_of(run: Run, names: Sequence[str]) -> list[Line]:
    """One for each scoring and version; a run has one of each, as a rule."""
    found = {name: run.column(name) for name in names}
    kinds = dict.fromkeys((each.scoring, each.version) for each in found.values() if each) or [(DASH, DASH)]
    lines = []
    for kind in kinds:
        mine = {name: each for name, each in found.items() if each and (each.scoring, each.version) == kind}
        values = (value(mine.get(name), name) for name in names)
        lines.append(Line((run.name, *values, kind[0], judges(mine), kind[1]), ours=True))
    return lines


def judges(found: dict[str, Result]) -> str:
    """Of those that were judged, who did and what; "none" is rules only."""
    by_judge = {}
    for name, result in found.items():
        if result.judge != "none":
            by_judge.setdefault(result.judge, []).append(name)
    if not by_judge:
        return "none" if found else DASH
    return "; ".join(f"{judge}: {', '.join(names)}" for judge, names in by_judge.items())


def notes(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    said = [f"{published()['note']} A run compares with them where its scoring is trol and no judge is needed."]
    said.append(
        "Judges are asked in this project's own words, not the authors': what they score does not compare exactly "
        "with published figures, even of the same judge."
    )
    said.append(f"{DASH} not measured, or not scored. ± standard error.")
    shown = [(run, name, result) for run in runs for name in names if (result := run.column(name))]
    if any(result.partial for *_, result in shown):
        said.append(f"{PART} over a part of the questions; see the table of all results.")
    other = {}
    for run, name, result in shown:
        if result.value is not None and result.benchmark != COLUMNS[name][0]:
            other.setdefault((name, result.benchmark), []).append(run.name)
    return said + [f"{name} is {own} of {', '.join(names)}." for (name, own), names in other.items()]


# ---------------------------------------------------------------------- all


def everything(runs: Sequence[Run]) -> Table:
    header = ("Benchmark", "Run", "Value", "n", "Unparsed", "Unjudged", "Left out", *HOW, "Scorer")
    order = dict.fromkeys(name for run in runs for name in run.results)
    pairs = [(run, run.results[name]) for name in order for run in runs if name in run.results]
    said = ["Left out: could not be asked, or have no answer, or are rows that cannot be used. ± standard error."]
    if any(result.partial for _, result in pairs):
        why = "--limit, --offset, some were left out or not judged, or parts of the benchmark are absent"
        said.append(f"{PART} over a part of the questions: {why}.")
        lacking = [(run.name, each.benchmark, ", ".join(each.absent)) for run, each in pairs if each.absent]
        said += [f"{run} lacks of {name}: {absent}." for run, name, absent in lacking]
    units = dict.fromkeys(f"of {each.benchmark}: {each.unit}" for _, each in pairs if each.unit != "percent")
    said.append(f"{'; '.join(['Values are percent', *units])}.")
    return Table("All results", header, tuple(full_line(*pair) for pair in pairs), tuple(said))


def full_line(run: Run, result: Result) -> Line:
    worth = value(result, "MME" if result.benchmark == "mme" else "")
    counts = (result.n, result.unparsed, result.unjudged, result.failed + result.missing + result.bad_rows)
    how = (result.scoring, result.judge, result.version, result.scorer)
    return Line((result.benchmark, run.name, worth, *(f"{count:,}" for count in counts), *how), ours=True)


# ---------------------------------------------------------------------- cells


def value(result: Result | None, name: str) -> str:
    if result is None or result.value is None:
        return DASH
    error = "" if result.standard_error is None else f" ± {number(result.standard_error, name)}"
    return f"{number(result.value, name)}{error}{PART if result.partial else ''}"


def number(figure: float | None, name: str) -> str:
    """As the paper writes them: points of MME without a digit, others with one."""
    if figure is None:
        return DASH
    return f"{figure:,.0f}" if name == "MME" else f"{figure:.1f}"


# ---------------------------------------------------------------------- Markdown


def markdown(table: Table) -> str:
    mixed = not all(line.ours for line in table.lines)
    lines = [[escaped(cell) for cell in line.cells] for line in table.lines]
    for line, cells in zip(table.lines, lines, strict=True):
        cells[0] = f"**{cells[0]}**" if mixed and line.ours else cells[0]
    rows = [table.header, ["---"] * len(table.header), *lines]
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n\n".join([f"## {table.title}", body, *map(escaped, table.notes)]) + "\n"


def escaped(text: str) -> str:
    """In one line; what would be marks of Markdown is text."""
    return re.sub(r"([\\|*_<`])", r"\\\1", " ".join(text.split()))
