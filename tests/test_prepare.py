"""The mixture as a dataset of TensorFlow Datasets: the same samples, whoever stops the writing, whoever reads."""

import errno
import importlib.util
import io
import json
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fixtures
import programs
from test_packing import tokenizer
from trol_jax.data import images, packing, prepare, prepared, shards, tfds
from trol_jax.data.demo import write_demo
from trol_jax.data.images import load_image
from trol_jax.data.paths import resolve
from trol_jax.data.sources import open_sources
from trol_jax.data.sources.sample import Sample
from trol_jax.errors import StorageError, UserError

FOLDER = f"{tfds.NAME}/{tfds.VERSION}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo") / "root")


@pytest.fixture(scope="module")
def output(root, tmp_path_factory):
    place = tmp_path_factory.mktemp("prepared") / "output"
    prepare.prepare(open_sources(root), place, shard_rows=4)
    return place


def pixels(picture, root):
    return load_image(picture if isinstance(picture, bytes) else resolve(root, picture))


def test_samples_are_the_same_at_the_same_numbers(root, output):
    raw, made = open_sources(root), prepared.open_prepared(prepared.find(output))
    assert list(made) == list(raw) and sum(len(source.shards) for source in made.values()) == 18
    for name, source in pickle.loads(pickle.dumps(made)).items():
        assert len(source) == len(raw[name]) and f"({name}, {len(source)} samples)" in repr(source)
        for i in range(len(source)):
            old, new = raw[name][i], source[i]
            assert (new.source, new.id, new.turns) == (old.source, old.id, old.turns)
            for before, after in zip(old.pictures, new.pictures, strict=True):
                np.testing.assert_array_equal(pixels(before, root), pixels(after, root))
        with pytest.raises(IndexError):
            source[len(source)]


@pytest.mark.parametrize("family", ["internlm2", "phi3"])
def test_batches_of_training_are_the_same_bit_for_bit(root, output, family):
    def batches(folder):
        options = packing.MixtureOptions(
            root=str(folder), parts=(), max_length=256, sample_length=256, row_tiles=6, max_tiles=2, system="",
            bad="skip", threads=2,
        )  # fmt: skip
        shape = dict(image_size=16, image_tokens=4, batch_size=4, seed=3)
        with packing.train_iterator(options, tokenizer(family), **shape) as packer:
            return [next(packer) for _ in range(4)], packer.get_state()

    (raw, state), (made, state_of_made) = batches(root), batches(output)
    assert state == state_of_made and len(state["counts"]) > 11
    for before, after in zip(raw, made, strict=True):
        assert before.keys() == after.keys() and before["images"].any()
        for name in before:
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)


READ = """
import json, sys
import tensorflow_datasets as tfds
whole = tfds.data_source("trol_mixture", data_dir=sys.argv[1])
info = tfds.builder_from_directory(sys.argv[1] + "/trol_mixture/1.0.0").info
plain = lambda value: value.decode() if isinstance(value, bytes) else list(map(plain, value))
turns = lambda sample: list(zip(plain(sample["turns"]["role"]), plain(sample["turns"]["text"])))
pictures = lambda sample: [(picture.shape, int(picture.sum())) for picture in sample["pictures"]]
print(json.dumps({
    "samples": {
        name: [(plain(each["source"]), plain(each["id"]), turns(each), pictures(each)) for each in split]
        for name, split in whole.items()
    },
    "documented": [str(part.description) for part in info.features.catalog_documentation()],
    "examples": info.splits.total_num_examples,
    "tensorflow": "tensorflow" in sys.modules,
}))
"""


@pytest.mark.skipif(importlib.util.find_spec("tensorflow_datasets") is None, reason="needs tensorflow-datasets")
def test_tensorflow_datasets_reads_it_without_tensorflow(root, output):
    def shown(sample):
        found = (pixels(picture, root) for picture in sample.pictures)
        shapes = [[list(each.shape), int(each.sum())] for each in found]
        return [sample.source, sample.id, [list(turn) for turn in sample.turns], shapes]

    status, out, errors = programs.fresh("-c", READ, output)
    assert status == 0, errors
    found, sources = json.loads(out.splitlines()[-1]), open_sources(root)
    raw = {name: [shown(source[i]) for i in range(len(source))] for name, source in sources.items()}
    assert found["samples"] == raw and found["examples"] == 61 and not found["tensorflow"]
    assert "The conversation." in found["documented"] and "PNG or JPEG" in str(found["documented"])


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != shards.SHARDS}


def test_it_goes_on_where_it_stopped(root, output, tmp_path):
    copy, again = tmp_path / "root", tmp_path / "output"
    shutil.copytree(root, copy)
    picture = copy / "imgs/DUE_Benchmark/DocVQA/pages_2.png"
    moved = picture.rename(tmp_path / "picture.png")
    with pytest.raises(UserError, match=r"sample 10 of docdownstream: .*pages_2\.png does not exist; --bad=skip"):
        prepare.prepare(open_sources(copy), again, shard_rows=4)
    working = again / f"{FOLDER}.unfinished"
    assert not (again / FOLDER).exists() and not list(working.glob("*.tmp")) and prepared.find(again) is None
    done = {path: path.stat().st_ino for path in working.glob("*.array_record*")}
    assert 5 < len(done) < 12
    moved.rename(picture)
    (working / "trol_mixture-x.1.tmp").write_bytes(b"left by a process that was killed")
    next(iter(done)).unlink()  # lost
    lines = prepare.prepare(open_sources(copy), again, shard_rows=4)
    assert len(lines) == 18 and sum(line["samples"] for line in lines) == 61
    kept = [path for path, number in done.items() if (again / FOLDER / path.name).stat().st_ino == number]
    assert len(kept) == len(done) - 1
    assert tree(again / FOLDER) == tree(output / FOLDER)
    assert len(prepare.prepare(open_sources(copy), again, shard_rows=4)) == 18  # nothing left to do


def test_bad_samples_are_left_out_and_named(root, tmp_path):
    copy = tmp_path / "root"
    shutil.copytree(root, copy)
    (copy / "geoqa_plus/3.png").write_bytes(b"no picture")
    (copy / "geoqa_plus/5.png").unlink()
    sources = open_sources(copy, ["gllava_qa"])
    with pytest.raises(UserError, match=r"sample 1 of gllava_qa: .*3\.png is not a picture"):
        prepare.prepare(sources, tmp_path / "output")
    (line,) = prepare.prepare(sources, tmp_path / "other", bad="skip")
    assert (line["samples"], line["left_out"]) == (2, 2)
    assert [problem.split(":")[0] for problem in line["named"]] == ["sample 1 of gllava_qa", "sample 3 of gllava_qa"]
    made = prepared.open_prepared(prepared.find(tmp_path / "other"))["gllava_qa"]
    assert [made[i].id for i in range(len(made))] == ["0", "2"]
    for picture in (copy / "geoqa_plus").iterdir():
        picture.write_bytes(b"no picture")
    prepare.prepare(open_sources(copy, ["gllava_qa", "mathplus"]), tmp_path / "none", bad="skip")
    assert list(prepared.open_prepared(prepared.find(tmp_path / "none"))) == ["mathplus"]


def test_shards_that_left_samples_out_are_written_again_by_the_next_start(root, tmp_path, monkeypatch):
    copy, output = tmp_path / "root", tmp_path / "output"
    shutil.copytree(root, copy)
    picture = (copy / "geoqa_plus/5.png").rename(tmp_path / "5.png")
    sources, how = open_sources(copy, ["gllava_qa"]), dict(bad="skip", shard_rows=2)

    def stopped(job, lines):
        assert [line["left_out"] for line in lines] == [0, 1]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare, "_describe", stopped)
        prepare.prepare(sources, output, **how)
    whole, _ = sorted((output / f"{FOLDER}.unfinished").glob("*.array_record*"))
    number = whole.stat().st_ino
    picture.rename(copy / "geoqa_plus/5.png")
    assert [line["left_out"] for line in prepare.prepare(sources, output, **how)] == [0, 0]
    assert (output / FOLDER / whole.name).stat().st_ino == number
    assert len(prepared.open_prepared(prepared.find(output))["gllava_qa"]) == 4


def test_what_was_prepared_before_is_told_as_such(root, tmp_path):
    shutil.copytree(root, tmp_path / "root")
    picture = tmp_path / "root/geoqa_plus/3.png"
    picture.rename(tmp_path / "3.png")
    flags = f"--root={tmp_path / 'root'}", f"--output={tmp_path}", "--sources=gllava_qa", "--bad=skip", "--processes=1"
    first = programs.Program(programs.launch("prepare_data"), *flags).wait()
    (tmp_path / "3.png").rename(picture)
    again = programs.Program(programs.launch("prepare_data"), *flags).wait()
    told = f"it was prepared before, and nothing was read now; remove {tmp_path / FOLDER} to prepare it again"
    assert first[0] == again[0] == 0 and "1 samples left out" in first[1] and told not in first[1]
    assert again[1] == f"{first[1]}{told}\n"


def test_storage_that_is_away_leaves_no_sample_out(root, tmp_path, monkeypatch):
    def fails(path):
        raise OSError(errno.EIO, "Input/output error")

    sources, away = open_sources(root, ["gllava_qa"]), pytest.raises(StorageError, match="cannot be read: Input/output")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with monkeypatch.context() as patch, away:
        patch.setattr(images, "_file", fails)
        prepare.prepare(sources, tmp_path / "output", bad="skip")
    (line,) = prepare.prepare(sources, tmp_path / "output", bad="skip")
    assert line["left_out"] == 0


def test_pictures_that_other_readers_see_otherwise_become_plain(tmp_path):
    Image.new("CMYK", (8, 6), (0, 200, 200, 0)).save(tmp_path / "a.jpg")
    for how in prepare.PICTURES:
        with Image.open(io.BytesIO(prepare.encoded(str(tmp_path / "a.jpg"), how))) as image:
            assert image.mode == "RGB" and image.format == ("PNG" if how == "keep" else "JPEG")


BROKEN = "imgs/TextVQA/1.png", "gqa/images/1.jpg", "geoqa_plus/3.png"  # missing, cut within its pixels, no picture


@pytest.mark.parametrize("family", ["internlm2", "phi3"])
def test_broken_pictures_fail_or_are_counted_and_named_from_either_layout(root, tmp_path, family, caplog):
    copy, names = tmp_path / "root", ["docdownstream", "sharegpt4v_instruct", "gllava_qa"]
    shutil.copytree(root, copy)
    (copy / BROKEN[0]).unlink()
    (copy / BROKEN[1]).write_bytes((copy / BROKEN[1]).read_bytes()[:-200])
    (copy / BROKEN[2]).write_bytes(b"no picture")

    def train(folder, bad):
        """(bad samples as the metrics have them, log) of some epochs."""
        caplog.clear()
        options = packing.MixtureOptions(
            root=str(folder), parts=tuple((name, 1) for name in names), max_length=512, sample_length=512, row_tiles=12,
            max_tiles=2, system="", bad=bad, threads=1,
        )  # fmt: skip
        shape = dict(image_size=16, image_tokens=4, batch_size=24, seed=0)
        with packing.train_iterator(options, tokenizer(family), **shape) as packer:
            next(packer)
            return packer.shares_so_far()["data/bad"], "\n".join(caplog.messages)

    told = rf"sample \d+ of \w+: {copy}/({'|'.join(BROKEN)}) (does not exist|is a damaged picture|is not a picture)"
    with pytest.raises(UserError, match=told):
        train(copy, "fail")
    bad, log = train(copy, "skip")
    assert bad >= 3 and all(f"{copy}/{name} " in log for name in BROKEN)
    with pytest.raises(UserError, match=f"{told}.*; --bad=skip leaves such samples out"):
        prepare.prepare(open_sources(copy, names), tmp_path / "fail")
    lines = prepare.prepare(open_sources(copy, names), tmp_path / "skip", bad="skip")
    named = "\n".join(problem for line in lines for problem in line["named"])
    assert sum(line["left_out"] for line in lines) == 3 and all(f"{copy}/{name} " in named for name in BROKEN)
    assert train(tmp_path / "skip", "fail") == (0, "")
    shard = next((tmp_path / "skip" / FOLDER).glob("*gllava_qa*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:70] + bytes(len(content) - 140) + content[-70:])
    bad, log = train(tmp_path / "skip", "skip")
    assert bad >= 1 and f"left out: {shard}, record 0, cannot be read" in log


def test_what_does_not_fit_together_is_refused(root, output, tmp_path):
    sources = open_sources(root)
    for changes, name in (({"pictures": "jpeg"}, "pictures"), ({"bad": "skip"}, "bad"), ({}, "shard_rows")):
        with pytest.raises(UserError, match=rf"was begun with other data or settings \({name}.* differ"):
            prepare.prepare(sources, output, **{"shard_rows": 4 if changes else 5} | changes)
    with pytest.raises(UserError, match=r"\(sources differ"):
        prepare.prepare(open_sources(root, ["mathplus"]), output, shard_rows=4)
    for changes, message in (
        ({"pictures": "png"}, "pictures is 'png', must be keep or jpeg"),
        ({"bad": "?"}, "bad is"),
        ({"processes": 0}, "processes is 0, must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            prepare.prepare(sources, tmp_path / "new", **changes)
    with pytest.raises(UserError, match="was prepared without x; it has sharegpt4v_caption, "):
        prepared.open_prepared(prepared.find(output), ["x", "mathplus"])
    working = tmp_path / f"{FOLDER}.unfinished"
    working.mkdir(parents=True)
    with prepare._alone(working), pytest.raises(UserError, match="another process writes to"):
        prepare.prepare(sources, tmp_path)


def file_of(format, mode="RGB", **options):
    file = io.BytesIO()
    colours = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(colours).convert(mode).save(file, format, **options)
    return file.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.mark.parametrize(
    ("file", "keeps", "becomes"),
    [
        (file_of("JPEG"), True, "JPEG"),
        (file_of("JPEG", exif=TURNED), True, "JPEG"),
        (file_of("PNG"), True, "JPEG"),
        (file_of("PNG", "L"), True, "JPEG"),
        (file_of("PNG", exif=TURNED), False, "JPEG"),
        (file_of("PNG", "P"), False, "JPEG"),
        (file_of("PNG", "RGBA"), False, "JPEG"),
        (file_of("PNG", "1"), False, "JPEG"),
        (file_of("GIF"), False, "JPEG"),
        (file_of("WEBP", lossless=True), False, "JPEG"),
    ],
)
def test_pictures_become_what_every_reader_decodes_alike(file, keeps, becomes):
    kept, jpeg = (prepare.encoded(file, how) for how in prepare.PICTURES)
    assert (kept == file) == keeps
    np.testing.assert_array_equal(load_image(kept), load_image(file))
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.format == becomes and load_image(jpeg).shape == load_image(file).shape
    if not keeps:
        with Image.open(io.BytesIO(kept)) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")


def test_a_record_is_its_sample_whatever_its_text():
    sample = Sample("web", "1", (("user", "half \ud800 of a pair\0"), ("assistant", "")), (b"\xff\0", b""))
    assert tfds.decode(tfds.encode(sample)) == sample
    assert tfds.decode(tfds.encode(Sample("", "", ()))) == Sample("", "", ())


@pytest.mark.slow
def test_processes_are_killed_and_another_goes_on(root, output, tmp_path):
    command = programs.launch("prepare_data"), f"--root={root}", f"--output={tmp_path}", "--shard_rows=4"
    first = programs.Program(*command, "--processes=2")
    journal = tmp_path / f"{FOLDER}.unfinished" / shards.SHARDS
    while first.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.01)
    first.send_signal(9)
    first.wait()
    status, out, errors = programs.Program(*command, "--processes=2").wait()
    assert status == 0 and out, errors
    assert tree(tmp_path / FOLDER) == tree(output / FOLDER)
    status, out, _ = programs.Program(programs.launch("prepare_data"), f"--output={tmp_path}", "--verify").wait()
    assert status == 0 and "every shard is as it was written" in out


@pytest.mark.slow
def test_the_whole_way_from_the_files_to_a_step_of_training(tmp_path):
    """raw -> check -> prepare -> train, by the programs that a user starts; from either layout the same step."""

    def run(name, *flags):
        status, out, errors = programs.Program(programs.launch(name), *flags).wait()
        assert status == 0, errors
        return out

    root, output, base = (tmp_path / name for name in ("root", "output", "base"))
    assert str(root) in run("prepare_data", "--demo", f"--root={root}")
    if importlib.util.find_spec("launch.check_data"):
        run("check_data", f"--root={root}", f"--json={tmp_path / 'report.json'}")
    assert "12 samples in 1 shards" in run("prepare_data", f"--root={root}", f"--output={output}", "--processes=1")
    run("prepare_data", f"--output={output}", "--verify")
    with fixtures.nano_variants():
        fixtures.save_run(base, "internlm2")
    small = {
        "start_from": base, "steps": 1, "batch_size": 2, "accumulation": 1, "dtype": "float32", "remat": "none",
        "mesh": "data=-1", "rules": "data", "model.variant": "nano_internlm2", "data.max_length": 256,
        "data.sample_length": 256, "data.row_tiles": 8, "data.system": "", "lora.rank": 2,
    }  # fmt: skip
    flags = ["--config=configs/trol_1_8b.py:step1", *(f"--config.{name}={value}" for name, value in small.items())]
    lines = []
    for layout in (root, output):
        workdir = tmp_path / f"run_{layout.name}"
        run("train", *flags, f"--config.data.root={layout}", f"--workdir={workdir}")
        lines += map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    raw, prepared_ = (
        {name: value for name, value in line.items() if "per_second" not in name and name != "data/waited"}
        for line in lines
    )
    assert raw == prepared_ and raw["step"] == 1 and len(set(open_sources(root)) & {n[5:] for n in raw}) > 3


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(root, tmp_path):
    shutil.copytree(root, tmp_path / "root")
    (tmp_path / "root/geoqa_plus/3.png").unlink()
    command = programs.launch("prepare_data"), f"--root={tmp_path / 'root'}", f"--output={tmp_path}"
    status, _, errors = programs.Program(*command, "--processes=2", "--shard_rows=2").wait()
    assert status == 2 and errors.splitlines()[-1].startswith("error: sample 1 of gllava_qa: ")
    assert not list(Path(tmp_path).rglob("*.tmp"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--demo", "--output=x"], "--output cannot go with --demo"),
        (["--demo", "--verify"], "--demo and --verify are two things to do"),
        (["--output=x"], "--root is missing; prepare with --root and --output"),
        (["--output=nowhere", "--verify"], "nowhere holds no prepared data"),
    ],
)
def test_flags_that_cannot_be(flags, message):
    status, _, errors = programs.Program(programs.launch("prepare_data"), *flags).wait()
    assert status == 2 and message in errors
