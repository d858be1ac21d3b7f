import json

import pytest

from trol_jax import manifest

ARRAYS = {"params/w": {"shape": [2, 3], "dtype": "float32"}}


@pytest.fixture
def stored(tmp_path):
    """Two checkpoints of the same shape, steps 7 and 8."""
    for step in (7, 8):
        (tmp_path / f"{step}" / "state").mkdir(parents=True)
        (tmp_path / f"{step}" / "state" / "a").write_bytes(b"a%d" % step * 50)
        (tmp_path / f"{step}" / "state" / "b").write_bytes(b"b%d" % step * 50)
        (tmp_path / f"{step}" / "empty").write_bytes(b"")
        manifest.write(tmp_path / f"{step}", step=step, arrays=ARRAYS)
    return tmp_path


def swap(one, other):
    one.rename(one.parent / "aside")
    other.rename(one)
    (one.parent / "aside").rename(other)


def test_a_sound_directory_has_no_problem_and_reads_back(stored):
    assert manifest.verify(stored / "7") == []
    read = manifest.read(stored / "7")
    assert read["step"] == 7 and read["arrays"] == ARRAYS
    assert sorted(read["files"]) == ["empty", "state/a", "state/b"]


def test_every_byte_of_the_manifest_is_protected(stored):
    path = stored / "7" / "manifest.json"
    data = path.read_bytes()
    for position in range(len(data)):
        changed = data[position] ^ (1 if position % 2 else 32)  # 32: the case of a letter
        path.write_bytes(data[:position] + bytes([changed]) + data[position + 1 :])
        assert manifest.verify(stored / "7") == ["manifest.json differs from its checksum"]


@pytest.mark.parametrize("text", ["", "[]", '"text"', "{}", "7", '{"checksum": "00"}'])
def test_a_manifest_that_is_another_json_value(stored, text):
    (stored / "7" / "manifest.json").write_text(text)
    assert manifest.verify(stored / "7") == ["manifest.json differs from its checksum"]


def test_missing_extra_truncated_and_grown_files(stored):
    step = stored / "7"
    (step / "state" / "a").unlink()
    (step / "state" / "b").write_bytes(b"b" * 5)
    (step / "empty").write_bytes(b"x")
    (step / "state" / "c").write_bytes(b"")
    assert manifest.verify(step) == [
        "empty has 1 bytes instead of 0",
        "state/a is missing",
        "state/b has 5 bytes instead of 100",
        "state/c is not part of the checkpoint",
    ]


def test_a_missing_manifest(stored):
    (stored / "7" / "manifest.json").unlink()
    assert manifest.verify(stored / "7") == ["manifest.json is missing"]


def test_files_swapped_inside_a_checkpoint_and_between_two(stored):
    swap(stored / "7" / "state" / "a", stored / "7" / "state" / "b")
    assert manifest.verify(stored / "7") == ["state/a differs from its checksum", "state/b differs from its checksum"]
    swap(stored / "7" / "state" / "a", stored / "7" / "state" / "b")
    swap(stored / "7" / "state" / "a", stored / "8" / "state" / "a")
    for step in "78":
        assert manifest.verify(stored / step) == ["state/a differs from its checksum"]


def test_manifests_swapped_between_checkpoints(stored):
    swap(stored / "7" / "manifest.json", stored / "8" / "manifest.json")
    assert manifest.verify(stored / "7")[0] == "manifest.json is that of step 8"


def test_whole_steps_renamed_onto_each_other(stored):
    swap(stored / "7", stored / "8")
    assert manifest.verify(stored / "7") == ["manifest.json is that of step 8"]
    assert manifest.verify(stored / "8") == ["manifest.json is that of step 7"]


def test_a_step_may_be_copied_under_a_name_that_is_no_step(stored):
    (stored / "7").rename(stored / "best")
    assert manifest.verify(stored / "best") == []


def test_only_some_files_are_checked(stored):
    (stored / "7" / "state" / "a").unlink()
    assert manifest.verify(stored / "7", only=["empty"]) == []
    assert manifest.verify(stored / "7", only=["state/a"]) == ["state/a is missing"]


def test_differences_name_both_shapes():
    wanted = {"params/w": {"shape": [2, 4], "dtype": "bfloat16"}, "params/x": {"shape": [], "dtype": "int32"}}
    assert manifest.differences(ARRAYS, ARRAYS) == []
    assert manifest.differences(ARRAYS, wanted) == [
        "params/w is float32[2,3] in the checkpoint and bfloat16[2,4] in the model",
        "params/x is absent in the checkpoint and int32[] in the model",
    ]


def test_the_manifest_is_json_for_other_tools(stored):
    assert json.loads((stored / "7" / "manifest.json").read_text())["files"]["empty"]["size"] == 0
