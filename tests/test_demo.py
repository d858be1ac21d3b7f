"""The miniature of the mixture: all sources in their formats, the same each time, with what readers must cope with."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trol_jax.data import demo
from trol_jax.data.demo import write_demo
from trol_jax.data.easy_vqa import EasyVQA
from trol_jax.data.images import load_image
from trol_jax.data.paths import resolve
from trol_jax.data.sources import IMAGE, SOURCES, open_sources
from trol_jax.errors import UserError

KEPT = {
    "sharegpt4v_caption": (5, 6), "sharegpt4v_instruct": (12, 12), "allava_text": (4, 4), "minigemini": (4, 7),
    "docdownstream": (11, 11), "docreason": (3, 3), "gllava_align": (3, 3), "gllava_qa": (4, 4), "mathvision": (3, 3),
    "mathinstruct": (6, 6), "mathplus": (6, 6),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo") / "root")


def tree(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


def test_it_is_the_same_each_time(tmp_path):
    first, second = (tree(write_demo(tmp_path / name)) for name in "ab")
    assert first == second and len(first) > 50
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_all_sources_are_read_and_filtered(root):
    sources = open_sources(root)
    assert {name: (len(source), source.records.total) for name, source in sources.items()} == KEPT
    samples = [source[i] for source in sources.values() for i in range(len(source))]
    for sample in samples:
        roles = [role for role, _ in sample.turns]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(text.strip() for _, text in sample.turns)
        assert sum(text.count(IMAGE) for role, text in sample.turns if role == "user") == len(sample.pictures)
        for picture in sample.pictures:
            picture = picture if isinstance(picture, bytes) else resolve(root, picture)
            assert load_image(picture).shape == (64, 64, 3)
    assert {len(sample.pictures) for sample in samples} == {0, 1, 2}
    assert {len(sample.turns) for sample in samples} == {2, 4, 6}
    assert sum(isinstance(picture, bytes) for sample in samples for picture in sample.pictures) == 3


def test_what_readers_must_cope_with_is_there(root):
    with Image.open(os.path.join(root, "ocr_vqa/images/1558700000.jpg")) as image:
        assert image.format == "GIF"
    turned = os.path.join(root, "textvqa/train_images/turned.jpg")
    with Image.open(turned) as image:
        assert image.getexif()[demo.ORIENTATION] == demo.QUARTER_TURN
        lying = np.asarray(image.convert("RGB")).astype(int)
    upright = load_image(turned).astype(int)
    with pytest.MonkeyPatch.context() as patch:
        written = []
        patch.setattr(Image.Image, "transpose", lambda image, _: written.append(np.asarray(image).astype(int)) or image)
        write_demo(os.path.join(root, "again"))
    assert np.abs(upright - written[0]).mean() < 3 < np.abs(lying - written[0]).mean()


def test_the_pictures_fit_the_questions(root):
    known = EasyVQA("train")
    said = {turn for number in range(100) for turn in known[number]["turns"]}
    sample = open_sources(root, ["gllava_qa"])["gllava_qa"][0]
    question, answer = sample.turns[0][1].removeprefix(f"{IMAGE}\n"), sample.turns[1][1]
    assert (question, answer.rsplit(" ", 1)[-1].rstrip(".")) in said


def test_an_existing_folder_is_left_alone_and_nothing_half_written_stays(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert len(os.listdir(write_demo(tmp_path / "empty"))) > len(SOURCES)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    for name in ("full", "full/mine"):
        with pytest.raises(UserError, match="is there already; name a folder that is new or empty"):
            write_demo(tmp_path / name)
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        write_demo(tmp_path / "full" / "mine" / "root")
    monkeypatch.setattr(demo.Demo, "_equations", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_demo(tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["empty", "full"] and os.listdir(tmp_path / "full") == ["mine"]


def test_the_command(tmp_path):
    def run(*flags):
        command = [sys.executable, "-m", "launch.prepare_data", *flags]
        return subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)

    done = run("--demo", f"--root={tmp_path / 'root'}")
    assert done.returncode == 0, done.stderr
    assert "minigemini" in done.stdout and str(tmp_path / "root") in done.stdout
    assert set(tree(tmp_path / "root")) > {spec.file for spec in SOURCES.values()}
    again = run("--demo", f"--root={tmp_path / 'root'}")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1) and "is there already" in again.stderr
