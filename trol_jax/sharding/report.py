"""Reports of strategies for people and programs: a table, JSON, and a page with charts."""

import base64
import dataclasses
import html
import io
from collections.abc import Sequence
from typing import Any

from trol_jax.sharding.plan import LEFT_OUT, Report, knob
from trol_jax.sharding.targets import GIB

COLUMNS = ("mesh", "rules", "remat", "fits", "GiB", "rows, about", "ms", "tokens/s", "MFU", "sent GiB", "bound by")
TAG = {"train": "training", "qlora": "QLoRA", "prefill": "prompts", "decode": "one token a row"}


def row(r: Report) -> tuple[str, ...]:
    s, peak = r.strategy, (r.compiled or r.memory).get("peak", r.memory["peak"])
    return (
        s.mesh, s.rules, s.remat if s.trains else "-", "yes" if r.fits else "no", f"{peak / GIB:.2f}",
        f"{r.largest_batch}", f"{_ms(r.fastest)} to {_ms(r.slowest)}", f"{r.tokens_per_second:,.0f}",
        f"{r.mfu:.0%}", f"{r.wire / GIB:.3g}", r.bound,
    )  # fmt: skip


def title(r: Report) -> str:
    s = r.strategy
    more = f", {s.accumulation} micro-batches" if s.accumulation > 1 else ""
    rows = f"{s.batch} rows of {s.length} tokens" if s.task != "decode" else f"{s.batch} rows, caches of {s.length}"
    passes = "" if s.task == "decode" else f", {s.passes} passes"
    return f"{s.variant}, {TAG[s.task]}, {rows}{more}{passes}, on {r.target} ({r.devices} devices)"


def table(reports: Sequence[Report]) -> str:
    """Of strategies, in the order given."""
    rows = [COLUMNS, *map(row, reports)]
    widths = [max(len(each[i]) for each in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(each, widths, strict=True)).rstrip() for each in rows]
    return "\n".join([title(reports[0]), *lines])


def details(r: Report) -> str:
    """Everything of one strategy."""
    lines = [f"{r.strategy.mesh}, {r.strategy.rules}, remat {r.strategy.remat}: communication {r.digest}"]
    held = ", ".join(f"{name} {size / GIB:.3g}" for name, size in r.memory.items())
    lines.append(f"  GiB a device: {held}; of {r.capacity / GIB:.3g}")
    if r.compiled is not None:
        said = r.compiled.get("message") or ", ".join(
            f"{name} {r.compiled[name] / GIB:.3g}" for name in ("arguments", "temporaries", "peak")
        )
        lines.append(f"  GiB by the target's compiler ({r.compiled['compiler']}): {said}")
    shares = ", ".join(f"{name} {count / 1e12:.4g}" for name, count in r.flops.items())
    lines.append(f"  TFLOP a step: {shares}")
    lines.append("  at least, ms: " + ", ".join(f"{name} {_ms(value)}" for name, value in r.seconds.items()))
    for each in r.traffic:
        along = " and ".join(each.axes)
        lines.append(
            f"  {each.kind} along {along}: {each.launches} launches of up to {each.size / 2**20:.3g} MiB, "
            f"{each.wire / GIB:.3g} GiB sent, {_ms(each.seconds)} ms"
        )
        lines += [f"    {sent / GIB:8.3g} GiB  {count:5} x  {where}" for where, count, sent in each.places[:3]]
    lines += [f"  ! {flag}" for flag in r.flags]
    return "\n".join([*lines, f"  > {knob(r)}"])


def difference(a: Report, b: Report) -> str:
    """What the second has more (or less) of than the first."""
    name = lambda r: f"{r.strategy.mesh} {r.strategy.rules} {r.strategy.remat}"  # noqa: E731
    lines = [f"{name(b)} against {name(a)}:"]
    for what, unit, scale in (("memory", "GiB", GIB), ("seconds", "ms", 1e-3), ("flops", "TFLOP", 1e12)):
        one, other = getattr(a, what), getattr(b, what)
        lines += _changes({key: (one.get(key, 0), other.get(key, 0)) for key in {**one, **other}}, unit, scale)
    sent = [{f"{t.kind} {' and '.join(t.axes)}": t.wire for t in r.traffic} for r in (a, b)]
    pairs = {key: (sent[0].get(key, 0.0), sent[1].get(key, 0.0)) for key in {**sent[0], **sent[1]}}
    return "\n".join([*lines, *_changes(pairs, "GiB sent", GIB)])


def _changes(pairs: dict[str, tuple[float, float]], unit: str, scale: float) -> list[str]:
    return [
        f"  {key}: {one / scale:.4g} -> {other / scale:.4g} {unit}"
        for key, (one, other) in pairs.items()
        if abs(one - other) > 0.01 * max(abs(one), abs(other))
    ]


def to_json(r: Report) -> dict[str, Any]:
    derived = ("fits", "largest_batch", "bound", "fastest", "slowest", "tokens_per_second", "mfu", "wire")
    more = {name: getattr(r, name) for name in derived}
    return dataclasses.asdict(r) | more | {"knob": knob(r), "left_out": LEFT_OUT}


def charts(reports: Sequence[Report]) -> bytes:
    """A PNG: the times of each strategy, and what its devices hold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [f"{r.strategy.mesh}\n{r.strategy.rules} {r.strategy.remat}" for r in reports]
    figure = Figure(figsize=(11, 1.6 + 0.6 * len(reports)), layout="constrained")
    times, memory = figure.subplots(1, 2, sharey=True)
    parts = [key for key in dict.fromkeys(key for r in reports for key in r.memory) if key != "peak"]
    _bars(times, names, [r.seconds for r in reports], dict.fromkeys(key for r in reports for key in r.seconds), 1e-3)
    _bars(memory, names, [r.memory for r in reports], parts, GIB, stacked=True)
    memory.axvline(reports[0].capacity / GIB, color="black", linestyle="--")
    times.set_xlabel("ms a step, at least")
    memory.set_xlabel("GiB a device (dashed: what the chip has)")
    times.invert_yaxis()
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _bars(axes, names, values, keys, scale, stacked: bool = False) -> None:
    keys, left = list(keys), [0.0] * len(names)
    height = 0.8 if stacked else 0.8 / len(keys)
    for number, key in enumerate(keys):
        mine = [each.get(key, 0) / scale for each in values]
        where = [i + (0 if stacked else (number - (len(keys) - 1) / 2) * height) for i in range(len(names))]
        axes.barh(where, mine, height, left=left, label=key)
        left = [a + b for a, b in zip(left, mine, strict=True)] if stacked else left
    axes.set_yticks(range(len(names)), names)
    axes.legend(fontsize="small")


def page(reports: Sequence[Report]) -> str:
    """One HTML file with everything in it."""
    picture = base64.b64encode(charts(reports)).decode()
    cell = lambda tag, text: f"<{tag}>{html.escape(text)}</{tag}>"  # noqa: E731
    head = "".join(cell("th", name) for name in COLUMNS)
    rows = "".join(f"<tr>{''.join(cell('td', text) for text in row(r))}</tr>" for r in reports)
    more = "".join(cell("pre", details(r)) for r in reports)
    style = "body{font:15px sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:left}pre{white-space:pre-wrap}"
    return (
        f"<!doctype html><meta charset=utf-8><title>Strategies</title><style>{style}</style>"
        f"{cell('h1', title(reports[0]))}<table><tr>{head}</tr>{rows}</table>"
        f'<img alt="Times and memory of each strategy" src="data:image/png;base64,{picture}">{more}'
        f"{cell('p', LEFT_OUT)}\n"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"
