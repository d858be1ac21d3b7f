"""Measure a run on the test questions: python -m launch.evaluate --checkpoint=runs/quickstart [--limit=N]

Or score answers in files: python -m launch.evaluate --benchmarks=pope,mme --root=DIR --answers=DIR --output=DIR
"""

from absl import flags

from launch import cli, model

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run, its checkpoints or one step.")
OUTPUT = flags.DEFINE_string("output", None, "Directory of the results; by default that of the run.")
LIMIT = flags.DEFINE_integer(
    "limit", None, "Ask the first N questions only; a measurement of more of them stays as it is.", lower_bound=1
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 250, "Questions at a time; changes no answer.", lower_bound=1)
ROOT = flags.DEFINE_string(
    "root", None, "Data folder with test/, by default the one the run was trained with; or that of the benchmarks."
)
BENCHMARKS = flags.DEFINE_list("benchmarks", None, "Names, as pope,mme; all = those that have answers.")
ANSWERS = flags.DEFINE_string("answers", None, "Folder with the answers, <benchmark>.jsonl.")
SCORING = flags.DEFINE_enum(
    "scoring", "trol", ["trol", "standard"], "As the original computes it, or as each benchmark defines it."
)
BAD_ROWS = flags.DEFINE_enum(
    "bad_rows", "fail", ["fail", "skip"], "What cannot be used stops its benchmark, or is left out and counted."
)

CHECK_PICTURES = flags.DEFINE_bool("check_pictures", False, "A picture that cannot be read makes its row a bad one.")

ASKING = ("checkpoint", "limit", "batch_size", "weights", "cache")
SCORED = ("answers", "scoring", "bad_rows", "check_pictures")


def main(_):
    from trol_jax.errors import UserError

    given = {name for name in flags.FLAGS if flags.FLAGS[name].present}
    if BENCHMARKS.value is not None:
        refuse(given, ASKING, "--benchmarks, which scores answers that lie in files")
        for name in ("benchmarks", "root", "answers", "output"):
            if not flags.FLAGS[name].value:
                raise UserError(f"--{name} is missing; --benchmarks needs --root, --answers and --output")
        from trol_jax.evals import score

        options = dict(scoring=SCORING.value, bad_rows=BAD_ROWS.value, pictures=CHECK_PICTURES.value)
        return score.run(score.score(ROOT.value, BENCHMARKS.value, ANSWERS.value, OUTPUT.value, **options))
    refuse(given, SCORED, "--checkpoint alone; they belong to --benchmarks")
    if not CHECKPOINT.value:
        raise UserError("give --checkpoint to measure a run, or --benchmarks to score answers")
    from trol_jax.evals import runner

    cli.keep_compiled()
    options = dict(limit=LIMIT.value, batch_size=BATCH_SIZE.value, root=ROOT.value, layout=model.layout())
    print(runner.report(runner.evaluate(CHECKPOINT.value, OUTPUT.value, **options, **model.options()), OUTPUT.value))


def refuse(given, names, why: str) -> None:
    from trol_jax.errors import UserError

    if wrong := [f"--{name}" for name in names if name in given]:
        raise UserError(f"{', '.join(wrong)} cannot go with {why}")


if __name__ == "__main__":
    cli.run(main, required=[])
