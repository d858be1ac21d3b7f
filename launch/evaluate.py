"""Measure a run on the test questions: python -m launch.evaluate --checkpoint=runs/quickstart [--limit=N]"""

from absl import flags

from launch import cli, model

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run, its checkpoints or one step.")
OUTPUT = flags.DEFINE_string("output", None, "Directory of the results; by default that of the run.")
LIMIT = flags.DEFINE_integer(
    "limit", None, "Ask the first N questions only; a measurement of more of them stays as it is.", lower_bound=1
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 250, "Questions at a time; changes no answer.", lower_bound=1)
ROOT = flags.DEFINE_string("root", None, "Data folder with test/; by default the one the run was trained with.")


def main(_):
    from trol_jax.evals import runner

    cli.keep_compiled()
    options = (
        dict(limit=LIMIT.value, batch_size=BATCH_SIZE.value, root=ROOT.value, layout=model.layout()) | model.options()
    )
    result = runner.evaluate(CHECKPOINT.value, OUTPUT.value, **options)
    print(runner.report(result, OUTPUT.value))


if __name__ == "__main__":
    cli.run(main, required=["checkpoint"])
