"""The version tells which code answered and scored."""

import shutil

import pytest

import trol_jax
from trol_jax import version


@pytest.mark.parametrize("sources", [version.ANSWERING, version.SCORING])
def test_every_pattern_is_of_some_file(sources):
    assert all(list(version.HERE.glob(pattern)) for pattern in sources)
    assert version.of(sources).startswith(f"{trol_jax.__version__}+")


@pytest.mark.parametrize(
    ("file", "answers", "scores"),
    [
        ("models/decoder.py", True, False),
        ("infer/beam.py", True, False),
        ("evals/ask.py", True, True),
        ("evals/benchmarks/pope.py", False, True),
        ("train/loop.py", False, False),
    ],
)
def test_it_changes_with_the_code_that_decides(tmp_path, file, answers, scores):
    def versions(name):
        shutil.copytree(version.HERE, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        if name == "changed":
            (tmp_path / name / file).write_text((tmp_path / name / file).read_text() + "\nx = 1\n")
        return [version.of(sources, tmp_path / name) for sources in (version.ANSWERING, version.SCORING)]

    before, after = versions("same"), versions("changed")
    assert before == [version.of(sources) for sources in (version.ANSWERING, version.SCORING)]
    assert [old != new for old, new in zip(before, after, strict=True)] == [answers, scores]
