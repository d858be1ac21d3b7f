"""Compare ways to lay a model over devices, without any:
python -m launch.plan --variant=trol_7b --mesh=fsdp=16 --batch=64 --target=v5e-16 [--rules=all] [--remat=all]
"""

import dataclasses
import itertools
import json
import os
import pathlib
import sys

from absl import flags

from launch import cli

VARIANT = flags.DEFINE_string("variant", None, "Size of the model, as trol_7b.")
TARGET = flags.DEFINE_string("target", None, "Chips: v5e-16, v6e-256, v5p-128 (64 chips), h100x8, a100x8.")
MESH = flags.DEFINE_multi_string("mesh", None, "Devices by axis, as data=2,fsdp=-1 (-1: the rest). May be repeated.")
TASK = flags.DEFINE_string("task", "train", "train, qlora, prefill or decode.")
RULES = flags.DEFINE_list("rules", ["fsdp"], "Rule sets, by commas, or all.")
REMAT = flags.DEFINE_list("remat", ["layer"], "What training recomputes: none, layer, dots, by commas, or all.")
BATCH = flags.DEFINE_integer("batch", None, "Rows of a step, over all devices.")
LENGTH = flags.DEFINE_integer("length", 2048, "Tokens of a row, its pictures' included; of decode: slots of the cache.")
PICTURES = flags.DEFINE_integer("pictures", 1, "Pictures (or tiles) of a row.")
ACCUMULATION = flags.DEFINE_integer("accumulation", 1, "Micro-batches of a step of training.")
ATTENTION = flags.DEFINE_string(
    "attention", "xla", "Of training: xla, or flash, of which only --compile tells the memory."
)
PASSES = flags.DEFINE_integer("passes", 2, "Passes over each layer.")
COMPILE = flags.DEFINE_bool("compile", False, "Also ask the target's own compiler whether it fits: minutes.")
DETAILS = flags.DEFINE_integer("details", 1, "Of how many strategies all is told, the best first.")
JSON = flags.DEFINE_string("json", "", "File for everything, written anew after each strategy.")
HTML = flags.DEFINE_string("html", "", "File for a page with charts; they lie beside it as PNG.")


def main(_):
    from trol_jax.errors import UserError
    from trol_jax.sharding import plan, report
    from trol_jax.sharding.rules import RULES as SETS
    from trol_jax.sharding.strategy import REMATS, Strategy, check
    from trol_jax.sharding.targets import get_target

    target = get_target(TARGET.value)
    every = lambda given, known: list(known) if given == ["all"] else given  # noqa: E731
    trains = TASK.value in ("train", "qlora")
    remats = every(REMAT.value, REMATS) if trains else ["none"]
    ways = list(itertools.product(MESH.value, every(RULES.value, SETS), remats))
    strategies = [
        Strategy(
            VARIANT.value, TASK.value, mesh, rules, BATCH.value, LENGTH.value, PICTURES.value, remat,
            ACCUMULATION.value, PASSES.value, ATTENTION.value,
        )
        for mesh, rules, remat in ways
    ]  # fmt: skip
    for each in strategies:
        check(each)
    check_files()
    plan.prepare(target.devices)
    reports = []
    for number, s in enumerate(strategies, 1):
        try:
            found = plan.plan(s, target)
            found = compiled(found, target) if COMPILE.value else found
        except UserError as error:
            if len(strategies) == 1:
                raise
            print(f"left out, {s.mesh} {s.rules}: {error}", flush=True)
            continue
        except Exception as error:  # of one strategy, such as a fault of the compiler: the others are worth having
            if len(strategies) == 1:
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"left out, {s.mesh} {s.rules} {s.remat}: a fault of the program, {reason}", flush=True)
            continue
        reports = plan.ranked([*reports, found])
        if JSON.value:
            write(JSON.value, json.dumps([*map(report.to_json, reports)], indent=1).encode())
        said = f"{'fits' if found.fits else 'does not fit'}, {found.fastest * 1e3:.3g} to {found.slowest * 1e3:.3g} ms"
        said = f"{s.mesh} {s.rules} {s.remat}: {said}; planned in {found.took['seconds']:.0f} s"
        print(f"{number} of {len(strategies)}: {said}", file=sys.stderr, flush=True)
    if not reports:
        raise UserError("no strategy can be laid over these devices; see above")
    print(report.table(reports))
    print("", *map(report.details, reports[: DETAILS.value]), sep="\n")
    if len(reports) > 1:
        print("", report.difference(*reports[:2]), sep="\n")
    print("", plan.LEFT_OUT, sep="\n")
    if HTML.value:
        write(HTML.value, report.page(reports).encode())
        write(charts(), report.charts(reports))


def charts() -> str:
    return str(pathlib.Path(HTML.value).with_suffix(".png"))


def check_files() -> None:
    """UserError for files that cannot be written, before the minutes that planning takes."""
    from trol_jax.errors import UserError

    if HTML.value and charts() == HTML.value:
        raise UserError(f"--html={HTML.value} is the name of its charts; give one that ends in .html")
    for name, value in (("json", JSON.value), ("html", HTML.value)):
        folder = pathlib.Path(value).parent
        if value and not (folder.is_dir() and os.access(folder, os.W_OK) and not os.path.isdir(value)):
            raise UserError(f"--{name}={value} cannot be written; give a file in a folder that is there")


def compiled(report, target):
    """With what the target's compiler says; as it is, where that is not installed."""
    from trol_jax.errors import UserError
    from trol_jax.sharding.verdict import verdict

    try:
        return dataclasses.replace(report, compiled=verdict(report.strategy, target))
    except UserError as error:
        print(f"not compiled for {target.name}: {error}", flush=True)
        return report


def write(name: str, content: bytes) -> None:
    part = f"{name}.part"
    pathlib.Path(part).write_bytes(content)
    os.replace(part, name)


if __name__ == "__main__":
    cli.run(main, required=["variant", "target", "mesh", "batch"])
