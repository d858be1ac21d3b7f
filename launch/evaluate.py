"""Measure a run on easy-VQA, on the published benchmarks, or score answers that lie in files:

python -m launch.evaluate --checkpoint=runs/quickstart [--limit=N]
python -m launch.evaluate --benchmarks=pope,mme --root=DIR --output=DIR --checkpoint=RUN [--limit=N --offset=N]
python -m launch.evaluate --benchmarks=pope,mme --root=DIR --output=DIR --answers=DIR

The second may run as several processes (--distributed, as launch.train), which share the questions: each has the whole
model on its own devices, and all see the same folders.
"""

from pathlib import Path

from absl import flags

from launch import cli, model, processes

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run, its checkpoints or one step.")
OUTPUT = flags.DEFINE_string("output", None, "Directory of the results; by default that of the run.")
LIMIT = flags.DEFINE_integer(
    "limit", None, "Ask the first N questions only; a result of more of them stays as it is.", lower_bound=1
)
OFFSET = flags.DEFINE_integer("offset", 0, "Of a benchmark, leave out the first N questions.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Questions at a time, by default 250, or 8 of a benchmark; changes no answer.", lower_bound=1
)
BEAMS = flags.DEFINE_integer("beams", 5, "Search a benchmark's answers with so many candidates.", lower_bound=1)
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "Length of an answer, by default the original's for the benchmark.", lower_bound=1
)
ROOT = flags.DEFINE_string(
    "root", None, "Data folder with test/, by default the one the run was trained with; or that of the benchmarks."
)
BENCHMARKS = flags.DEFINE_list(
    "benchmarks", None, "Names, as pope,mme or easy_vqa; all = all that are published, or those in --answers."
)
ANSWERS = flags.DEFINE_string("answers", None, "Folder with the answers, <benchmark>.jsonl.")
SCORING = flags.DEFINE_enum(
    "scoring", "trol", ["trol", "standard"], "As the original computes it, or as each benchmark defines it."
)
BAD_ROWS = flags.DEFINE_enum(
    "bad_rows", "fail", ["fail", "skip"], "What cannot be used stops its benchmark, or is left out and counted."
)

JUDGE = flags.DEFINE_string(
    "judge", "none", "Who scores free answers: none, a file of replies, or the address of an OpenAI-compatible server."
)
JUDGE_MODEL = flags.DEFINE_string("judge_model", None, "The model that judges; its key is in OPENAI_API_KEY.")
JUDGE_PRICES = flags.DEFINE_list("judge_prices", [], "Dollars for a million tokens of prompts, and of replies.")
SUBMISSION = flags.DEFINE_bool("submission", False, "Also write what servers and the authors' scorers take.")
CHECK_PICTURES = flags.DEFINE_bool("check_pictures", False, "A picture that is not there makes its row a bad one.")

SEVERAL = ("distributed", "coordinator", "num_processes", "process_id")
ASKING = (
    *("checkpoint", "limit", "offset", "batch_size", "beams", "max_new_tokens"),
    *("weights", "cache", "traversal", "system", "mesh", "rules"),
    *SEVERAL,
)
FILES = ("answers", "check_pictures")
PUBLISHED = (
    *("answers", "scoring", "bad_rows", "check_pictures", "offset", "beams", "max_new_tokens"),
    *("judge", "judge_model", "judge_prices", "submission"),
    *SEVERAL,
)


def main(_):
    from trol_jax.errors import UserError

    given = {name for name in flags.FLAGS if flags.FLAGS[name].present}
    if BENCHMARKS.value is not None:
        return published(given)
    refuse(given, PUBLISHED, "--checkpoint alone; they belong to --benchmarks")
    if not CHECKPOINT.value:
        raise UserError("give --checkpoint to measure a run, or --benchmarks to score answers")
    from trol_jax.evals import runner

    cli.keep_compiled()
    options = dict(limit=LIMIT.value, batch_size=BATCH_SIZE.value or 250, root=ROOT.value, layout=model.layout())
    print(runner.report(runner.evaluate(CHECKPOINT.value, OUTPUT.value, **options, **model.options()), OUTPUT.value))


def published(given) -> None:
    from trol_jax.errors import UserError
    from trol_jax.evals import judges, score

    asks = CHECKPOINT.value is not None
    refuse(given, FILES if asks else ASKING, "--checkpoint" if asks else "--answers, which lie in files")
    for name in ("benchmarks", "root", "output", "checkpoint" if asks else "answers"):
        if not flags.FLAGS[name].value:
            raise UserError(f"--{name} is missing; --benchmarks needs --root, --output and --checkpoint or --answers")
    judge = judges.make(JUDGE.value, JUDGE_MODEL.value, Path(OUTPUT.value, "judge.jsonl"), JUDGE_PRICES.value)
    options = dict(scoring=SCORING.value, bad_rows=BAD_ROWS.value, judge=judge, submission=SUBMISSION.value)
    if not asks:
        options |= dict(pictures=CHECK_PICTURES.value)
        return score.run(score.score(ROOT.value, BENCHMARKS.value, ANSWERS.value, OUTPUT.value, **options))
    from trol_jax.evals import ask
    from trol_jax.sharding import hosts

    processes.connect()
    cli.keep_compiled()
    options |= dict(limit=LIMIT.value, offset=OFFSET.value, beams=BEAMS.value, batch_size=BATCH_SIZE.value or 8)
    options |= dict(max_new_tokens=MAX_NEW_TOKENS.value, layout=model.layout()) | model.options()
    with hosts.explained():
        score.run(asked(ask.evaluate(CHECKPOINT.value, BENCHMARKS.value, ROOT.value, OUTPUT.value, **options)))


def asked(results):
    """The results, and then the other processes may go: one that found something wrong ends after them."""
    yield from results
    processes.leave()


def refuse(given, names, why: str) -> None:
    from trol_jax.errors import UserError

    if wrong := [f"--{name}" for name in names if name in given]:
        raise UserError(f"{', '.join(wrong)} cannot go with {why}")


if __name__ == "__main__":
    cli.run(main, required=[])
