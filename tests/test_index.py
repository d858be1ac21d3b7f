"""Rows of large JSON files: found without parsing, wherever blocks end; offsets that are kept and known to be stale."""

import errno
import json
import os
import pickle
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trol_jax.data import index, scan
from trol_jax.data.index import places, row_index
from trol_jax.data.records import JsonRecords
from trol_jax.data.sources.filters import ByPicture
from trol_jax.errors import StorageError, UserError

TRICKY = [
    {},
    {"a": "}] , {", "b": [[], {}, [{"c": {"d": "["}}]]},
    {"quote": '"', "slash": "\\", "both": '\\"', "run": '\\\\\\"\\\\', "end": "\\"},
    {"naïve": "図, 😀", "escaped": "\u2028\x7f\x00", "n": [-1.5e-3, None, True]},
    {'key "}"': "x" * 300},
]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('\\"{}[],: \nxé😀')),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.sampled_from('"\\}]x'), max_size=3), inner),
    max_leaves=8,
)
objects = st.lists(st.dictionaries(st.text(max_size=3), values, max_size=3), max_size=5)


@pytest.fixture
def write(tmp_path):
    def write(content, name="data.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return str(path)

    return write


def parsed(path):
    return [json.loads(row) for _, _, row in scan.rows(path)]


@settings(max_examples=40, deadline=None)
@given(objects, st.sampled_from([None, 1, 4]), st.booleans(), st.integers(1, 40), st.sampled_from([b"", scan.BOM]))
def test_rows_of_an_array_are_those_of_a_parser(tmp_path_factory, rows, indent, ascii, block, bom):
    path = tmp_path_factory.mktemp("scan") / "data.json"
    text = bom + json.dumps(rows, indent=indent, ensure_ascii=ascii).encode() + b" \n"
    path.write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "BLOCK", block)
        found = list(scan.rows(str(path)))
    assert [json.loads(row) for _, _, row in found] == rows
    assert [number for number, _, _ in found] == list(range(len(rows)))
    assert all(text[start : start + len(row)] == row for _, start, row in found)


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1 << 20])
def test_tricky_rows_at_any_size_of_block(write, monkeypatch, block):
    monkeypatch.setattr(scan, "BLOCK", block)
    assert parsed(write(TRICKY)) == TRICKY
    assert parsed(write("\n".join(map(json.dumps, TRICKY)).encode(), "data.jsonl")) == TRICKY
    assert parsed(write(b" [ ] ")) == []


DAMAGED = {
    b"": "is empty",
    b'{"a": 1}': "begins with '{\"a\": 1}', should hold a JSON array",
    b'[{"a": 1}, {"b": 2},]': "byte 19, after row 1: a comma before the ]",
    b'[{"a": 1} {"b": 2}]': "byte 10, after row 0: '{\"b\": 2}]' where a comma or ] should follow",
    b'[{"a": 1},, {}]': "byte 9, after row 0: ', {}]' where an object",
    b"[1, 2, {}]": "byte 1, before row 0: '1, 2, {}]' where an object",
    b'[{}, "text"]': "byte 3, after row 0: '\"text\"]' where an object",
    b"[{}, [{}]]": "byte 3, after row 0: '[{}]]' where an object",
    b"[{}] {}": "byte 5: '{}' after the end of the array",
    b"[{}}, {}]": "byte 3: a } that closes nothing",
    b"[{}, {": "ends inside row 1, which begins at byte 5",
    b"[{}, ": "ends before row 1, at byte 5",
    b"[": "ends before row 0, at byte 1",
    b'[{}, {"a": "b}]': "ends inside row 1, which begins at byte 5",
}


@pytest.mark.parametrize("block", [3, 1 << 20])
@pytest.mark.parametrize("content", DAMAGED)
def test_damage_between_rows_is_named_with_its_byte(write, monkeypatch, content, block):
    monkeypatch.setattr(scan, "BLOCK", block)
    with pytest.raises(UserError) as error:
        row_index(path := write(content))
    assert path in str(error.value)
    expected = DAMAGED[content]
    assert expected.split("'")[0] in str(error.value)  # how much is quoted depends on the block
    assert block == 3 or expected in str(error.value)
    assert os.listdir(os.path.dirname(path)) == ["data.json"]


def test_every_cut_of_an_array_is_told(write):
    text = json.dumps(TRICKY[:3]).encode()
    for length in range(len(text)):
        with pytest.raises(UserError, match=r"ends|is empty"):
            parsed(write(text[:length]))


def test_a_row_without_end(write, monkeypatch):
    monkeypatch.setattr(scan, "MAX_ROW", 1000)
    with pytest.raises(UserError, match="row 1, which begins at byte 4, does not end within"):
        parsed(write(b"[{}," + b'{"a": ["' + b"x" * (2 * scan.BLOCK)))
    with pytest.raises(UserError, match="row 0, which begins at byte 0, does not end within"):
        parsed(write(b'{"a": "' + b"x" * 2000, "data.jsonl"))


def test_lines_blank_windows_and_cut(write):
    records = JsonRecords(write(scan.BOM + b'{"a": 1}\r\n\r\n \n{"a": "\xc3\xa9"}\n{"a": 3}', "data.jsonl"))
    assert [records[i] for i in range(len(records))] == [(0, {"a": 1}), (3, {"a": "é"}), (4, {"a": 3})]
    with pytest.raises(UserError, match="ends inside row 1, which begins at byte 9"):
        row_index(write(b'{"a": 1}\n{"a": 2', "cut.jsonl"))


def test_an_index_is_used_until_the_data_change(write, monkeypatch):
    path = write([{"n": n} for n in range(5)])
    assert row_index(path).rows["number"].tolist() == [0, 1, 2, 3, 4]
    monkeypatch.setattr(scan, "rows", lambda path: pytest.fail("the index was built again"))
    assert len(row_index(path).rows) == 5
    monkeypatch.undo()
    write([{"n": n} for n in range(6)])
    assert len(row_index(path).rows) == 6
    status = os.stat(path)
    write([{"n": n} for n in range(4)] + [{"n": "123456789"}])  # as long as before
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(path).st_size == status.st_size
    assert len(row_index(path).rows) == 5
    assert sorted(os.listdir(os.path.dirname(path))) == ["data.json", "data.json.index"]


def test_what_a_killed_process_left_goes_and_what_another_writes_stays(write):
    path = write(TRICKY)
    left, others = f"{path}.index.0123abcd.tmp", f"{path}.groups.0123abcd.tmp"
    for each in (left, others):
        open(each, "wb").close()
    with index.writing(path, ".index") as (held, _):
        row_index(path)
        assert os.path.exists(held) and not os.path.exists(left) and os.path.exists(others)
        os.replace(f"{path}.index", held)
    assert sorted(os.listdir(os.path.dirname(path))) == [
        "data.json",
        "data.json.groups.0123abcd.tmp",
        "data.json.index",
    ]


@pytest.mark.parametrize("damage", [b"", b"{}", b"no index at all" * 100, None])
def test_a_damaged_index_is_built_again(write, damage):
    path = write(TRICKY)
    good = row_index(path).rows.tolist()
    with open(path + ".index", "r+b") as file:
        file.truncate(index.HEADER + 20)
        if damage is not None:
            file.truncate(0)
            file.write(damage)
    assert row_index(path).rows.tolist() == good


def test_filters_count_and_another_filter_is_another_index(write):
    rows = [{"image": "sam/1.jpg"}, {"image": "gqa/1.jpg"}, {"id": "text"}, {"image": "./sam/2.jpg"}]
    path = write(rows)
    without = row_index(path, ByPicture(dropped=("sam/",)))
    assert (without.rows["number"].tolist(), without.total) == ([1, 2], 4)
    assert row_index(path, ByPicture(kept=("sam/",))).rows["number"].tolist() == [0, 3]
    assert len(row_index(path).rows) == 4
    records = JsonRecords(path, ByPicture(dropped=("sam/",)))
    assert (len(records), records.total, records[0]) == (2, 4, (1, {"image": "gqa/1.jpg"}))


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ({"image": "dvqa/1.png"}, True),
        ({"text": 'say "image": "dvqa/1.png"', "image": "gqa/1.png"}, False),
        ({"text": "image", "more": ["image", "dvqa/"]}, False),
        ({"inner": {"image": "gqa/1.png"}, "image": "dvqa/1.png"}, True),
        ({"inner": {"image": "dvqa/1.png"}, "image": "gqa/1.png"}, False),
        ({"image": ["./dvqa/1.png"]}, True),
        ({"image": None}, False),
        ({"image": "\u0064vqa/é.png"}, True),
    ],
)
def test_filters_see_the_field_and_not_the_text(row, kept):
    assert ByPicture(kept=("dvqa/",))(json.dumps(row).encode()) == kept
    assert ByPicture(dropped=("dvqa/",))(json.dumps(row, ensure_ascii=False).encode()) != kept


def test_filters_leave_a_row_of_any_depth_to_its_reader():
    row = b'{"image": "gqa/1.png", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "image": "dvqa/1.png"}'
    assert not ByPicture(kept=("dvqa/",))(row) and ByPicture(dropped=("dvqa/",))(row)


def test_where_the_folder_cannot_be_written_the_cache_is_used(write, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write(TRICKY)
    beside, cached = places(path, ".index")
    assert beside == path + ".index" and cached.startswith(str(tmp_path / "cache" / "trol_jax"))
    monkeypatch.setattr(index, "places", lambda *_: [f"{path}/no folder", cached])
    assert len(row_index(path).rows) == len(TRICKY)
    assert os.path.exists(cached)
    monkeypatch.setattr(scan, "rows", lambda path: pytest.fail("the index was built again"))
    assert len(row_index(path).rows) == len(TRICKY)
    monkeypatch.setattr(index, "places", lambda *_: [f"{path}/no folder", f"{path}/neither"])
    with pytest.raises(UserError, match=r"neither beside it nor to"):
        row_index(path)


def test_damage_inside_a_row_is_named_when_it_is_read(write):
    records = JsonRecords(write(b'[{"a": 1}, {"a": nothing}, {"a": "\xff"}, {"a": 3}, {"a": [}}]'))
    assert len(records) == 5 and records[3] == (3, {"a": 3})
    reasons = {
        1: "at byte 11: no JSON: Expecting value at character 6",
        2: "byte 34 is not UTF-8",
        4: "Expecting value",
    }
    for number, reason in reasons.items():
        with pytest.raises(UserError, match=rf"data.json, row {number}, .*{reason}"):
            records[number]
    lines = JsonRecords(write(b"[1, 2]\n", "data.jsonl"))
    with pytest.raises(UserError, match=r"row 0, at byte 0: '\[1, 2\]' is not an object"):
        lines[0]
    for beyond in (5, -1):
        with pytest.raises(IndexError):
            records[beyond]


def test_what_is_sent_to_workers_is_small_and_tells_changes(write):
    path = write([{"n": n} for n in range(1000)])
    sent = pickle.dumps(JsonRecords(path))
    assert len(sent) < 1000
    assert pickle.loads(sent)[999] == (999, {"n": 999})
    write([{"n": n} for n in range(999)])
    with pytest.raises(UserError, match="has changed since this program began"):
        pickle.loads(sent)[0]


def test_a_handle_that_is_stale_is_opened_anew(write, monkeypatch):
    records = JsonRecords(write([{"n": n} for n in range(9)]))
    stale, read = [records._open[0]], os.pread

    def pread(descriptor, *where):
        if not stale or descriptor in stale:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(descriptor, *where)

    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(os, "pread", pread)
    assert records[5] == (5, {"n": 5})
    stale.clear()
    with pytest.raises(StorageError, match=f"{records.path}, row 5, cannot be read: Stale file handle"):
        records[5]


def test_a_file_that_fails_while_it_is_indexed_is_named(write, monkeypatch):
    def fails(file, name):
        raise OSError(errno.EIO, "Input/output error")
        yield

    path = write([{"n": 1}])
    monkeypatch.setattr(scan, "array", fails)
    with pytest.raises(StorageError, match=f"^{path} cannot be read: Input/output error"):
        row_index(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        row_index(str(tmp_path / "none.json"))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_and_a_folder_are_refused_at_once(make, tmp_path):
    make(tmp_path / "rows.json")
    with pytest.raises(StorageError, match=r"rows\.json cannot be read: it is a folder, a pipe or a device"):
        row_index(str(tmp_path / "rows.json"))


def test_memory_does_not_grow_with_the_file(write):
    row = json.dumps({"id": "0", "conversations": [{"from": "human", "value": "text " * 100}] * 3})
    path = write(b"[" + ", ".join([row] * 3300).encode() + b"]")
    assert os.path.getsize(path) > 5e6
    tracemalloc.start()
    records = JsonRecords(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6 * 0.8
    assert len(records) == 3300 and records[1234] == (1234, json.loads(row))
