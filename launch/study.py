"""Train and compare the rows of a study, each with several seeds: python -m launch.study --study=passes --seeds=5

The rows are those of configs/studies/STUDY.py. All start from one tower, which is trained first where --tower names
none, so they must be of one family. Started again it goes on where it was stopped; --root gets a report after each row.
"""

import importlib
import pkgutil
import shlex
import sys

from absl import flags

from launch import cli

STUDY = flags.DEFINE_string("study", None, "A file of configs/studies, as passes.")
TASK = flags.DEFINE_enum("task", "easy_vqa", ["easy_vqa", "shapes"], "Data; shapes is the harder one, drawn here.")
SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each row.", lower_bound=1)
ROWS = flags.DEFINE_list("rows", [], "Only these rows; the first is what the others are compared with.")
STEPS = flags.DEFINE_integer("steps", None, "Of each run, by default the quickstart's.", lower_bound=1)
LIMIT = flags.DEFINE_integer("limit", None, "Ask the first N test questions only.", lower_bound=1)
TOWER = flags.DEFINE_string("tower", None, "A run of `:tower` that all rows start from.")
ROOT = flags.DEFINE_string("root", None, "Folder of the study, by default runs/studies/STUDY-TASK.")
SMOKE = flags.DEFINE_bool("smoke", False, "A few steps and questions, and two seeds at most.")


def main(_):
    from pathlib import Path

    rows, tower = settings()
    from trol_jax.study import grid, report

    root = Path(ROOT.value or f"runs/studies/{STUDY.value}-{TASK.value}")
    cli.keep_compiled()
    rows, tower = prepared(rows, tower, root)
    seeds, limit = (min(SEEDS.value, 2), LIMIT.value or 50) if SMOKE.value else (SEEDS.value, LIMIT.value)
    command = shlex.join(["python", "-m", "launch.study", *sys.argv[1:]])
    guess = grid.guessed(next(iter(rows.values())).data.root or None, limit)
    results = []
    for result in grid.measure(rows, tower, root, seeds, limit):
        results.append(result)
        report.write_report(root, f"Study {STUDY.value} on {TASK.value}", command, results, guess)
    print((root / report.MARKDOWN).read_text())


def settings():
    """(settings of each row, settings of the tower), typed."""
    from configs import studies
    from trol_jax.errors import UserError

    known = [each.name for each in pkgutil.iter_modules(studies.__path__)]
    if STUDY.value not in known:
        raise UserError(f"study {STUDY.value!r} is not known; choose one of {', '.join(known)}")
    module = importlib.import_module(f"configs.studies.{STUDY.value}")
    if unknown := [name for name in ROWS.value if name not in module.ROWS]:
        raise UserError(f"row {unknown[0]!r} is not known; choose from {', '.join(module.ROWS)}")
    from trol_jax.train.config import from_dict

    chosen = ROWS.value or list(module.ROWS)
    words = ["shapes"] * (TASK.value == "shapes") + ["smoke"] * SMOKE.value

    def read(row, *more):
        raw = module.get_config(",".join([row, *words, *more]))
        if STEPS.value and not more:
            raw.steps = STEPS.value
        return from_dict(raw.to_dict())

    return {row: read(row) for row in chosen}, read(chosen[0], "tower")


def prepared(rows, tower, root):
    """Draws the pictures and trains the tower where they are not there yet: (rows, folder of the tower)."""
    import dataclasses
    from pathlib import Path

    from trol_jax.data.shapes import write_shapes
    from trol_jax.study import grid

    if TASK.value == "shapes":
        data = root / "data"
        if not data.exists():
            write_shapes(data)
        placed = lambda c: dataclasses.replace(c, data=dataclasses.replace(c.data, root=str(data)))  # noqa: E731
        rows, tower = {name: placed(config) for name, config in rows.items()}, placed(tower)
    if TOWER.value:
        return rows, Path(TOWER.value)
    grid.train(tower, root / "tower")
    return rows, root / "tower"


if __name__ == "__main__":
    cli.run(main, required=["study"])
