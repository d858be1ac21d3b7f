"""Files of torch.save: what is read and written, and above all what is refused, and that nothing in a file is run."""

import io
import os
import pickle
import random
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

from convert import torch_files
from trol_jax.errors import UserError

FIXTURE = Path(__file__).parent / "data" / "torch" / "state_dict.pt"  # written by PyTorch 2.13

# The names in the pickle, for a process without PyTorch: stand-ins, seen while a pickle is made only.


def named(module: str, name: str, value):
    value.__module__, value.__qualname__, value.__name__ = module, name, name
    return value


REBUILD = named("torch._utils", "_rebuild_tensor_v2", lambda *_: None)
PARAMETER = named("torch._utils", "_rebuild_parameter", lambda *_: None)
KINDS = {dtype: named("torch", name, type(name, (), {})) for name, dtype in torch_files.STORAGES.items()}
MODULES = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
for stand_in in (REBUILD, PARAMETER, *KINDS.values()):
    setattr(MODULES[stand_in.__module__], stand_in.__name__, stand_in)


class Storage:
    def __init__(self, key: str, dtype, numel: int):
        self.persistent_id = ("storage", KINDS[np.dtype(dtype)], key, "cpu", numel)


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def tensor(storage, size, stride, offset=0):
    return Call(REBUILD, storage, offset, size, stride, False, OrderedDict())


def pickled(value, protocol: int = 2) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return getattr(item, "persistent_id", None) if isinstance(item, Storage) else None

    file = io.BytesIO()
    with mock.patch.dict(sys.modules, MODULES):
        Pickler(file, protocol).dump(value)
    return file.getvalue()


def archive(path: Path, value, storages=(), *, order: bytes = b"little", deflated: str = "") -> Path:
    """A file as torch.save writes it; `value` is pickled unless it is bytes already."""
    members = {"data.pkl": value if isinstance(value, bytes) else pickled(value), "byteorder": order}
    members |= {f"data/{key}": np.asarray(array).tobytes() for key, array in enumerate(storages)}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in [*members.items(), ("version", b"3\n")]:
            method = zipfile.ZIP_DEFLATED if name == deflated else zipfile.ZIP_STORED
            file.writestr(zipfile.ZipInfo(f"model/{name}"), data, method)
    return path


NUMBERS = np.arange(12, dtype=np.float32)


def numbers(numel: int = 12, dtype=np.float32, key: str = "0") -> Storage:
    return Storage(key, dtype, numel)


def good(path: Path) -> Path:
    """Two storages, three tensors, as in most of the files damaged below."""
    whole, steps = numbers(), Storage("1", np.int64, 3)
    tensors = {"whole": tensor(whole, (3, 4), (4, 1)), "steps": tensor(steps, (3,), (1,))}
    tensors["part"] = tensor(whole, (2, 2), (4, 1), offset=5)
    return archive(path, OrderedDict(tensors), [NUMBERS, np.array([2, -3, 5])])


GOOD = {"whole": NUMBERS.reshape(3, 4), "steps": np.array([2, -3, 5]), "part": np.float32([[5, 6], [9, 10]])}


def assert_same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as error:
        torch_files.read(path)
    message = str(error.value)
    assert message.startswith(f"{path} ") and "\n" not in message and len(message) < len(str(path)) + 400
    for word in words:
        assert word in message, message


# What is read.


def test_views_of_one_storage_are_views_of_the_file(tmp_path):
    found = torch_files.read(good(tmp_path / "a.pt"))
    assert_same(found, GOOD)
    assert np.shares_memory(found["whole"], found["part"])
    base = found["whole"]
    while base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found["whole"][0, 0] = 1


def expected_of_fixture() -> dict[str, np.ndarray]:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6) / 4
    return {
        "fp16": np.arange(6).reshape(2, 3).astype(np.float16) / np.float16(2),
        "bf16": (np.arange(6).reshape(3, 2) * 3).astype(ml_dtypes.bfloat16),
        "transposed": whole.T,
        "columns": whole[1:, 1:5:2],
        "steps": np.array(7),
        "mask": np.array([True, False, True]),
        "empty": np.zeros((0, 3), np.float32),
        "gate.weight": np.arange(4, dtype=np.float32)[None] / 8 - 1,
        "gate.bias": np.float32([0.5]),
    }


def test_reads_a_file_of_pytorch():
    found = torch_files.read(FIXTURE)
    assert_same(found, expected_of_fixture())
    assert found["transposed"].strides == (4, 24) and np.shares_memory(found["transposed"], found["columns"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_and_parameters(tmp_path, protocol):
    state = OrderedDict(w=Call(PARAMETER, tensor(numbers(), (12,), (1,)), True, OrderedDict()))
    state._metadata = OrderedDict({"": {"version": 1}})
    assert_same(torch_files.read(archive(tmp_path / "a.pt", pickled(state, protocol), [NUMBERS])), {"w": NUMBERS})


def test_a_plain_dict_and_an_empty_one(tmp_path):
    assert_same(
        torch_files.read(archive(tmp_path / "a.pt", {"w": tensor(numbers(), (), ())}, [NUMBERS])), {"w": NUMBERS[0]}
    )
    assert torch_files.read(archive(tmp_path / "b.pt", OrderedDict())) == {}


# What is written.


@pytest.mark.parametrize("dtype", torch_files.STORAGES.values(), ids=str)
def test_what_is_written_is_read(tmp_path, dtype):
    array = np.arange(6).astype(dtype).reshape(2, 3)
    tensors = {"0.weight": array, "0.bias": array.T, "scalar": array[1, 1], "none": array[:0], "é\n": array[None]}
    torch_files.write(tmp_path / "a.pt", tensors)
    found = torch_files.read(tmp_path / "a.pt")
    assert_same(found, {name: np.asarray(value) for name, value in tensors.items()})
    assert all(value.ctypes.data % torch_files.ALIGNMENT == 0 for value in found.values() if value.size)
    assert zipfile.ZipFile(tmp_path / "a.pt").testzip() is None


def test_equal_tensors_make_equal_files(tmp_path):
    for name in ("a", "b"):
        torch_files.write(tmp_path / name, GOOD)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = good(tmp_path / "a.pt")
    with pytest.raises(UserError, match="'z' is of type complex64"):
        torch_files.write(path, {"z": np.zeros(2, np.complex64)})
    with pytest.raises(UserError, match="'z' is of type >f4"):
        torch_files.write(path, {"z": np.zeros(2, ">f4")})
    monkeypatch.setattr(os, "replace", mock.Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        torch_files.write(path, {"z": NUMBERS})
    assert os.listdir(tmp_path) == ["a.pt"]
    assert_same(torch_files.read(path), GOOD)


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be written: No such file"):
        torch_files.write(tmp_path / "none" / "a.pt", GOOD)


# What would run code.


def hidden(where: str, evil) -> object:
    weight = tensor(numbers(), (12,), (1,))
    if where == "metadata":
        state = OrderedDict(w=weight)
        state._metadata = {"": evil}
        return state
    return {
        "whole": evil,
        "value": {"w": evil},
        "name": [weight, {evil: weight}],
        "key of a storage": {"w": tensor(Call(REBUILD, evil), (12,), (1,))},
        "size": {"w": Call(REBUILD, numbers(), 0, evil, (1,), False, OrderedDict())},
        "hooks": {"w": Call(REBUILD, numbers(), 0, (12,), (1,), False, evil)},
    }[where]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("where", ["whole", "value", "name", "metadata", "key of a storage", "size", "hooks"])
def test_code_is_refused_by_name_and_not_run(tmp_path, where, protocol):
    marker = tmp_path / "marker"
    evils = {f"'{os.name}.system'": Call(os.system, f"touch {marker}")}
    evils["'builtins.eval'" if protocol > 2 else "'__builtin__.eval'"] = Call(eval, f"open({str(marker)!r}, 'w')")
    for name, evil in evils.items():
        refused(archive(tmp_path / "a.pt", pickled(hidden(where, evil), protocol), [NUMBERS]), name, "nothing was run")
    assert not marker.exists()
    pickle.loads(pickled(hidden("value", Call(os.system, f"touch {marker}"))))
    assert marker.exists(), "the file of this test does not run code at all"


def state_of(*opcodes: bytes) -> bytes:
    """A pickle {"w": what the opcodes leave}."""
    return b"\x80\x02}" + b"X\1\0\0\0w" + b"".join(opcodes) + b"s."


STRANGE = {
    "a call of a storage's type": (state_of(b"ctorch\nFloatStorage\n)R"), "calls"),
    "a call of a name": (state_of(b"X\4\0\0\0evil)R"), "calls"),
    "a call of a tensor with no tuple": (state_of(b"ctorch._utils\n_rebuild_tensor_v2\n]R"), "calls"),
    "too few arguments": (state_of(b"ctorch._utils\n_rebuild_tensor_v2\n)R"), "TypeError"),
    "attributes of a function": (state_of(b"ctorch._utils\n_rebuild_tensor_v2\n}b"), "sets attributes"),
    "attributes of a type": (state_of(b"ctorch\nFloatStorage\n}b"), "sets attributes"),
    "INST": (state_of(b"(ios\nsystem\n"), "INST"),
    "OBJ": (state_of(b"(cos\nsystem\no"), "os.system"),
    "NEWOBJ": (state_of(b"ccollections\nOrderedDict\n)\x81"), "NEWOBJ"),
    "EXT1": (state_of(b"\x82\1"), "EXT1"),
    "a persistent id of text": (state_of(b"Pevil\n"), "PERSID"),
    "a persistent id of a string": (state_of(b"X\4\0\0\0evilQ"), "storage that is not described"),
    "a name out of a call": (state_of(b"ccollections\nOrderedDict\n)R)\x93"), "'?'"),
    "a path as module": (state_of(b"cos.path\nos.system\n"), "'os.path.os.system'"),
    "two names in one": (state_of(b"ctorch FloatStorage\n\n"), "damaged", "asks for"),
    "an escape sequence": (state_of(b"cos\n\x1b[2Jsystem\n"), r"\x1b[2J"),
    "a module": (b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81}b.", "'torch.nn.modules.linear.Linear'"),
    "an item of a tuple": (b"\x80\x02)K\1a.", "puts items into"),
    "a tuple as name": (b"\x80\x02}(K\1tK\1s.", "keys that are no names"),
    "a list as name": (b"\x80\x02}]K\1s.", "keys that are no names"),
    "three items in a dict": (b"\x80\x02}(K\1K\1K\1u.", "damaged"),
    "no stack": (b"\x80\x02.", "damaged"),
    "no mark": (b"\x80\x02K\1t.", "damaged"),
    "no memo": (b"\x80\x02h\7.", "damaged"),
    "no end": (b"\x80\x02}", "damaged"),
    "nothing": (b"", "damaged"),
    "no opcode": (b"\x80\x02\xff.", "damaged"),
    "a number of 2**31 bytes": (state_of(b"\x8b\xff\xff\xff\x7f"), "damaged"),
    "a text of 2**63 bytes": (state_of(b"\x8d" + b"\xff" * 7 + b"\x7f"), "damaged"),
    "bytes of 2**32": (state_of(b"B\xff\xff\xff\xff"), "damaged"),
    "a number of a million digits": (state_of(b"I" + b"9" * 10**6 + b"\n"), "damaged"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_strange_pickles(tmp_path, case):
    program, *words = STRANGE[case]
    with pytest.raises(UserError) as error:
        torch_files.read(archive(tmp_path / "a.pt", program))
    assert any(word in str(error.value) for word in words) and "\n" not in str(error.value), error.value


@pytest.mark.parametrize("opcodes", [b"]" * 10**5, b"(" * 10**5, b"}" * 10**5, b")" + b"\x85" * 10**5])
def test_depth_ends_in_an_error(tmp_path, opcodes):
    refused(archive(tmp_path / "a.pt", b"\x80\x02" + opcodes + b"."))
    refused(archive(tmp_path / "a.pt", state_of(opcodes)))
    refused(archive(tmp_path / "a.pt", b"\x80\x02}(" + opcodes + b"K\1u."))  # as a name: hashed it would overflow


def test_a_list_within_lists(tmp_path):
    refused(archive(tmp_path / "a.pt", state_of(b"]" * 10**5 + b"a" * (10**5 - 1))), "a value of type list under 'w'")


def test_a_memo_far_away_takes_no_memory(tmp_path):
    far = b"\x80\x02}r\xff\xff\xff\xff."
    assert torch_files.read(archive(tmp_path / "a.pt", far)) == {}


def test_a_pickle_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "LARGEST_PICKLE", 100)
    refused(good(tmp_path / "a.pt"), "data.pkl of", "more than 100")
    assert torch_files.read(archive(tmp_path / "b.pt", b"\x80\x02}" + b"q\1" * 48 + b".")) == {}


# What is no state dict.


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"state_dict": {"w": 1}, "epoch": 3}, ["a dict of 1 entries under 'state_dict'"]),
        ({"epoch": 3}, ["a value of type int under 'epoch'"]),
        ({"w" * 1000: None}, ["NoneType", "wwww"]),
        ({1: tensor(numbers(), (12,), (1,))}, ["a tensor under 1"]),
        ({"w": numbers()}, ["a value of type Storage under 'w'"]),
        ([1, 2], ["a value of type list where a state dict"]),
        (tensor(numbers(), (12,), (1,)), ["a tensor where a state dict"]),
    ],
)
def test_not_a_flat_state_dict(tmp_path, value, words):
    refused(archive(tmp_path / "a.pt", value, [NUMBERS]), *words, "model.state_dict()")


def test_other_files(tmp_path):
    path = tmp_path / "a.pt"
    refused(path, "cannot be read: No such file")
    refused(tmp_path, "cannot be read: Is a directory")
    for content in (b"", b"P", b"hello", b"\x1f\x8b", b"PK\5\6" + bytes(18)):
        path.write_bytes(content)
        refused(path, "not a file of torch.save")
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2))
    refused(path, "old format of torch.save", "safetensors")
    path.write_bytes(b"PK\3\4" + bytes(100))
    refused(path, "damaged")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("word/document.xml", "<w/>")
    refused(path, "0 members <name>/data.pkl")


# Sizes and storages.

WRONG_VIEWS = {
    "one too many": ((13,), (1,), 0),
    "behind the end": ((3,), (1,), 10),
    "a step too wide": ((3, 4), (5, 1), 0),
    "an offset behind the end": ((), (), 12),
    "an offset of nothing behind the end": ((0,), (1,), 13),
    "a negative offset": ((3,), (1,), -1),
    "a negative stride": ((3,), (-1,), 5),
    "a negative size": ((-3,), (1,), 0),
    "two negative sizes": ((-3, -4), (4, 1), 0),
    "huge": ((10**12,), (1,), 0),
    "huge, of one number": ((10**12,), (0,), 0),
    "over 64 bits": ((2**32, 2**32), (2**32, 1), 0),
    "over 64 bits, back at 4": ((2**62, 4), (4, 1), 0),
    "an offset of 64 bits": ((4,), (1,), 2**64 - 2),
    "a stride of 64 bits": ((2, 2), (2**64 + 1, 1), 0),
    "a huge nothing": ((0, 2**62, 2**62), (1, 1, 1), 0),
    "sizes without strides": ((3, 4), (4,), 0),
    "70 axes": ((1,) * 70, (1,) * 70, 0),
    "a size of text": (("3",), (1,), 0),
    "a size of truth": ((True,), (1,), 0),
    "a size that is not whole": ((3.0,), (1,), 0),
    "a size without a tuple": ([3], [1], 0),
}


@pytest.mark.parametrize("case", WRONG_VIEWS)
def test_views_that_leave_their_storage(tmp_path, case):
    refused(archive(tmp_path / "a.pt", {"w": tensor(numbers(), *WRONG_VIEWS[case])}, [NUMBERS]))


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        (numbers(13), ["'w' of 13 float32 in a storage of 48 bytes"]),
        (numbers(11), ["'w' of 11 float32 in a storage of 48 bytes"]),
        (numbers(12, np.float64), ["'w' of 12 float64"]),
        (numbers(2**62), ["48 bytes"]),
        (numbers(2**62 + 12), ["48 bytes"]),  # times 4 it is 48 again in 64 bits
        (numbers(-12), ["not described"]),
        (numbers(12.0), ["not described"]),
        (numbers(key="1"), ["'w' without its storage '1'"]),
        (numbers(key="../version"), ["without its storage"]),
        (numbers(key=0), ["not described"]),
    ],
)
def test_claims_about_a_storage(tmp_path, storage, words):
    refused(archive(tmp_path / "a.pt", {"w": tensor(storage, (1,), (1,))}, [NUMBERS]), *words)


def test_one_storage_claimed_twice(tmp_path):
    first = tensor(numbers(), (12,), (1,))
    for second in (numbers(12, np.int32), numbers(24, np.float16), numbers(6, np.float64)):
        state = {"a": first, "b": tensor(second, (1,), (1,))}
        refused(archive(tmp_path / "a.pt", state, [NUMBERS]), "'b'", "'0' has another type or size elsewhere")


def test_lazy_conjugation_is_not_forgotten(tmp_path):
    negated = Call(REBUILD, numbers(), 0, (12,), (1,), False, OrderedDict(), {"neg": True})
    refused(archive(tmp_path / "a.pt", {"w": negated}, [NUMBERS]), "negative bit")


# The zip around it.


@pytest.mark.parametrize("name", ["data.pkl", "data/0", "version"])
def test_compressed_members(tmp_path, name):
    bomb = {"w": tensor(numbers(10**7), (10**7,), (1,))}
    path = archive(tmp_path / "a.pt", bomb, [np.zeros(10**7, np.float32)], deflated=name)
    refused(path, "compressed", f"'model/{name}'", "unfold to any size")


def test_other_byte_order_and_second_pickle(tmp_path):
    refused(archive(tmp_path / "a.pt", {}, order=b"big"), "big endian")
    with zipfile.ZipFile(archive(tmp_path / "b.pt", {}), "a") as file:
        file.writestr("other/data.pkl", b"")
    refused(tmp_path / "b.pt", "2 members")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(good(tmp_path / "c.pt"), "a") as file:
        file.writestr("model/data/0", NUMBERS[::-1].tobytes())
    refused(tmp_path / "c.pt", "two members of one name")


def entry(content: bytes, name: str) -> int:
    """Where the directory's entry of a member begins."""
    return content.rindex(f"model/{name}".encode()) - 46


def change(path: Path, at: int, layout: str, value: int) -> Path:
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, at, value)
    path.write_bytes(content)
    return path


def test_overlapping_members(tmp_path):
    content = good(tmp_path / "a.pt").read_bytes()
    first, second = entry(content, "data/0"), entry(content, "data/1")
    (offset,) = struct.unpack_from("<I", content, first + 42)
    refused(change(tmp_path / "a.pt", second + 42, "<I", offset), "overlaps the next")
    longer = change(change(good(tmp_path / "b.pt"), first + 20, "<I", 49), first + 24, "<I", 49)
    refused(longer, "overlaps the next")


def test_a_member_that_claims_terabytes(tmp_path):
    at = entry(good(tmp_path / "a.pt").read_bytes(), "version")
    path = change(change(tmp_path / "a.pt", at + 20, "<I", 2**32 - 2), at + 24, "<I", 2**32 - 2)
    refused(path, "overlaps")


def test_a_shifted_member_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "CHECKED", 0)  # without the help of checksums
    content = FIXTURE.read_bytes()
    for member in zipfile.ZipFile(FIXTURE).infolist():
        for shift in (-4, -1, 1, 4, 8):
            at = member.header_offset + 28  # the length of the extra field, which torch.save pads with
            (length,) = struct.unpack_from("<H", content, at)
            (tmp_path / "a.pt").write_bytes(content)
            if length + shift >= 0:
                refused(change(tmp_path / "a.pt", at, "<H", length + shift))


@pytest.mark.parametrize("source", ["by hand", "by PyTorch", "by us"])
def test_truncated_files(tmp_path, source):
    path = tmp_path / "a.pt"
    if source == "by us":
        torch_files.write(path, GOOD)
    content = {"by hand": good(tmp_path / "b.pt"), "by PyTorch": FIXTURE, "by us": path}[source].read_bytes()
    for length in random.Random(1).sample(range(len(content)), 20):
        path.write_bytes(content[:length])
        refused(path)


@pytest.mark.parametrize("source", ["by hand", "by PyTorch", "by us"])
def test_flipped_bytes_never_give_other_numbers(tmp_path, source):
    """Small members are checked by checksum, so a flip anywhere is an error or changes nothing that counts."""
    path, chance = tmp_path / "a.pt", random.Random(2)
    torch_files.write(path, GOOD)
    whole = {"by hand": good(tmp_path / "b.pt"), "by PyTorch": FIXTURE, "by us": path}[source]
    content, expected = whole.read_bytes(), torch_files.read(whole)
    errors = 0
    for _ in range(200):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            found = torch_files.read(path)
        except UserError:
            errors += 1
        else:
            assert_same(found, expected)
    assert errors > 50


def test_flipped_bytes_in_a_pickle_with_a_right_checksum(tmp_path):
    chance, errors = random.Random(3), 0
    with zipfile.ZipFile(FIXTURE) as file:
        program = file.read("state_dict/data.pkl")
        storages = [file.read(f"state_dict/data/{key}") for key in range(8)]
    for _ in range(200):
        damaged = bytearray(program)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(damaged))] ^= chance.randrange(1, 256)
        path = archive(tmp_path / "a.pt", bytes(damaged), [np.frombuffer(data, np.uint8) for data in storages])
        try:
            found = torch_files.read(path)
        except UserError as error:
            errors += "\n" not in str(error)
        else:
            size = path.stat().st_size
            assert all(
                isinstance(array, np.ndarray) and array.nbytes <= size and array.tobytes() is not None
                for array in found.values()
            )
    assert errors > 50


# Against PyTorch itself.


@pytest.mark.torch
def test_torch_reads_what_we_write(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = {str(dtype): (np.arange(6) - 2).astype(dtype).reshape(2, 3) for dtype in torch_files.STORAGES.values()}
    arrays |= {"scalar": np.array(2.5), "none": np.zeros((0, 3), np.float16), "é\n": arrays["float32"].T}
    torch_files.write(tmp_path / "a.pt", arrays)
    for mmap in (False, True):
        found = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mmap)
        assert isinstance(found, OrderedDict) and list(found) == list(arrays)
        for name, array in arrays.items():
            assert str(found[name].dtype) == f"torch.{array.dtype}" and found[name].shape == array.shape
            assert found[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes() == array.tobytes()


@pytest.mark.torch
def test_we_read_what_torch_writes(tmp_path):
    torch = pytest.importorskip("torch")
    kinds = [getattr(torch, str(dtype)) for dtype in torch_files.STORAGES.values()]
    state = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).state_dict()
    state |= {str(kind): (torch.arange(12) - 3).to(kind).reshape(3, 4)[1:, ::2].T for kind in kinds}
    state["parameter"] = torch.nn.Parameter(torch.eye(2))
    state["none"] = torch.zeros(0, 2)
    torch.save(state, tmp_path / "a.pt")
    found = torch_files.read(tmp_path / "a.pt")
    assert list(found) == list(state)
    for name, value in state.items():
        assert f"torch.{found[name].dtype}" == str(value.dtype) and found[name].shape == value.shape
        assert found[name].tobytes() == value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.torch
def test_torch_reads_the_fixture_alike():
    torch = pytest.importorskip("torch")
    found = {name: value.float().numpy() for name, value in torch.load(FIXTURE, weights_only=True).items()}
    assert_same(found, {name: value.astype(np.float32) for name, value in expected_of_fixture().items()})
