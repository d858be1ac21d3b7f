"""Prepare training data: python -m launch.prepare_data --root=DIR --output=DIR

Writes the sources once as a dataset of TensorFlow Datasets, texts and pictures together, from which training reads the
same samples in the same order (--config.data.root=OUTPUT). The same command goes on where it was stopped.
`--demo` writes a miniature of all eleven sources, in the real formats and layout, to try everything with; `--shapes`
draws pictures of several shapes, with questions harder than easy-vqa's, for `--config.data.root=DIR`.
`--benchmarks` makes the question files that are not distributed as the original takes them: AI2D, MME, TextVQA.
"""

import os

from absl import flags

from launch import cli

ROOT = flags.DEFINE_string("root", None, "Data folder: the files and pictures of the sources. New, or empty.")
DEMO = flags.DEFINE_bool("demo", False, "Write a miniature of all sources to --root.")
SHAPES = flags.DEFINE_bool("shapes", False, "Draw pictures of several shapes, with questions that take steps.")
SEED = flags.DEFINE_integer("seed", 0, "Of --shapes.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for what is made; of --benchmarks by default --root.")
BENCHMARKS = flags.DEFINE_bool("benchmarks", False, "Make question files of benchmarks from what lies in --root.")
SOURCES = flags.DEFINE_list("sources", [], "Names of sources, separated by commas; by default all.")
PICTURES = flags.DEFINE_enum("pictures", "keep", ["keep", "jpeg"], "Picture files as they are, or all as JPEG.")
BAD = flags.DEFINE_enum("bad", "fail", ["fail", "skip"], "What becomes of samples that cannot be read.")
PROCESSES = flags.DEFINE_integer("processes", os.cpu_count(), "Processes that read and write.", lower_bound=1)
SHARD_ROWS = flags.DEFINE_integer("shard_rows", 8192, "Rows of a source in each file that is written.", lower_bound=1)
VERIFY = flags.DEFINE_bool("verify", False, "Compare what lies in --output with its checksums.")


def main(_):
    from trol_jax.errors import UserError

    # Job: what it does, flags that it needs.
    jobs = {
        "demo": (demo, ["root"]),
        "shapes": (shapes, ["root"]),
        "benchmarks": (benchmarks, ["root"]),
        "verify": (verify, ["output"]),
    }
    chosen = [name for name in jobs if flags.FLAGS[name].value]
    if len(chosen) > 1:
        raise UserError(f"--{chosen[0]} and --{chosen[1]} are two things to do; choose one")
    if OUTPUT.value and chosen in (["demo"], ["shapes"]):
        raise UserError(f"--output cannot go with --{chosen[0]}, which writes to --root")
    job, needs = jobs[chosen[0]] if chosen else (prepare, ["root", "output"])
    for name in needs:
        if not flags.FLAGS[name].value:
            raise UserError(f"--{name} is missing; prepare with --root and --output, or try --demo --root=DIR")
    job()


def shapes() -> None:
    from trol_jax.data.shapes import write_shapes

    for split, questions in write_shapes(ROOT.value, SEED.value).items():
        print(f"{split:20} {questions:6,} questions")
    print(f"written to {ROOT.value}")


def demo() -> None:
    from trol_jax.data.demo import write_demo
    from trol_jax.data.sources import open_sources

    root = write_demo(ROOT.value)
    for name, source in open_sources(root).items():
        print(f"{name:20} {len(source):3} samples  {source.spec.file}")
    print(f"written to {root}")


def prepare():
    from trol_jax.data import prepare, prepared
    from trol_jax.data.sources import open_sources
    from trol_jax.errors import one_line

    before = prepared.find(OUTPUT.value)
    lines = prepare.prepare(
        open_sources(ROOT.value, SOURCES.value or None), OUTPUT.value,
        pictures=PICTURES.value, bad=BAD.value, shard_rows=SHARD_ROWS.value, processes=PROCESSES.value,
    )  # fmt: skip
    folder = prepared.find(OUTPUT.value)
    for name, source in prepared.open_prepared(folder).items():
        print(f"{name:20} {len(source):9,} samples in {len(source.shards)} shards")
    for problem in [problem for line in lines for problem in line["named"]]:
        print(f"left out: {one_line(problem)}")
    if left_out := sum(line["left_out"] for line in lines):
        print(f"{left_out:,} samples left out")
    print(f"{sum(line['bytes'] for line in lines) / 1e9:.2f} GB in {folder}")
    if before == folder:
        print(f"it was prepared before, and nothing was read now; remove {folder} to prepare it again")


def benchmarks() -> None:
    from trol_jax.errors import UserError
    from trol_jax.evals.prepare import prepare

    failed = []
    for file, said in prepare(ROOT.value, OUTPUT.value or ROOT.value):
        if isinstance(said, UserError):
            failed.append(f"{file} cannot be made: {said}")
        else:
            print(f"{file}: {said}")
    if failed:
        raise UserError(" | ".join(failed))


def verify():
    from trol_jax.data import prepared, shards
    from trol_jax.errors import UserError

    folder = prepared.find(OUTPUT.value)
    if folder is None:
        raise UserError(f"{OUTPUT.value} holds no prepared data")
    shards.verify(folder)
    print(f"{folder}: every shard is as it was written")


if __name__ == "__main__":
    cli.run(main, required=[])
