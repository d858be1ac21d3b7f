"""Paths in annotations name files below the root, whatever they try."""

import os

import pytest

from trol_jax.data.paths import normalise, resolve
from trol_jax.errors import UserError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("coco/train2017/1.jpg", "coco/train2017/1.jpg"),
        ("./imgs/ChartQA/1.png", "imgs/ChartQA/1.png"),
        ("a//b/./c.png", "a/b/c.png"),
        ("a/..b/...", "a/..b/..."),
        ("名/ü :1.jpg", "名/ü :1.jpg"),
    ],
)
def test_ordinary_paths(given, expected):
    assert normalise(given) == expected


BAD = ["", ".", "./", "/etc/passwd", "//host/x", "..", "../x", "a/../../x", "a/..", "./../x", "a\\..\\x", "\\\\host\\x"]


@pytest.mark.parametrize("path", [*BAD, "C:x.jpg", "c:/x.jpg", "./C:/x.jpg", "a\0b", "a\ud800.jpg"])
def test_paths_that_are_refused(path, tmp_path):
    for refuse in (normalise, lambda path: resolve(str(tmp_path), path)):
        with pytest.raises(UserError) as error:
            refuse(path)
        assert repr(path) in str(error.value)


def test_links_may_stay_below_the_root_but_not_leave_it(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "root2"  # whose name begins like that of the root
    for folder in (root / "real", outside):
        folder.mkdir(parents=True)
        (folder / "1.jpg").write_bytes(b"")
    (root / "near").symlink_to("real")
    (root / "near.jpg").symlink_to("real/1.jpg")
    (root / "far").symlink_to(outside)
    (root / "far.jpg").symlink_to("../root2/1.jpg")
    (root / "real" / "gone.jpg").symlink_to(outside / "none")
    for path in ("real/1.jpg", "near/1.jpg", "near.jpg"):
        assert os.path.samefile(resolve(str(root), path), root / "real" / "1.jpg")
    for path in ("far/1.jpg", "far.jpg", "far/none.jpg", "near/gone.jpg", "far/deeper/1.jpg"):
        with pytest.raises(UserError, match=r"leaves the root .* by a link, to "):
            resolve(str(root), path)
    assert resolve(str(root), "real/none.jpg") == str(root / "real" / "none.jpg")  # missing: told by who opens it
    assert resolve(str(root), "none/none.jpg") == str(root / "none" / "none.jpg")


def test_the_root_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.jpg").write_bytes(b"x")
    (tmp_path / "root").symlink_to("real")
    with open(resolve(str(tmp_path / "root"), "1.jpg"), "rb") as file:
        assert file.read() == b"x"


def test_a_folder_is_looked_up_once(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    resolve(str(tmp_path), "a/b/0.jpg")
    monkeypatch.setattr(os.path, "realpath", lambda path: pytest.fail("looked up again"))
    for number in range(3):
        assert resolve(str(tmp_path), f"a/b/{number}.jpg") == str(tmp_path / "a" / "b" / f"{number}.jpg")
