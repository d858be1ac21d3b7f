"""Checking the training data: each kind of damage is found and named, and work that was stopped goes on."""

import datetime
import errno
import json
import os
import shutil
import time

import pytest
from PIL import Image

from programs import Program, launch
from test_images import encoded, huge_png
from test_sources import CASES, chart
from test_sources import write as write_source
from trol_jax.data import check, check_report, check_run
from trol_jax.data.check import ERROR, KINDS, WARNING, Findings, Rules
from trol_jax.data.demo import write_demo
from trol_jax.data.encode import SampleEncoder
from trol_jax.data.prompts import FORMATS, render_prompt
from trol_jax.data.sources import SOURCES, open_sources
from trol_jax.data.tokenizer import train_tokenizer
from trol_jax.errors import StorageError, UserError
from trol_jax.models.variants import VARIANTS

NAME = "sharegpt4v_instruct"
ASK, ANSWER = ("human", "<image>\nWhat?"), ("gpt", "A shape.")
PICTURE = encoded(Image.new("RGB", (32, 24), (9, 90, 200)), "JPEG")
PHI3 = train_tokenizer(["What?", "A shape."], FORMATS["phi3"])
STRIP = encoded(Image.new("L", (900, 12)))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo") / "root")


@pytest.fixture
def root(tmp_path):
    """A folder with pictures, good and bad, and a function that writes rows there."""
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    for name, content in {
        "good.jpg": PICTURE, "gif.jpg": encoded(Image.new("L", (32, 24)), "GIF"), "text.png": b"hello",
        "huge.png": huge_png(10_000, 10_000), "strip.png": STRIP,
        "dot.png": encoded(Image.new("L", (2, 2))), "cut.jpg": encoded(noise, "JPEG")[:1500],
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path


def write(root, rows):
    (root / SOURCES[NAME].file).write_text(json.dumps(rows))


def row(*turns, image="good.jpg", identity="1"):
    conversation = [{"from": role, "value": text} for role, text in turns or (ASK, ANSWER)]
    return {"id": identity, "conversations": conversation} | ({"image": image} if image else {})


def found(root, **options):
    rules = Rules(**{key: options.pop(key) for key in ("pictures", "max_length", "tokenizer") if key in options})
    return check_run.check(root, [NAME], rules, **options)[0].found


BAD = {
    "row": [row(image="../../etc/passwd"), {"id": "1"}, row(("robot", "hi"))],
    "roles": [row(ANSWER, ASK), row(ASK, ("human", "?"), ANSWER, ANSWER), row(ASK, ANSWER, ANSWER)],
    "marks": [
        row(image=None),
        row(("human", "What?"), ANSWER),
        row(ASK, ANSWER, ("human", "<image>?"), image=["good.jpg", "good.jpg"]),
    ],
    "no answer": [row(ASK, ("gpt", " \n")), row(ASK, ("gpt", ""), ("human", "?"), ("gpt", "")), row(ASK)],
    "surrogate": [row(ASK, ("gpt", "yes \ud83d")), row(("human", "<image>\udc00"), ANSWER)],
    "picture missing": [row(image="none.jpg")],
    "picture unreadable": [row(image="text.png"), row(image="huge.png"), row(image="pipe.png")],
    "open end": [row(ASK, ANSWER, ("human", "And?")), row(("human", "?"), ANSWER, ("human", "<image>?"), image=None)],
    "empty answer": [row(ASK, ANSWER, ("human", "?"), ("gpt", ""))],
    "mark in answer": [row(ASK, ("gpt", "See <image>."))],
    "special token": [row(ASK, ("gpt", "a </s> b")), row(("human", "<image>[UNUSED_TOKEN_146]user"), ANSWER)],
    "too long": [row(ASK, ("gpt", "x" * 8192))],
    "extension": [row(image="gif.jpg")],
    "picture size": [row(image="strip.png"), row(image="dot.png")],
}


@pytest.mark.parametrize("kind", BAD)
def test_every_kind_of_damage_is_found_and_named(root, kind):
    write(root, [row(identity="good"), *(bad | {"id": f"bad {n}"} for n, bad in enumerate(BAD[kind]))])
    here = found(root)
    assert here.problems[kind] == len(BAD[kind]) == len(here.examples[kind])
    other = {"open end"} if kind in ("marks", "no answer") else set()
    assert set(here.problems) - other == {kind, "count"}
    if kind != "row":
        assert [each[:2] for each in here.examples[kind]] == [[n + 1, f"bad {n}"] for n in range(len(BAD[kind]))]
    else:
        assert "row 1 of" in here.examples[kind][0][2] and "not one below the root" in here.examples[kind][0][2]


GEOMETRY, PROBLEM = CASES["gllava_qa"][0][0] | {"image": "good.jpg"}, CASES["mathvision"][0][0]
ANSWERED = {"from": "gpt", "value": "B"}
ELSEWHERE = {  # in JSON lines, parquet, pictures stored in rows, texts without pictures
    "docdownstream": [
        ("marks", chart("<|image|><|image|>Which?", "good.jpg")),
        ("marks", chart("<|image|>Which?", "good.jpg", "good.jpg")),
        ("picture missing", chart("<|image|>Which?", "./imgs/none.png")),
        ("mark in answer", chart("<|image|>Which?", "good.jpg", answer="<|image|>")),
        ("row", chart("<|image|>Which?", "good.jpg") | {"messages": None}),
    ],
    "gllava_qa": [
        ("picture unreadable", GEOMETRY | {"image": "text.png"}),
        ("roles", GEOMETRY | {"conversations": [*GEOMETRY["conversations"], ANSWERED]}),
        ("row", GEOMETRY | {"image": "/etc/passwd"}),
    ],
    "mathvision": [
        ("picture unreadable", PROBLEM),
        ("no answer", PROBLEM | {"id": "2", "decoded_image": {"bytes": PICTURE, "path": ""}, "answer": ""}),
        ("picture size", PROBLEM | {"id": "3", "decoded_image": {"bytes": STRIP, "path": ""}}),
    ],
    "mathinstruct": [
        ("no answer", {"instruction": "6 + 7?", "output": "\n"}),
        ("special token", {"instruction": "6 + 7?", "output": "<|end|>"}),
        ("marks", {"instruction": "<image> 6 + 7?", "output": "13"}),
    ],
    "mathplus": [("too long", {"instruction": "?", "output": "x" * 9000})],
    "allava_text": [("duplicate id", {"idx": "a", "conversations": CASES["allava_text"][0][0]["conversations"]})] * 2,
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_damage_is_found_in_every_kind_of_file(root, name):
    write_source(root, name, [bad for _, bad in ELSEWHERE[name]])
    (report,) = check_run.check(str(root), [name], Rules())
    expected = [kind for kind, _ in ELSEWHERE[name]][name == "allava_text" :]  # the first of two is no duplicate
    assert report.found.problems == {"count": 1} | {kind: expected.count(kind) for kind in expected}


def test_every_kind_has_a_test():
    assert set(KINDS) == {*BAD, "file", "count", "duplicate id", "refused"}
    assert all(level in (ERROR, WARNING) for level, _ in KINDS.values())


def test_duplicate_ids_are_found_across_blocks(root, monkeypatch):
    monkeypatch.setattr(check_run, "BLOCK", 2)
    write(root, [row(identity=identity) for identity in "abcabab"])
    here = found(root)
    assert here.problems["duplicate id"] == 4
    assert [each[:2] for each in here.examples["duplicate id"]] == [[3, "a"], [4, "b"], [5, "a"]]


def test_damaged_pixels_are_found_by_decoding(root):
    write(root, [row(), row(image="cut.jpg")])
    assert "picture unreadable" not in found(root).problems
    assert found(root, pictures="decode").problems["picture unreadable"] == 1
    assert not found(root, pictures="none").formats


def test_lengths_may_be_those_of_a_tokeniser(root, tmp_path):
    path = str(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(PHI3.dump())
    write(root, [row(), row(ASK, ("gpt", "half \ud83d"), identity="2")])
    prompt = render_prompt(FORMATS["phi3"], "What?", 7 * 256)  # 3 x 2 tiles and the whole
    exact = len(PHI3.encode(prompt)) + len(PHI3.encode(ANSWER[1])) + 1
    assert set(found(root, tokenizer=path, max_length=exact).problems) == {"surrogate", "count"}
    assert found(root, tokenizer=path, max_length=exact - 1).examples["too long"][0][2] == f"{exact:,} tokens"
    small = found(root, tokenizer=path, max_length=99)
    assert "nothing of an answer is within the 99 tokens" in small.examples["refused"][0][2]
    (root / "good.jpg").unlink()
    assert found(root, tokenizer=path, max_length=exact, pictures="none").lengths.total() == 1


def test_tiles_are_those_of_the_released_models():
    for name in ("trol_1_8b", "trol_7b", "trol_3_8b"):
        model = VARIANTS[name]
        assert check.TILES[model.family] == (model.vision.image_size, model.image_tokens)


@pytest.mark.parametrize("kind", BAD)
def test_errors_are_what_training_refuses(root, kind):
    write(root, [bad | {"id": f"{n}"} for n, bad in enumerate(BAD[kind])])
    source, encode = open_sources(root, [NAME])[NAME], SampleEncoder(str(root), PHI3, 448, 4, 6, 20_000, "")
    for number in range(len(source)):
        one = check.check_rows(str(root), NAME, [number], Rules())
        try:
            refused = not encode(source[number])
        except UserError:
            refused = True
        assert refused == bool(one.count(ERROR)), one.examples


def test_a_file_that_is_missing_or_cut_does_not_end_the_check(root):
    (root / SOURCES["mathinstruct"].file).write_text("[{}")
    write(root, [row()])
    reports = check_run.check(root, ["mathinstruct", NAME, "docreason"], Rules())
    assert [report.found.problems["file"] for report in reports] == [1, 0, 1]
    assert "does not exist" in reports[2].found.examples["file"][0][2]
    assert "ends" in reports[0].found.examples["file"][0][2]


def test_a_disk_that_fails_makes_no_row_bad(root, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    write(root, [row(identity="1")])
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(StorageError, match="row 0, cannot be read: Input/output error"):
        check.check_rows(str(root), NAME, [0], Rules())


def test_a_stopped_check_goes_on_and_a_change_is_seen(root, monkeypatch, capsys):
    monkeypatch.setattr(check_run, "BLOCK", 2)
    looked, stop = [], 3

    def look(folder, name, indexes, rules):
        if len(looked) == stop:
            raise KeyboardInterrupt
        looked.append(list(indexes))
        return check.check_rows(folder, name, indexes, rules)

    monkeypatch.setattr(check_run, "check_rows", look)
    journal = str(root / "journal.jsonl")
    rows = [row(identity=str(n)) for n in range(9)]
    write(root, [*rows, row(image="later.jpg", identity="9")])
    with pytest.raises(KeyboardInterrupt):
        found(root, journal=journal)
    with open(journal, "a") as file:
        file.write('{"id": "half')
    os.utime(journal, (0, datetime.datetime(1971, 1, 1, 12).timestamp()))
    assert "goes on" not in capsys.readouterr().out
    looked, stop = [], 10
    first = found(root, journal=journal)
    told = f"goes on from 1971-01-01 12:00: 6 rows are not looked at again; remove {journal} to begin anew\n"
    assert capsys.readouterr().out == told
    assert looked == [[6, 7], [8, 9]] and first.rows == 10 and first.problems["picture missing"] == 1
    looked = []
    (root / "later.jpg").write_bytes(PICTURE)
    again = found(root, journal=journal)
    assert looked == [[8, 9]] and again.rows == 10 and not again.problems["picture missing"]
    looked = []
    found(root, journal=journal, max_length=100)
    assert len(looked) == 5  # other rules
    write(root, [*rows, row(identity="8")])
    looked = []
    assert found(root, journal=journal, max_length=100).problems["duplicate id"] == 1
    assert len(looked) == 5  # another file


def test_findings_survive_json(root):
    write(root, [row(), row(image="gif.jpg")])
    here = found(root)
    back = Findings.from_json(json.loads(json.dumps(here.to_json())))
    assert back.ids.tolist() == here.ids.tolist()
    assert vars(back) | {"ids": 0} == vars(here) | {"ids": 0}


def test_a_sample_is_drawn_and_the_same_again(root):
    write(root, [row(image="none.jpg", identity=str(n)) for n in range(100)])
    some = found(root, sample=5)
    assert some.rows == some.problems["picture missing"] == 5
    assert found(root, sample=5).examples == some.examples != found(root, sample=5, seed=1).examples
    assert found(root, sample=100).rows == found(root, sample=101).rows == 100


def test_the_miniature_has_no_errors_and_a_page(demo):
    reports = check_run.check(demo, list(SOURCES), Rules(pictures="decode"))
    assert sum(report.found.count(ERROR) for report in reports) == 0
    assert [report.rows for report in reports] == [len(source) for source in open_sources(demo).values()]
    instruct = check_report.to_json(reports)["sharegpt4v_instruct"]
    assert instruct["formats"] == {"GIF": 1, "JPEG": 9, "PNG": 1}
    assert instruct["problems"]["extension"]["examples"][0][2].endswith("is a GIF")
    page = check_report.page(reports[:3], check_run.first_samples(demo, reports), demo)
    assert page.count('alt="histograms"') == 3 and page.count('alt="picture"') == 2
    assert "http" not in page.replace("http://www.w3.org", "")
    assert check_report.table(reports).splitlines()[12].split() == ["all", "61", "2,273,830", "61", "45", "0", "12"]


def test_what_data_say_is_text_on_a_terminal(root, capsys):
    write(root, [row(identity="\x1b[31mred\x07\u202e\ud800", image="a/\x1b[2J\nx.jpg")])
    out = check_report.table(check_run.check(root, [NAME], Rules()))
    assert all(line.isprintable() for line in out.splitlines())
    assert r"id \x1b[31mred\x07\u202e\ud800: a/\x1b[2J x.jpg" in out


def test_a_source_without_rows_is_an_error(root):
    (root / SOURCES["mathinstruct"].file).write_text("[]")
    write_source(root, "minigemini", [row(image="sam/1.jpg")])
    for report in check_run.check(root, ["mathinstruct", "minigemini"], Rules()):
        assert report.found.problems["file"] == report.found.count(ERROR) == 1
        assert "has no rows" in report.found.examples["file"][0][2]
    assert "has no rows, of 1 none is kept" in report.found.examples["file"][0][2]


def test_prepared_data_is_not_taken_for_a_root_without_files(root):
    (root / "trol_mixture/1.0.0").mkdir(parents=True)
    (root / "trol_mixture/1.0.0/dataset_info.json").write_text("{}")
    status, _, err = Program(launch("check_data"), f"--root={root}").wait()
    assert status == 2 and "is prepared data; python -m launch.prepare_data --verify --output=" in err


def test_what_data_say_is_text_on_the_page(root):
    write(root, [row(("human", "<image><script>alert(1)</script>"), ("gpt", "</s><b>\ud800"), identity="<i>")])
    reports = check_run.check(root, [NAME], Rules())
    page = check_report.page(reports, check_run.first_samples(root, reports), str(root))
    assert "<script>" not in page and "&lt;script&gt;" in page and "<i>" not in page


def test_the_program_tells_by_its_status(root, demo, tmp_path):
    folder = shutil.copytree(demo, tmp_path / "copy")
    files = f"--json={tmp_path}/found.json", f"--html={tmp_path}/found.html"
    good = Program(
        launch("check_data"), f"--root={folder}", "--sources=mathvision,allava_text", "--processes=1", *files
    )
    strict = Program(launch("check_data"), f"--root={demo}", "--processes=1", "--strict", "--journal=", "--sample=2")
    write(root, [row(image="none.jpg")])
    bad = Program(launch("check_data"), f"--root={root}", "--sources=" + NAME, "--processes=1")
    wrong = Program(launch("check_data"), f"--root={root}", "--sources=coco")
    none = Program(launch("check_data"), f"--root={root}/none")
    status, out, _ = good.wait()
    assert status == 0 and out.splitlines()[3].split()[:3] == ["all", "7", "146,040"]
    assert json.loads((tmp_path / "found.json").read_text())["mathvision"]["rows"] == 3
    assert (tmp_path / "found.html").read_text().startswith("<!doctype html>")
    assert not [name for place in (folder, demo) for name in os.listdir(place) if name.startswith("check_data")]
    assert strict.wait()[0] == 1
    status, out, _ = bad.wait()
    assert status == 1 and "1 x picture missing (error)" in out and "row 0, id 1: none.jpg" in out
    status, _, err = wrong.wait()
    assert status == 2 and err.startswith("error: --sources: 'coco' is no source")
    assert none.wait()[0] == 2


def test_a_complete_check_is_made_anew_and_a_quick_one_leaves_a_long_one_alone(root):
    write(root, [row()])
    began = check_run.journal_of(str(root), [NAME], Rules(), 0, 0)
    found(root, journal=began)
    kept = (root / began).read_bytes()
    whole = f"--root={root}", "--sources=" + NAME, "--processes=1"
    quick = *whole, "--sample=1"
    assert Program(launch("check_data"), *quick).wait()[0] == 0 and (root / began).read_bytes() == kept
    assert Program(launch("check_data"), *whole).wait()[0] == 0 and not os.path.exists(began)
    (root / "good.jpg").unlink()
    status, out, _ = Program(launch("check_data"), *whole).wait()
    assert status == 1 and "1 x picture missing (error)" in out


def test_a_journal_that_cannot_be_written_names_the_flag(root):
    write(root, [row()])
    with pytest.raises(UserError, match=r"good\.jpg/journal cannot be written: .*; name another file with --journal"):
        found(root, journal=str(root / "good.jpg" / "journal"))


@pytest.mark.slow
def test_several_processes_find_the_same(demo, monkeypatch):
    monkeypatch.setattr(check_run, "BLOCK", 3)
    one, two = (check_run.check(demo, list(SOURCES), Rules(), processes=count) for count in (1, 2))
    assert check_report.to_json(one) == check_report.to_json(two)


def test_rules_that_cannot_be_read_are_told(root):
    write(root, [row()])
    with pytest.raises(UserError, match="does not exist"):
        found(root, tokenizer=str(root / "none.json"))
