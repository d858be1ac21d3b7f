"""Every source's rows against the samples they should become, and damage named by file, row and field."""

import errno
import json
import os
import pathlib
import pickle
import sys
import time
import types

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from trol_jax.data import check, index, parquet, prepare
from trol_jax.data.demo import GEOMETRY, PROBLEM, SOLUTION
from trol_jax.data.sources import SOURCES, Sample, Source, Spec, open_sources
from trol_jax.errors import StorageError, UserError

BENCH = [
    {"from": "human", "value": "<image>\nWhat is on the bench?"},
    {"from": "gpt", "value": "A blue umbrella."},
    {"from": "human", "value": "Is it open?"},
    {"from": "gpt", "value": "No, it is folded."},
]
BENCH_TURNS = (
    ("user", "<image>\nWhat is on the bench?"),
    ("assistant", "A blue umbrella."),
    ("user", "Is it open?"),
    ("assistant", "No, it is folded."),
)
HAIKU = [{"from": "human", "value": "Write a haiku."}, {"from": "gpt", "value": "Soft taps ☔"}]
HAIKU_TURNS = (("user", "Write a haiku."), ("assistant", "Soft taps ☔"))
COCO = "coco/train2017/000000000123.jpg"
CUBES = {
    "id": "9001", "question": "How many cubes?\n<image1>", "options": [], "answer": "5", "solution": None, "level": 2,
    "subject": "counting", "image": "images/9001.jpg", "decoded_image": {"bytes": b"\xff\xd8\x00", "path": "9001.jpg"},
}  # fmt: skip


def chart(question, *paths, answer="2011", **more):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"image": list(paths), "messages": messages, "task_name": "qa_sft", "dataset_name": "ChartQA"} | more


def turns(question, answer):
    return ("user", question), ("assistant", answer)


# Rows as they are in the file, and what of them (source, id, turns, pictures) should come out.
CASES = {
    "sharegpt4v_caption": (
        [
            {"id": "1", "image": COCO, "conversations": BENCH},
            {"id": "2", "image": "sam/images/sa_1.jpg", "conversations": BENCH},
            {"id": 3, "image": "share_textvqa/sam/1.jpg", "conversations": BENCH},
        ],
        [("1", BENCH_TURNS, (COCO,)), ("3", BENCH_TURNS, ("share_textvqa/sam/1.jpg",))],
    ),
    "sharegpt4v_instruct": (
        [
            {"id": "1", "image": "sam/images/sa_1.jpg", "conversations": BENCH},
            {"id": "aBcD123_0", "model": "", "conversations": HAIKU},
            {"id": "1", "image": None, "conversations": HAIKU * 2},
        ],
        [
            ("1", BENCH_TURNS, ("sam/images/sa_1.jpg",)),
            ("aBcD123_0", HAIKU_TURNS, ()),
            ("1", HAIKU_TURNS * 2, ()),
        ],
    ),
    "allava_text": (
        [{"idx": "Xy12abC", "conversations": HAIKU}, {"id": "older", "conversations": HAIKU}],
        [("Xy12abC", HAIKU_TURNS, ()), ("older", HAIKU_TURNS, ())],
    ),
    "minigemini": (
        [
            {"id": "a", "image": "gqa/images/1.jpg", "conversations": BENCH},
            {"id": "b", "image": "chartqa/train/images/1.png", "conversations": BENCH},
            {"id": "c", "conversations": [HAIKU[0], {"from": "gpt", "value": "<h> docvqa/ </h>"}]},
            {"id": "d", "image": "docvqa/images/1.png", "conversations": BENCH},
            {"id": "e", "image": "ai2d/images/1.png", "conversations": BENCH},
            {"id": "f", "image": "dvqa/images/1.png", "conversations": BENCH},
        ],
        [
            ("b", BENCH_TURNS, ("chartqa/train/images/1.png",)),
            ("d", BENCH_TURNS, ("docvqa/images/1.png",)),
            ("e", BENCH_TURNS, ("ai2d/images/1.png",)),
            ("f", BENCH_TURNS, ("dvqa/images/1.png",)),
        ],
    ),
    "docdownstream": (
        [chart("<|image|>Which year?", "./imgs/ChartQA/1.png"), chart("<|image|><|image|>Which?", "a.png", "./b.png")],
        [
            ("0", turns("<image>Which year?", "2011"), ("imgs/ChartQA/1.png",)),
            ("1", turns("<image><image>Which?", "2011"), ("a.png", "b.png")),
        ],
    ),
    "docreason": (
        [chart("<|image|>Above 40?", "./imgs/ChartQA/1.png", answer="Yes.\nTo explain", task_name="any")],
        [("0", turns("<image>Above 40?", "Yes.\nTo explain"), ("imgs/ChartQA/1.png",))],
    ),
    "gllava_align": (
        [{"image": "geo3k/train/7/img_diagram.png", "conversations": BENCH[:2]}],
        [("0", BENCH_TURNS[:2], ("geo3k/train/7/img_diagram.png",))],
    ),
    "gllava_qa": (
        [{"image": f"geoqa_plus/{n}.png", "conversations": BENCH} for n in range(3)],
        [(str(n), BENCH_TURNS, (f"geoqa_plus/{n}.png",)) for n in range(3)],
    ),
    "mathvision": (
        [
            CUBES,
            CUBES | {"id": "2", "question": "<image1>Is it <image2>?", "options": ["1", "two"], "answer": "B"},
            CUBES | {"question": "Which?", "options": ["A", "B"], "decoded_image": None},
        ],
        [
            ("9001", turns("How many cubes?\n<image>", "5"), (b"\xff\xd8\x00",)),
            ("2", turns("<image>Is it ?\n(A) 1\n(B) two", "B"), (b"\xff\xd8\x00",)),
            ("9001", turns("<image>\nWhich?\n(A)\n(B)", "5"), ("images/9001.jpg",)),
        ],
    ),
    "mathinstruct": (
        [{"source": "data/PoT/x.json", "output": "print(6+7)", "instruction": "6 + 7?"}],
        [("0", turns("6 + 7?", "print(6+7)"), ())],
    ),
    "mathplus": (
        [{"instruction": "Solve 3x = 9.", "output": "The answer is 3."}],
        [("0", turns("Solve 3x = 9.", "The answer is 3."), ())],
    ),
}
SCHEMAS = {"gllava_align": GEOMETRY, "gllava_qa": GEOMETRY, "mathvision": PROBLEM, "mathplus": SOLUTION}


def write(root, name, rows):
    path = os.path.join(root, SOURCES[name].file)
    if path.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMAS[name]), path, row_group_size=2)
    else:
        text = "\n".join(map(json.dumps, rows)) if path.endswith(".jsonl") else json.dumps(rows, ensure_ascii=False)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


@pytest.mark.parametrize("name", SOURCES)
def test_rows_become_samples(name, tmp_path):
    rows, expected = CASES[name]
    write(tmp_path, name, rows)
    source = Source(SOURCES[name], tmp_path)
    expected = [Sample(name, *each) for each in expected]
    assert (len(source), source.records.total) == (len(expected), len(rows))
    assert [source[i] for i in range(len(source))] == expected
    sent = pickle.loads(pickle.dumps(source))
    assert sent[len(expected) - 1] == expected[-1] and pickle.loads(pickle.dumps(sent[0])) == expected[0]
    assert f"{len(expected)} samples" in repr(source)
    for beyond in (len(expected), -1):
        with pytest.raises(IndexError):
            source[beyond]


def test_the_table_is_that_of_the_original():
    assert len(SOURCES) == 11 and sum(spec.count for spec in SOURCES.values()) == 2_273_830
    assert len({spec.file for spec in SOURCES.values()}) == 11
    table = (pathlib.Path(__file__).parents[1] / "docs/data.md").read_text(encoding="utf-8").splitlines()
    for name, spec in SOURCES.items():
        (line,) = [line for line in table if line.startswith(f"| {name} |")]
        assert spec.file in line and f"{spec.count:,}" in line


TEXT_AND_PICTURE = {"id": "1", "image": COCO, "conversations": BENCH}
DAMAGED = [
    ("sharegpt4v_instruct", {"id": "1"}, "field conversations is missing; fields here: id"),
    ("sharegpt4v_instruct", TEXT_AND_PICTURE | {"conversations": []}, "field conversations is empty"),
    ("sharegpt4v_instruct", TEXT_AND_PICTURE | {"conversations": "?"}, "conversations is '.', must be a list"),
    (
        "sharegpt4v_instruct",
        TEXT_AND_PICTURE | {"conversations": ["?"]},
        r"conversations\[0\] is '.', must be an object",
    ),
    (
        "sharegpt4v_instruct",
        TEXT_AND_PICTURE | {"conversations": [*HAIKU, {"from": "tool", "value": ""}]},
        r"field conversations\[2\].from is 'tool', must be one of human, gpt",
    ),
    (
        "allava_text",
        {"conversations": [{"from": "human", "value": 3}]},
        r"field conversations\[0\].value is '3', must be text",
    ),
    ("sharegpt4v_caption", TEXT_AND_PICTURE | {"image": 7}, "field image is '7', must be a path or a list of paths"),
    (
        "sharegpt4v_caption",
        TEXT_AND_PICTURE | {"image": "a/../../b.jpg"},
        "field image: the path 'a/../../b.jpg' is not",
    ),
    ("minigemini", TEXT_AND_PICTURE | {"image": "docvqa/\\x.png"}, "field image: the path"),
    ("docdownstream", chart("?", "/etc/passwd"), "field image: the path '/etc/passwd' is not one below the root"),
    ("docreason", chart("?", "a.png") | {"messages": [{"role": "human", "content": ""}]}, "one of user, assistant"),
    ("gllava_qa", {"image": "a.png", "conversations": None}, "field conversations is 'None', must be a list"),
    ("mathvision", CUBES | {"answer": None}, "field answer is 'None', must be text"),
    ("mathvision", CUBES | {"options": ["x"] * 11}, "field options is .* up to 10 texts"),
    ("mathvision", CUBES | {"decoded_image": None, "image": "../1.jpg"}, "field image: the path"),
    ("mathinstruct", {"instruction": "6 + 7?"}, "field output is missing; fields here: instruction"),
    ("mathplus", {"instruction": None, "output": ""}, "field instruction is 'None', must be text"),
]


@pytest.mark.parametrize(("name", "row", "message"), DAMAGED)
def test_a_damaged_row_is_named(name, row, message, tmp_path):
    good = CASES[name][0][1 if name in ("minigemini",) else 0]
    write(tmp_path, name, [good, row])
    source = Source(SOURCES[name], tmp_path)
    assert source[0].source == name
    with pytest.raises(UserError, match=rf"{SOURCES[name].file}, row 1 of {name}: .*{message}"):
        source[1]


def test_a_link_that_leaves_the_root_is_named_with_source_and_row(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "coco").symlink_to(tmp_path)
    write(
        root,
        "sharegpt4v_instruct",
        [TEXT_AND_PICTURE | {"image": "gqa/1.jpg"}, TEXT_AND_PICTURE | {"image": "coco/1.jpg"}],
    )
    source = open_sources(root, ["sharegpt4v_instruct"])["sharegpt4v_instruct"]
    assert source[0].pictures == ("gqa/1.jpg",)
    with pytest.raises(UserError, match=r"row 1 of sharegpt4v_instruct: the path 'coco' leaves the root .* by a link"):
        source[1]


WITH_PICTURES = [name for name in SOURCES if name not in ("mathinstruct", "mathplus")]  # in which no field is a path


@pytest.mark.parametrize("path", ["docvqa/../../x.png", "/etc/passwd", "docvqa/far/x.png", "docvqa/far.png"])
@pytest.mark.parametrize("name", WITH_PICTURES)
def test_no_source_reads_beyond_the_root(name, path, tmp_path):
    """Nor is such a path prepared, or looked at by the check."""
    root = tmp_path / "root"
    (root / "docvqa").mkdir(parents=True)
    (root / "docvqa/far").symlink_to(tmp_path)
    (root / "docvqa/far.png").symlink_to(tmp_path / "x.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    row = CASES[name][0][3 if name == "minigemini" else 0] | {"image": path}
    row |= {"decoded_image": None} if name == "mathvision" else {}
    write(root, name, [row])
    sources = open_sources(root, [name])
    if name == "minigemini" and path.startswith("/"):
        assert len(sources[name]) == 0  # its filter keeps what begins with docvqa/
        return
    refused = rf"{SOURCES[name].file}, row 0 of {name}: .*(is not one below the root|leaves the root)"
    with pytest.raises(UserError, match=refused):
        sources[name][0]
    with pytest.raises(UserError, match=refused):
        prepare.prepare(sources, tmp_path / "output")
    found = check.check_rows(str(root), name, [0], check.Rules(pictures="decode"))
    assert found.problems == {"row": 1} and not found.formats


def test_missing_files_and_unknown_names(tmp_path):
    write(tmp_path, "mathplus", CASES["mathplus"][0])
    assert list(open_sources(tmp_path, ["mathplus"])) == ["mathplus"]
    with pytest.raises(UserError, match=r"lacks MathInstruct.json, gllava_qa.parquet"):
        open_sources(tmp_path, ["mathplus", "mathinstruct", "gllava_qa"])
    with pytest.raises(UserError, match="'mathplusplus' is no source; choose from sharegpt4v_caption, "):
        open_sources(tmp_path, ["mathplusplus"])
    with pytest.raises(ValueError, match="not filtered"):
        Source(Spec("x", "mathplus.parquet", 1, print, keep=bool), tmp_path)


def solutions(count):
    return [{"instruction": f"{n}?", "output": "so " * 50 + str(n)} for n in range(count)]


def test_large_groups_are_cut_once_and_again_when_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "LARGEST", 1000)
    monkeypatch.setattr(parquet, "SMALL", 300)
    path = tmp_path / "mathplus.parquet"
    for count in (64, 65):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(solutions(count), SOLUTION), path, compression="none")
        records = parquet.ParquetRecords(path)
        assert [records[i] for i in range(len(records))] == list(enumerate(solutions(count)))
        copied = pyarrow.parquet.read_metadata(f"{path}.groups")
        assert copied.num_row_groups > 4 and copied.num_rows == count
        assert len(records._groups) <= parquet.GROUPS
        with monkeypatch.context() as patch:
            patch.setattr(index, "writing", None)
            patch.setattr(parquet, "writing", None)
            assert parquet.ParquetRecords(path)[5] == (5, solutions(6)[5])
    assert sorted(os.listdir(tmp_path)) == ["mathplus.parquet", "mathplus.parquet.groups"]


def test_parquet_that_fails_for_a_moment_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "mathplus.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(solutions(9), SOLUTION), path)
    records, opened = parquet.ParquetRecords(path), []

    class File(pyarrow.parquet.ParquetFile):
        def read_row_group(self, *args, **options):
            opened.append(self)
            if failing(self):
                raise OSError(errno.ESTALE, "Stale file handle")
            return super().read_row_group(*args, **options)

    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", File)
    failing = lambda file: file is opened[0]  # noqa: E731
    assert records[5] == (5, solutions(9)[5]) and len(opened) == 2
    records._reset()
    failing = lambda file: True  # noqa: E731
    with pytest.raises(StorageError, match=f"{path}, rows 0 to 8 cannot be read: .*Stale file handle$"):
        records[5]


@pytest.mark.parametrize(
    "error", [pyarrow.ArrowMemoryError("malloc failed"), MemoryError(), OSError(errno.EMFILE, "Too many open files")]
)
def test_a_machine_without_memory_or_open_files_makes_no_row_bad(error, tmp_path, monkeypatch):
    path = tmp_path / "mathplus.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(solutions(2), SOLUTION), path)
    records = parquet.ParquetRecords(path)

    def fails(*_):
        raise error

    monkeypatch.setattr(records, "_read", fails)
    with pytest.raises(StorageError, match=f"{path}, rows 0 to 1 cannot be read: .*(malloc|memory|open files)"):
        records[0]


def test_damaged_parquet_is_named(tmp_path):
    path = tmp_path / "mathplus.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(solutions(1000), SOLUTION), path, row_group_size=100)
    sent = pickle.dumps(parquet.ParquetRecords(path))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"mathplus.parquet cannot be read as parquet: .*copy the file again"):
        parquet.ParquetRecords(path)
    with pytest.raises(UserError, match="has changed since this program began"):
        pickle.loads(sent)[0]
    path.write_bytes(b"\0" * 2000 + content[2000:])
    records = parquet.ParquetRecords(path)
    assert records[999] == (999, solutions(1000)[999])
    with pytest.raises(UserError, match=r"mathplus.parquet, rows 0 to 99 cannot be read: "):
        records[7]
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        parquet.ParquetRecords(path)


def test_damage_that_a_copy_of_small_groups_meets_is_not_told_as_one_of_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "LARGEST", 1000)
    path = tmp_path / "mathplus.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(solutions(1000), SOLUTION), path)
    path.write_bytes(b"PAR1" + b"\0" * 2000 + path.read_bytes()[2004:])
    with pytest.raises(UserError, match=r"mathplus.parquet cannot be read: .*; copy the file again"):
        parquet.ParquetRecords(path)
    assert os.listdir(tmp_path) == ["mathplus.parquet"]


def test_values_that_python_does_not_have_are_named_and_other_columns_do_not_matter(tmp_path):
    texts = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, pyarrow.array([b"1\xff", b"2?"], pyarrow.binary()).buffers()
    )
    days = pyarrow.array([2**31 - 1] * 2, pyarrow.date32())  # in the year 5,881,580
    table = pyarrow.table({"instruction": texts, "output": ["1", "2"], "day": days})
    pyarrow.parquet.write_table(table, tmp_path / "mathplus.parquet")
    source = open_sources(tmp_path, ["mathplus"])["mathplus"]
    assert pickle.loads(pickle.dumps(source))[1].turns == turns("2?", "2")
    with pytest.raises(UserError, match=r"mathplus.parquet, row 0 cannot be read: .*codec can't decode byte 0xff"):
        source[0]
    with pytest.raises(UserError, match=r"mathplus.parquet, row 1 cannot be read: "):
        parquet.ParquetRecords(tmp_path / "mathplus.parquet")[1]


def test_the_example_of_the_workspace_is_a_source(tmp_path, monkeypatch):
    text = (pathlib.Path(__file__).parents[1] / "WORKSPACE.md").read_text(encoding="utf-8")
    _, guide = text.split("### A training source, for example\n")
    reader, spec, case = (block.split("\n```")[0] for block in guide.split("```python\n")[1:])
    assert guide.count("\n") < 60
    museum = types.ModuleType("trol_jax.data.sources.museum")
    monkeypatch.setitem(sys.modules, museum.__name__, museum)
    exec(reader, museum.__dict__)
    rows, expected = eval(f"{{{case}\n}}", {"turns": turns})["museum"]
    monkeypatch.setitem(SOURCES, "museum", eval(spec, {"Spec": Spec, "museum": museum}))
    write(tmp_path, "museum", rows)
    source = open_sources(tmp_path, ["museum"])["museum"]
    assert [source[i] for i in range(len(source))] == [Sample("museum", *each) for each in expected]
    assert pickle.loads(pickle.dumps(source))[0] == source[0] and source.records.total == 2
