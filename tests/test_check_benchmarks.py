"""What is said of a folder with benchmarks."""

import json
import shutil

import pytest
from PIL import Image

from programs import Program, launch
from test_benchmarks import ROOT
from trol_jax.errors import UserError
from trol_jax.evals.benchmarks import BENCHMARKS
from trol_jax.evals.check import SOURCES, check
from trol_jax.evals.files import Root

FILE = "POPE/coco_pope_random.json"


@pytest.fixture
def root(tmp_path):
    """POPE with its pictures; one of them is damaged."""
    shutil.copytree(ROOT / "POPE", tmp_path / "POPE")
    for item in BENCHMARKS["pope"].read(Root(ROOT, pictures=False)):
        (tmp_path / item.images[0]).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / item.images[0])
    (tmp_path / item.images[0]).write_bytes(b"no picture")
    return tmp_path


def test_every_benchmark_comes_from_somewhere():
    assert {*SOURCES} == {*BENCHMARKS}


def test_sound_rows_are_counted_beside_what_is_published(root):
    (found,) = check(root, ["pope"])
    assert found.sound and str(found) == "pope            24 questions of 9,000 that are published"


def test_bad_rows_and_pictures_that_are_missing_are_named(root):
    lines = (root / FILE).read_text().splitlines()
    broken = {**json.loads(lines[1]), "label": "perhaps"}
    (root / FILE).write_text("\n".join([lines[0], json.dumps(broken), *lines[2:]]))
    (found,) = check(root, ["pope"])
    assert (found.questions, [*found.bad]) == (23, [f"{FILE}, row 2: \"label\" is 'perhaps', must be yes or no"])
    assert not found.sound and str(found).endswith(f"; bad rows: 1, the first: {found.bad[0]}")
    (root / "coco2014/val2014" / json.loads(lines[0])["image"]).unlink()
    (found,) = check(root, ["pope"])
    assert any(each.startswith(f"{FILE}, row 1: the picture ") for each in found.bad)


def test_damaged_pictures_are_found_by_decoding(root):
    (found,) = check(root, ["pope"], decode=True)
    assert found.bad and all(", row " in each and "coco2014/val2014" in each for each in found.bad)
    (found,) = check(ROOT, ["mmstar"], decode=True)
    assert found.sound and found.questions > 0


def test_parts_that_are_missing_are_named(tmp_path):
    shutil.copytree(ROOT / "VisualWebBench", tmp_path / "VisualWebBench", ignore=shutil.ignore_patterns("webqa"))
    shutil.copytree(ROOT / "MMMU", tmp_path / "MMMU")
    whole, less, mmmu = *check(ROOT, ["visualwebbench"]), *check(tmp_path, ["visualwebbench", "mmmu"])
    assert whole.sound and less.absent == ["webqa"] and len(mmmu.absent) == 30 - 4
    assert not less.sound and f"; missing: webqa; the whole is from {SOURCES['visualwebbench'][1]}" in str(less)


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        next(check(tmp_path / "nowhere"))


def test_the_program_says_what_is_missing_and_where_it_comes_from(root):
    status, out, err = Program(launch("check_data"), "--benchmarks", f"--root={root}").wait()
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (status, err, {*lines}) == (1, "", {*BENCHMARKS} - {"easy_vqa"})
    assert lines["gqa"].startswith(f"missing: {root}/gqa/") and "https://cs.stanford.edu" in lines["gqa"]
    assert "launch.prepare_data --benchmarks" in lines["ai2d"]
    status, out, _ = Program(launch("check_data"), "--benchmarks", f"--root={root}", "--only=pope").wait()
    assert status == 0 and len(out.splitlines()) == 1
    status, _, err = Program(launch("check_data"), f"--root={root}", "--benchmarks", "--strict").wait()
    assert (status, err) == (2, "error: --strict cannot go with --benchmarks\n")
