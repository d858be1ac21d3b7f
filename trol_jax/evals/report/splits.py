"""What results say of parts of a benchmark: a table for each that has any, with a column for each run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trol_jax.evals.report.runs import Run
from trol_jax.evals.report.tables import DASH, Line, Table


def all_tables(runs: Sequence[Run]) -> list[Table]:
    names = dict.fromkeys(name for run in runs for name in run.results)
    return [found for name in names if (found := table(name, [run for run in runs if name in run.results])).lines]


def table(name: str, runs: Sequence[Run]) -> Table:
    parts = [dict(leaves(run.results[name].splits)) for run in runs]
    lines = [
        Line((" / ".join(path), *(part.get(path, DASH) for part in parts)), ours=True)
        for path in dict.fromkeys(path for part in parts for path in part)
    ]
    how = [(run.name, run.results[name]) for run in runs]
    notes = [f"{run}: scoring {each.scoring}, judge {each.judge}, version {each.version}." for run, each in how]
    return Table(name, ("Part", *(run.name for run in runs)), tuple(lines), tuple(notes))


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(Path, text) of every figure; a value with its error and number of questions is one."""
    if not isinstance(value, Mapping):
        yield path, figure(value)
    elif "value" in value:
        error = f" ± {value['standard_error']:.1f}" if value.get("standard_error") is not None else ""
        n = f" (n {value['n']:,})" if "n" in value else ""
        yield path, f"{figure(value['value'])}{error}{n}"
    else:
        for name, inner in value.items():
            yield from leaves(inner, (*path, str(name)))


def figure(value: Any) -> str:
    """Counts as they are; shares of 1 keep their digits."""
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:.1f}" if value >= 10 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
