"""The study of docs/sharding.md: how the number of passes changes the best way to lay a model over chips.

    python -m launch.bench sharding [--dir=docs] [--jobs=2] [--tasks=train,prefill]

Each strategy takes half a minute of a core; what is in DIR/sharding.jsonl is not planned again.
"""

import concurrent.futures
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl import flags
from tqdm import tqdm

from trol_jax.errors import UserError

DIR = flags.DEFINE_string("dir", "docs", "Folder of sharding.md, its plots and sharding.jsonl.")
JOBS = flags.DEFINE_integer("jobs", 2, "Strategies at a time.", lower_bound=1)
TASKS = flags.DEFINE_list("tasks", ["train", "prefill"], "Of these.")

SIZES, PASSES = ("trol_1_8b", "trol_7b"), (1, 2, 3, 4)
TARGETS = {8: "v5p-16", 64: "v5p-128", 256: "v5p-512"}  # these names count cores
ROWS = {"train": 2, "prefill": 1}  # a chip
LENGTH = 2048
MESHES = ("fsdp={n}", "fsdp={quarter},tensor=4")
RULES = "fsdp_tensor"
WORDS = {"train": "Training", "prefill": "Prompts"}


def run() -> None:
    unknown = set(TASKS.value) - ROWS.keys()
    if unknown:
        raise UserError(f"--tasks: {min(unknown)!r} is not one of {', '.join(ROWS)}")
    folder = pathlib.Path(DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    known = read(folder / "sharding.jsonl")
    wanted = [case for case in cases() if case[0] in TASKS.value and name(*case) not in known]
    with open(folder / "sharding.jsonl", "a") as file, concurrent.futures.ThreadPoolExecutor(JOBS.value) as pool:
        for report in tqdm(pool.map(lambda case: plan(*case), wanted), total=len(wanted), unit="strategy"):
            file.write(json.dumps(report) + "\n")
            file.flush()
    known = read(folder / "sharding.jsonl")
    tasks = [task for task in ROWS if any(case[0] == task and name(*case) in known for case in cases())]
    for task in tasks:
        replace(folder / f"sharding_{task}.png", plot(task, known))
    replace(folder / "sharding.md", page(tasks, known).encode())
    print(folder / "sharding.md")


def cases() -> list[tuple]:
    """(task, variant, chips, mesh, passes)."""
    return [
        (task, variant, chips, mesh.format(n=chips, quarter=chips // 4), passes)
        for task in ROWS for variant in SIZES for chips in TARGETS for mesh in MESHES for passes in PASSES
    ]  # fmt: skip


def command(task: str, variant: str, chips: int, mesh: str, passes: int) -> list[str]:
    return [
        f"--variant={variant}", f"--task={task}", f"--target={TARGETS[chips]}", f"--mesh={mesh}", f"--rules={RULES}",
        f"--batch={ROWS[task] * chips}", f"--length={LENGTH}", f"--passes={passes}",
    ]  # fmt: skip


def name(*case) -> str:
    return " ".join(command(*case))


def plan(*case) -> dict:
    """What `launch.plan` finds, in a process of its own: the number of devices is that of a process."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "report.json")
        done = subprocess.run(
            [sys.executable, "-m", "launch.plan", *command(*case), f"--json={file}"],
            capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        if done.returncode:
            raise UserError(f"launch.plan {name(*case)}: {done.stderr.strip().splitlines()[-1]}")
        (report,) = json.loads(pathlib.Path(file).read_text())
    return {"command": name(*case), "report": report}


def read(path: pathlib.Path) -> dict[str, dict]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {each["command"]: each["report"] for each in map(json.loads, lines)}


def replace(path: pathlib.Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


# ---------------------------------------------------------------------- the page
def page(tasks: list[str], known: dict[str, dict]) -> str:
    parts = ["# How traversal changes the best sharding", INTRODUCTION.strip()]
    for task in tasks:
        parts += [f"## {WORDS[task]}", f"![{WORDS[task]}: time and traffic by passes](sharding_{task}.png)"]
        for variant in SIZES:
            for chips in TARGETS:
                parts += table(task, variant, chips, known)
    left_out = next(iter(known.values()))["left_out"]
    return "\n\n".join([*parts, *findings(known), f"All of it is {left_out}."]) + "\n"


def table(task: str, variant: str, chips: int, known: dict[str, dict]) -> list[str]:
    """Those of one size and number of chips that are known: a row for each number of passes, a column for each mesh."""
    mine = {
        (case[4], case[3]): known[name(*case)]
        for case in cases()
        if case[:3] == (task, variant, chips) and name(*case) in known
    }
    meshes, passes = (list(dict.fromkeys(key[i] for key in mine)) for i in (1, 0))
    if not mine:
        return []
    lines = [f"| passes | {' | '.join(meshes)} | sent, GiB | fastest is bound by |", f"|{' --- |' * (len(meshes) + 3)}"]
    for count in sorted(passes):
        reports = [mine.get((count, mesh)) for mesh in meshes]
        best = min((r for r in reports if r), key=lambda r: r["slowest"])
        sent = " and ".join(f"{r['wire'] / 2**30:.3g}" if r else "?" for r in reports)
        lines.append(f"| {count} | {' | '.join(cell(r, r is best) for r in reports)} | {sent} | {best['bound']} |")
    some = next(case for case in cases() if case[:3] == (task, variant, chips))
    command = f"`python -m launch.plan {name(*some)}` and so on:"
    return [f"### {variant} on {chips} chips ({TARGETS[chips]})", command, "\n".join(lines)]


def cell(report: dict | None, best: bool) -> str:
    """Milliseconds of a step, if all that is sent overlaps with computing and if nothing does."""
    if report is None:
        return "?"
    text = f"{report['fastest'] * 1e3:,.0f} to {report['slowest'] * 1e3:,.0f} ms, MFU {report['mfu']:.0%}"
    text += "" if report["fits"] else ", does not fit"
    return f"**{text}**" if best else text


def plot(task: str, known: dict[str, dict]) -> bytes:
    """Of each size: what is sent for each unit of computing, against the number of passes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, variant in zip(figure.subplots(1, len(SIZES), sharey=True), SIZES, strict=True):
        for chips in TARGETS:
            for form, style in zip(MESHES, ("-", "--"), strict=True):
                mesh = form.format(n=chips, quarter=chips // 4)
                found = [(count, known.get(name(task, variant, chips, mesh, count))) for count in PASSES]
                points = [(count, network(r) / r["seconds"]["arithmetic"]) for count, r in found if r]
                axes.plot(*zip(*points, strict=True), style, marker="o", label=mesh) if points else None
        axes.set_title(variant)
        axes.set_xlabel("passes over each layer")
        axes.set_xticks(PASSES)
        axes.legend(*axes.get_legend_handles_labels(), fontsize="small")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("time of the network / time of arithmetic")
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def network(report: dict) -> float:
    return sum(each["seconds"] for each in report["traffic"])


INTRODUCTION = f"""
The same model with one to four passes over each layer, over 8, 64 and 256 chips (TPU v5p), planned by `launch.plan`
without any of them: {ROWS["train"]} rows of {LENGTH:,} tokens a chip in training (AdamW in float32, computed in
bfloat16, layers recomputed), {ROWS["prefill"]} row a chip for prompts, one picture each. Times go from "all that is
sent overlaps with computing" to "nothing does"; the best mesh by the latter is bold. `python -m launch.bench sharding`
makes this page anew, and the command over each table prints all there is to know of a strategy.
"""


FINDINGS = """
## What it shows

**With the parameters cut (fsdp), passes cost no communication.** The 7B model sends {fsdp_sent} GiB a step with 1, 2, 3
and 4 passes over 64 chips: a layer's weights are gathered once for all its passes, once more to recompute it, and the
gradients of all passes are summed on the chip before they are reduced. So the time of the network falls against that of
arithmetic: {fsdp_7b} (1.8B: {fsdp_1_8b}). With two passes, half the tokens a chip are enough for arithmetic to be the
bound.

**With the layers cut (tensor), every pass sends its activations**: {tensor_sent} GiB for the same, and the network's
share stays where it was, {tensor_7b}. Traversal never speaks for tensor parallelism, and where one pass just still
called for it, two may not. It remains what makes a model fit, or few rows fast.

**Memory grows by {memory_1_8b} (1.8B) and {memory_7b} GiB (7B) a pass** at these rows: while a layer is recomputed,
what its passes keep for the backward pass is there at once. Parameters, gradients and optimiser do not grow.
"""


PROMPTS = """
**Prompts speak for fsdp too.** With a row of {length:,} tokens a chip, its network takes {fsdp_7b} of the time of
arithmetic over 64 chips with 1, 2, 3 and 4 passes (1.8B: {fsdp_1_8b}). With tensor parallelism {tensor_sent} GiB
are sent, {tensor_7b} of arithmetic: activations with every pass, weights, cut over fsdp there too, once.
"""


def findings(known: dict[str, dict]) -> list[str]:
    """What the numbers on 64 chips say, of the tasks that are known."""
    told = [(FINDINGS, figures("train", known)), (PROMPTS, figures("prefill", known))]
    return [text.strip().format(**values) for text, values in told if values]


def figures(task: str, known: dict[str, dict]) -> dict[str, str | int]:
    """Those that the findings quote; none where a strategy is not known."""
    values = {"length": LENGTH}
    for kind, form in zip(("fsdp", "tensor"), MESHES, strict=True):
        for variant in SIZES:
            size = variant.removeprefix("trol_")
            reports = [known.get(name(task, variant, 64, form.format(n=64, quarter=16), n)) for n in PASSES]
            if None in reports:
                return {}
            parts = [network(r) / r["seconds"]["arithmetic"] for r in reports]
            values[f"{kind}_{size}"] = ", ".join(f"{part:.0%}" for part in parts)
            values[f"{kind}_sent"] = ", ".join(f"{r['wire'] / 2**30:.0f}" for r in reports)
            if kind == "fsdp":
                peaks = [r["memory"]["peak"] / 2**30 for r in reports]
                values[f"memory_{size}"] = f"{(peaks[-1] - peaks[0]) / (len(peaks) - 1):.1f}"
    return values
