"""Studies of traversal:

python -m launch.study --study=passes --seeds=5
    trains and compares the rows of configs/studies/STUDY.py, each with several seeds. All start from one tower, which
    is trained first where --tower names none, so they must be of one family. Started again it goes on where it was
    stopped; --root gets a report after each row.
python -m launch.study --gates --checkpoint=RUN [--data=DIR --limit=N]
    where a checkpoint looks twice: gates by layer, kind of token and task, and the words where they open most.
python -m launch.study --early_exit --checkpoint=RUN [--data=DIR --limit=N --thresholds=0,0.1]
    leaves out the second pass of layers whose mean gate is below a threshold: time of prompts against agreement.
"""

import importlib
import pkgutil
import shlex
import sys

from absl import flags

from launch import cli, model

STUDY = flags.DEFINE_string("study", None, "A file of configs/studies, as passes.")
TASK = flags.DEFINE_enum("task", "easy_vqa", ["easy_vqa", "shapes"], "Data; shapes is the harder one, drawn here.")
SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each row.", lower_bound=1)
ROWS = flags.DEFINE_list("rows", [], "Only these rows; the first is what the others are compared with.")
STEPS = flags.DEFINE_integer("steps", None, "Of each run, by default the quickstart's.", lower_bound=1)
LIMIT = flags.DEFINE_integer(
    "limit", None, "Ask the first N test questions only; of --gates and --early_exit, N samples drawn.", lower_bound=1
)
TOWER = flags.DEFINE_string("tower", None, "A run of `:tower` that all rows start from.")
ROOT = flags.DEFINE_string("root", None, "Folder of the study, by default runs/studies/STUDY-TASK.")
SMOKE = flags.DEFINE_bool("smoke", False, "A few steps and questions, and two seeds at most.")

GATES = flags.DEFINE_bool("gates", False, "Record where a checkpoint looks twice.")
EARLY_EXIT = flags.DEFINE_bool("early_exit", False, "Leave out second passes by their mean gate.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run, its checkpoints or one step.")
DATA = flags.DEFINE_string(
    "data", None, "Training data (files or prepared) or a folder like easy-vqa's; by default the run's, or easy-vqa."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder of the results, by default gates or early_exit in the run's.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Samples at a time; changes no gate and no answer.", lower_bound=1)
MIN_COUNT = flags.DEFINE_integer("min_count", 10, "List words seen so often.", lower_bound=1)
THRESHOLDS = flags.DEFINE_list(
    "thresholds", [f"{number / 20:g}" for number in range(20)], "Of a layer's mean gate, 0 to 1."
)
CALIBRATION = flags.DEFINE_integer("calibration", 256, "Other samples that tell the mean gates.", lower_bound=1)
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 32, "Length of the answers compared.", lower_bound=1)

TRAINING = "study", "task", "seeds", "rows", "steps", "tower", "root", "smoke"
MEASURING = "checkpoint", "data", "output", "batch_size", "weights", "cache", "traversal", "system", "mesh", "rules"
OWN = {
    "study": (*TRAINING, "limit"),
    "gates": (*MEASURING, "limit", "min_count"),
    "early_exit": (*MEASURING, "limit", "thresholds", "calibration", "max_new_tokens"),
}


def main(_):
    jobs = {"study": train, "gates": gates, "early_exit": early_exit}
    jobs[chosen()]()


def chosen() -> str:
    """The job that the flags name; UserError unless it is one, and the other flags are its."""
    from trol_jax.errors import UserError

    named = [name for name in OWN if flags.FLAGS[name].value]
    if len(named) != 1:
        raise UserError("give one of --study=NAME, --gates and --early_exit")
    ours = set().union(*OWN.values())
    if wrong := [name for name in sorted(ours - {*OWN[named[0]], *OWN}) if flags.FLAGS[name].present]:
        raise UserError(f"--{wrong[0]} cannot go with --{named[0]}")
    if named[0] != "study" and not CHECKPOINT.value:
        raise UserError(f"--{named[0]} needs --checkpoint=RUN")
    return named[0]


def command() -> str:
    return shlex.join(["python", "-m", "launch.study", *sys.argv[1:]])


# ---------------------------------------------------------------------- a checkpoint
def opened(name: str):
    """(answerer, samples, folder of the results, what is measured)."""
    from pathlib import Path

    from trol_jax import checkpoint, manifest, saved
    from trol_jax.evals.runner import run_directory, versions
    from trol_jax.infer import weights
    from trol_jax.infer.answer import Answerer
    from trol_jax.study.samples import open_samples

    step_dir = checkpoint.resolve(CHECKPOINT.value)
    settings = saved.read_settings(step_dir)
    samples = open_samples(DATA.value or (settings and settings.data.root) or None)
    answerer = Answerer.load(step_dir, layout=model.layout(), **model.options())
    output = Path(OUTPUT.value) if OUTPUT.value else run_directory(step_dir) / name
    how = model.options()
    changed = weights.named(how["weight_kind"], how["cache"], how["traversal"], how["system"])
    about = {"checkpoint": str(step_dir), "source": f"{manifest.identity(step_dir)}{changed}", "data": samples.root}
    about |= {"model": answerer.model.config.name, "versions": versions()}
    return answerer, samples, output, about


def gates():
    from trol_jax.study import gates_report
    from trol_jax.study.gates import record

    cli.keep_compiled()
    answerer, samples, output, about = opened("gates")
    found = record(answerer, samples, LIMIT.value, BATCH_SIZE.value)
    title = f"Where {about['model']} looks twice"
    config = answerer.model.config
    gates_report.write_report(output, title, command(), found, answerer.tokenizer, config, about, MIN_COUNT.value)
    print((output / gates_report.MARKDOWN).read_text())


def early_exit():
    from trol_jax.study import early_exit

    cli.keep_compiled()
    thresholds = early_exit.parsed(THRESHOLDS.value)
    answerer, samples, output, about = opened("early_exit")
    found = early_exit.measure(
        answerer, samples, thresholds, CALIBRATION.value, LIMIT.value or 500, BATCH_SIZE.value, MAX_NEW_TOKENS.value
    )
    early_exit.write_report(output, f"Early exit of {about['model']}", command(), found, about)
    print((output / early_exit.MARKDOWN).read_text())


# ---------------------------------------------------------------------- runs
def train():
    from pathlib import Path

    rows, tower, against = settings()
    from trol_jax.study import grid, report

    root = Path(ROOT.value or f"runs/studies/{STUDY.value}-{TASK.value}")
    cli.keep_compiled()
    rows, tower = prepared(rows, tower, root)
    seeds, limit = (min(SEEDS.value, 2), LIMIT.value or 50) if SMOKE.value else (SEEDS.value, LIMIT.value)
    guess = grid.guessed(next(iter(rows.values())).data.root or None, limit)
    results = []
    for result in grid.measure(rows, tower, root, seeds, limit):
        results.append(result)
        report.write_report(root, f"Study {STUDY.value} on {TASK.value}", command(), results, guess, against)
    print((root / report.MARKDOWN).read_text())


def settings():
    """(settings of each row, settings of the tower, which row is compared with which), typed."""
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

    return {row: read(row) for row in chosen}, read(chosen[0], "tower"), getattr(module, "AGAINST", None)


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
    cli.run(main, required=[])
