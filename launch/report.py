"""Results as the paper's tables and figures, runs compared with each other, and their samples:

python -m launch.report RUN_DIR [NAME=RUN_DIR ...] --output=DIR

A RUN_DIR is what `launch.evaluate --benchmarks` wrote with --output; the first is what the others are compared with.
"""

from pathlib import Path

from absl import flags

from launch import cli

OUTPUT = flags.DEFINE_string("output", None, "Directory of the report: report.html, report.md, three pictures.")
ROOT = flags.DEFINE_string("root", None, "Folder of the benchmarks, for pictures; by default that of each result.")


def main(argv):
    from trol_jax.evals.report import write

    root = Path(ROOT.value) if ROOT.value else None
    for file in write.report(argv[1:], Path(OUTPUT.value), root):
        print(file)


if __name__ == "__main__":
    cli.run(main, required=["output"], arguments=True)
