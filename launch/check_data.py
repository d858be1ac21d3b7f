"""Check data: python -m launch.check_data --root=DIR [--sources=…] [--sample=N] [--json=FILE] [--html=FILE]
python -m launch.check_data --benchmarks --root=DIR [--only=pope,mme] [--pictures=decode]

Looks at every record of every source: turns, picture marks, special tokens, answers, ids, lengths, pictures. What is
done is kept at the root until the check is complete, so that the same command goes on after a stop. Exit status 1 if
there are errors.
Of benchmarks it says how many questions there are, which rows are bad, what is missing and where it comes from.
"""

import json
import os
import sys
from pathlib import Path

from absl import flags

from launch import cli

ROOT = flags.DEFINE_string("root", None, "Data folder: the files and pictures of the sources.")
BENCHMARKS = flags.DEFINE_bool("benchmarks", False, "Check the benchmarks, not the training data.")
ONLY = flags.DEFINE_list("only", ["all"], "Of the benchmarks, as pope,mme.")
SOURCES = flags.DEFINE_list("sources", [], "These only, by commas; by default all.")
SAMPLE = flags.DEFINE_integer("sample", 0, "Records of each source, drawn at random; 0 = all.", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "Of the draw.")
PICTURES = flags.DEFINE_enum("pictures", "header", ["none", "header", "decode"], "How much of pictures is read.")
LENGTH = flags.DEFINE_integer(
    "max_length", None, "Characters of a sample, by default 8192; with --tokenizer tokens, 4096.", lower_bound=1
)
TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "A tokenizer.json, to measure lengths in tokens, with those of pictures."
)
STRICT = flags.DEFINE_bool("strict", False, "Exit status 1 for warnings too.")
PROCESSES = flags.DEFINE_integer("processes", 0, "That look; 0 = one a core.", lower_bound=0)
JOURNAL = flags.DEFINE_string("journal", None, 'File for what is done, instead of one at the root; "" = none.')
JSON = flags.DEFINE_string("json", "", "File for everything that was found.")
HTML = flags.DEFINE_string("html", "", "File for a page with histograms and examples.")

ONLY_TRAINING = (
    "sources",
    "sample",
    "seed",
    "max_length",
    "tokenizer",
    "strict",
    "processes",
    "journal",
    "json",
    "html",
)


def main(_):
    from trol_jax.errors import UserError

    if not os.path.isdir(ROOT.value):
        raise UserError(f"--root: {ROOT.value} is no folder")
    given = {name for name in flags.FLAGS if flags.FLAGS[name].present}
    of_others = ONLY_TRAINING if BENCHMARKS.value else ("only",)
    if wrong := [f"--{name}" for name in of_others if name in given]:
        raise UserError(f"{wrong[0]} cannot go with{'' if BENCHMARKS.value else 'out'} --benchmarks")
    sys.exit(0 if (benchmarks if BENCHMARKS.value else training)() else 1)


def benchmarks() -> bool:
    """Whether all is sound."""
    from trol_jax.evals.check import check

    sound = True
    for found in check(ROOT.value, ONLY.value, PICTURES.value == "decode"):
        print(found, flush=True)
        sound &= found.sound
    return sound


def training() -> bool:
    """Whether all is sound."""
    from trol_jax import journal
    from trol_jax.data import check_report, check_run, prepared, sources
    from trol_jax.data.check import ERROR, WARNING, Rules
    from trol_jax.errors import UserError

    root = ROOT.value
    names = list(dict.fromkeys(SOURCES.value or sources.SOURCES))
    if unknown := [name for name in names if name not in sources.SOURCES]:
        raise UserError(f"--sources: {unknown[0]!r} is no source; choose from {', '.join(sources.SOURCES)}")
    files = [os.path.join(root, sources.SOURCES[name].file) for name in names]
    if not any(map(os.path.exists, files)) and (folder := prepared.find(root)):
        raise UserError(
            f"--root: {folder} is prepared data; python -m launch.prepare_data --verify --output={root} looks at it, "
            "--root takes the files and pictures that it was made from"
        )
    if TOKENIZER.value and not os.path.isfile(TOKENIZER.value):
        raise UserError(f"--tokenizer: {TOKENIZER.value} is no file")
    rules = Rules(PICTURES.value, LENGTH.value or (4096 if TOKENIZER.value else 8192), TOKENIZER.value)
    done = JOURNAL.value
    if done is None:
        done = check_run.journal_of(root, names, rules, SAMPLE.value, SEED.value)
    reports = check_run.check(
        root, names, rules, sample=SAMPLE.value, seed=SEED.value, processes=PROCESSES.value or os.cpu_count(),
        journal=done,
    )  # fmt: skip
    print(check_report.table(reports))
    if JSON.value:
        journal.write(Path(JSON.value), json.dumps(check_report.to_json(reports), indent=1).encode())
    if HTML.value:
        samples = check_run.first_samples(root, reports)
        unit = "tokens" if TOKENIZER.value else "characters"
        journal.write(
            Path(HTML.value), check_report.page(reports, samples, root, unit).encode(errors="backslashreplace")
        )
    if done:
        Path(done).unlink(missing_ok=True)
    levels = (ERROR, WARNING) if STRICT.value else (ERROR,)
    return not any(report.found.count(level) for report in reports for level in levels)


if __name__ == "__main__":
    cli.run(main, required=["root"])
