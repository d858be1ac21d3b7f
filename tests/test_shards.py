"""What lies in a folder of prepared data is what was written there: damage, losses and foreign names are told."""

import json
import shutil
import time

import pytest

from test_prepare import FOLDER
from trol_jax.data import prepare, prepared, shards, tfds
from trol_jax.data.demo import write_demo
from trol_jax.data.sources import open_sources
from trol_jax.data.sources.sample import Sample
from trol_jax.errors import StorageError, UserError


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    place = tmp_path_factory.mktemp("prepared")
    prepare.prepare(open_sources(write_demo(place / "root")), place / "output", shard_rows=4)
    return place / "output"


def test_damage_is_named(output, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(output / FOLDER, folder)
    shards.verify(folder)
    damaged = folder / "trol_mixture-mathplus.array_record-00001-of-00002"
    lost = folder / "trol_mixture-allava_text.array_record-00000-of-00001"
    data = damaged.read_bytes()
    damaged.write_bytes(data[:70] + bytes(1000) + data[1070:])
    with pytest.raises(UserError, match=r"mathplus.array_record-00001-of-00002, record \d, cannot be read"):
        source = prepared.open_prepared(prepared.find(folder), ["mathplus"])["mathplus"]
        assert source[3].source == "mathplus"
        _ = [source[i] for i in (4, 5)]
    lost.unlink()
    with pytest.raises(UserError, match=r"2 of 18 shards in .* missing or damaged: .*allava.*, .*mathplus\S+; copy"):
        shards.verify(folder)
    with pytest.raises(UserError, match=r"allava_text\S+ is missing or incomplete; copy it again"):
        prepared.open_prepared(folder)
    (folder / tfds.INFO).write_text("{}")
    with pytest.raises(UserError, match=r"dataset_info\.json does not describe a dataset"):
        prepared.open_prepared(folder)


def test_prepared_data_that_fails_for_a_moment_is_read_again(output, monkeypatch):
    source = prepared.open_prepared(prepared.find(output), ["mathplus"])["mathplus"]

    class Stale:
        def __getitem__(self, index):
            raise RuntimeError("pread() failed: Stale file handle; reading shard; at byte 0")

    monkeypatch.setattr(time, "sleep", lambda _: None)
    good, source._records = source[1], Stale()
    assert source[1] == good
    monkeypatch.setattr(prepared, "ArrayRecordDataSource", lambda _: Stale())
    source._records = Stale()
    with pytest.raises(StorageError, match=r"mathplus.*, record 1, cannot be read: .*Stale file handle"):
        source[1]


@pytest.mark.parametrize("error", [MemoryError("no memory"), RuntimeError("open() failed: Too many open files")])
def test_a_machine_without_memory_or_open_files_makes_no_record_bad(output, error):
    def fails(*_):
        raise error

    source = prepared.open_prepared(prepared.find(output), ["mathplus"])["mathplus"]
    source._records = type("Failing", (), {"__getitem__": fails})()
    with pytest.raises(StorageError, match=r"mathplus.*, record 1, cannot be read: .*(no memory|open files)"):
        source[1]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            shards.SHARDS,
            lambda text: "",
            r"shards.jsonl has not the shards of plan.json: trol_mixture-sharegpt4v_caption",
        ),
        (
            shards.SHARDS,
            lambda text: text[: text.rindex("{")],
            r"has not the shards of plan.json: trol_mixture-mathplus",
        ),
        (
            shards.SHARDS,
            lambda text: text.replace('"samples": 4', '"samples": 3', 1),
            "has not the shards of plan.json",
        ),
        (
            shards.PLAN,
            lambda text: text.replace('"shard_rows": 4', '"shard_rows": 8'),
            "has not the shards of plan.json",
        ),
        (shards.PLAN, lambda text: "{}", r"plan.json cannot be read: KeyError\('shard_rows'\)"),
        (shards.SHARDS, lambda text: "[]", "cannot be read: TypeError"),
        (
            tfds.INFO,
            lambda text: text.replace('"4"', '"3"', 1),
            "dataset_info.json gives sharegpt4v_caption other samples",
        ),
    ],
)
def test_files_that_describe_other_shards_are_told(output, tmp_path, name, change, said):
    folder = tmp_path / "copy"
    shutil.copytree(output / FOLDER, folder)
    (folder / name).write_text(change((folder / name).read_text()))
    for look in (shards.verify, prepared.open_prepared):
        with pytest.raises(UserError, match=said):
            look(folder)


def test_prepared_data_names_no_file_beyond_its_folder(output, tmp_path):
    """Pictures are bytes in the records, whatever these hold; shards are named by two files beside them."""
    assert tfds.decode(tfds.encode(Sample("web", "1", (), (b"/etc/passwd",)))).pictures == (b"/etc/passwd",)
    folder = tmp_path / "copy"
    shutil.copytree(output / FOLDER, folder)
    shard = folder / tfds.shard_name("gllava_qa", 0, 1)
    shard.rename(tmp_path / "moved")
    shard.symlink_to(tmp_path / "moved")
    for read in (prepared.open_prepared, shards.verify):
        with pytest.raises(UserError, match=rf"{shard.name}' leaves the root .* by a link, to {tmp_path}/moved; put"):
            read(folder)
    shard.unlink()
    (tmp_path / "moved").rename(shard)
    info, journal = json.loads((folder / tfds.INFO).read_text()), (folder / shards.SHARDS).read_text()
    info["splits"][0]["name"] = "/../../x"
    (folder / tfds.INFO).write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"the path 'trol_mixture-/\.\./\.\./x\S+' is not one below the root"):
        prepared.open_prepared(folder)
    for path in (str(tmp_path / "x"), "../x"):
        (folder / shards.SHARDS).write_text(journal.replace(shard.name, path))
        with pytest.raises(UserError, match=f"the path '{path}' is not one below the root"):
            shards.verify(folder)
