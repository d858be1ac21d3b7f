"""State dicts as torch.save writes them (`.pt`, `.bin`), read and written without PyTorch.

Such a file is a zip without compression: `data.pkl`, a pickle of names, shapes and strides, and `data/0`, `data/1` and
so on, the raw bytes of the storages that the tensors are views of. A pickle is a program; here it runs on a machine
that knows the few opcodes and names a state dict needs, imports nothing and calls nothing else. All sizes are checked
against the file before they are used, so a hostile file costs an error, and neither memory nor time to speak of.
"""

import math
import os
import pickle
import pickletools
import secrets
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from trol_jax.errors import UserError

STORAGES = {
    "FloatStorage": np.dtype(np.float32), "DoubleStorage": np.dtype(np.float64), "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "CharStorage": np.dtype(np.int8),
    "ShortStorage": np.dtype(np.int16), "IntStorage": np.dtype(np.int32), "LongStorage": np.dtype(np.int64),
    "ByteStorage": np.dtype(np.uint8), "BoolStorage": np.dtype(np.bool_),
}  # fmt: skip
LARGEST_PICKLE = 2**22  # bytes, of 20 000 tensors; a 7B model has under a thousand. A hostile one costs 80 times that
CHECKED = 2**20  # bytes; larger tensors are not read for their checksum
MOST_AXES = 64  # of a NumPy array
ALIGNMENT = 64  # bytes, of the storages in the file; what torch.save does
AGAIN = "save it again with torch.save(model.state_dict(), ...), or as safetensors"


class _Storage(NamedTuple):
    """What the pickle claims of a member `data/<key>`."""

    dtype: np.dtype
    key: str
    numel: int


class _Tensor(NamedTuple):
    """A view of a storage, as claimed: in elements, not yet checked."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Name -> read-only view of the memory-mapped file. UserError for anything but a flat state dict."""
    try:
        members = _members(Path(path))
        root, pickled = _data_pkl(members)
        state = _unpickle(pickled)
        if not isinstance(state, dict):
            raise UserError(f"holds {_kind(state)} where a state dict was expected; {AGAIN}")
        claims: dict[str, _Storage] = {}
        return {name: _array(name, value, members, root, claims) for name, value in state.items()}
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; check its name and permissions") from error
    except Exception as error:  # what a damaged file can provoke in zipfile and pickletools has no short list
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is damaged ({what}); download it again") from error


def write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """A state dict for `torch.load(weights_only=True)`, whole or not at all; each tensor gets a storage of its own."""
    path, names = Path(path), {dtype: name for name, dtype in STORAGES.items()}
    for name, array in tensors.items():
        if array.dtype not in names:
            known = ", ".join(str(dtype) for dtype in names)
            raise UserError(f"{path}: tensor {name!r} is of type {array.dtype}; convert it to one of {known}")
    temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file, zipfile.ZipFile(file, "w") as archive:
            _add(archive, "data.pkl", _pickle(tensors, names))
            _add(archive, "byteorder", b"little")
            for number, name in enumerate(tensors):
                _add(archive, f"data/{number}", np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
            _add(archive, "version", b"3\n")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; make room or name another") from error
    finally:
        temporary.unlink(missing_ok=True)


def _members(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        start = file.read(4)
        if start[:1] == b"\x80":
            raise UserError(f"is in the old format of torch.save, not a zip; {AGAIN}")
        if start != b"PK\3\4":
            raise UserError("is not a file of torch.save; name a .pt or .bin file with a state dict")
        with zipfile.ZipFile(file) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
            ends = [info.header_offset for info in infos[1:]] + [archive.start_dir]
        raw = np.memmap(file, np.uint8, "r")
    members = {info.orig_filename: _member(raw, info, end) for info, end in zip(infos, ends, strict=True)}
    if len(members) != len(infos):
        raise UserError("has two members of one name: refused; download it again")
    return members


def _member(raw: np.ndarray, info: zipfile.ZipInfo, end: int) -> np.ndarray:
    """The bytes of a member; `end` is where the next one, or the directory, begins."""
    member = f"member {info.orig_filename!r:.100}"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise UserError(f"has a compressed {member}, which could unfold to any size: refused; {AGAIN}")
    name = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
    header = raw[info.header_offset : info.header_offset + 30].tobytes()
    lengths = struct.unpack("<HH", header[26:])  # of the name and of the extra field that follows it
    start = info.header_offset + 30 + sum(lengths)
    stop = start + info.file_size
    if stop > end:
        raise UserError(f"has a {member} that overlaps the next: refused; download it again")
    # The directory and the member's own header must agree, and nothing but torch.save's descriptor may follow: a wrong
    # length anywhere would otherwise shift the numbers unnoticed.
    rest = raw[stop : min(end, stop + 25)].tobytes()
    described = len(rest) in (16, 24) and rest.startswith(b"PK\7\x08" + info.CRC.to_bytes(4, "little"))
    own_name = raw[info.header_offset + 30 :][: lengths[0]].tobytes()
    checked = info.file_size <= CHECKED or info.orig_filename.endswith(".pkl")
    wrong = checked and zlib.crc32(raw[start:stop]) != info.CRC
    if header[:4] != b"PK\3\4" or own_name != name or (rest and not described) or wrong:
        raise UserError(f"is damaged around its {member}; download it again")
    return raw[start:stop]


def _data_pkl(members: Mapping[str, np.ndarray]) -> tuple[str, bytes]:
    """(The folder in the zip, the pickle). Its name differs from file to file."""
    found = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        raise UserError(f"is not a file of torch.save: it has {len(found)} members <name>/data.pkl; {AGAIN}")
    member, root = members[found[0]], found[0].removesuffix("/data.pkl")
    order = members.get(f"{root}/byteorder")
    if order is not None and order[:7].tobytes() != b"little":
        raise UserError("is big endian; load it with PyTorch on a little-endian machine and save it there again")
    if member.size > LARGEST_PICKLE:
        raise UserError(f"has a data.pkl of {member.size} bytes, more than {LARGEST_PICKLE}: refused; {AGAIN}")
    return root, member.tobytes()


def _array(name: str, tensor: Any, members: Mapping, root: str, claims: dict[str, _Storage]) -> np.ndarray:
    if not isinstance(name, str) or not isinstance(tensor, _Tensor):
        raise UserError(f"holds {_kind(tensor)} under {name!r:.100}; tensors by name were expected: {AGAIN}")
    storage, offset, size, stride = tensor
    where = f"has a tensor {name!r:.100}"
    dtype, member = storage.dtype, members.get(f"{root}/data/{storage.key}")
    if member is None:
        raise UserError(f"{where} without its storage {storage.key!r:.100}; download it again")
    if claims.setdefault(storage.key, storage) != storage:
        raise UserError(f"{where} whose storage {storage.key!r} has another type or size elsewhere: refused; {AGAIN}")
    if storage.numel * dtype.itemsize != member.size:
        raise UserError(f"{where} of {storage.numel} {dtype} in a storage of {member.size} bytes; download it again")
    count, last = math.prod(size), offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if offset > storage.numel or count > storage.numel or (count and last >= storage.numel):
        raise UserError(f"{where} of shape {size!s:.100} that leaves its {storage.numel} stored numbers; {AGAIN}")
    strides = [step * dtype.itemsize for step in stride] if count else None
    return np.ndarray(size, dtype, member, offset * dtype.itemsize, strides)


# The pickle machine. Nothing callable can be on its stack but the three functions in _GLOBALS.


def _tensor(storage, offset, size, stride, requires_grad, hooks, metadata=None) -> _Tensor:
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise UserError(f"has a tensor that is not described as torch.save does it: refused; {AGAIN}")
    if len(size) != len(stride) or len(size) > MOST_AXES:
        raise UserError(f"has a tensor of {len(size)} sizes and {len(stride)} strides: refused; {AGAIN}")
    if any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
        raise UserError(f"has a tensor with a negative offset, size or stride, or no number there: refused; {AGAIN}")
    if metadata:
        raise UserError(f"has a tensor with a conjugate or negative bit; call .resolve_neg() on it, then {AGAIN}")
    return _Tensor(storage, offset, size, stride)


_GLOBALS = {
    "collections OrderedDict": lambda: {},
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda data, requires_grad, hooks: data,
    **{f"torch {name}": dtype for name, dtype in STORAGES.items()},
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _unpickle(pickled: bytes) -> Any:
    stack: list = []
    marks: list[list] = []  # the stacks below the open marks
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":  # the loop ends with the last
                pass
            case name if name in _LITERALS:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "EMPTY_DICT" | "EMPTY_LIST":
                stack.append({} if opcode.name == "EMPTY_DICT" else [])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                marks.append(stack)
                stack = []
            case "TUPLE":
                items, stack = tuple(stack), marks.pop()
                stack.append(items)
            case name if name in _TUPLES:
                stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
            case "SETITEMS" | "APPENDS":
                items, stack = stack, marks.pop()
                _extend(stack[-1], items)
            case "SETITEM" | "APPEND":
                count = 2 if opcode.name == "SETITEM" else 1
                items, stack[-count:] = stack[-count:], []
                _extend(stack[-1], items)
            case "GLOBAL":
                stack.append(_find(argument))
            case "STACK_GLOBAL":
                module, name = stack.pop(-2), stack.pop()
                stack.append(_find(f"{module} {name}" if {type(module), type(name)} == {str} else "?"))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                function, arguments = stack.pop(-2), stack.pop()
                if not callable(function) or not isinstance(arguments, tuple):
                    raise UserError(f"calls {_kind(function)}, as no tensor needs: refused, nothing was run; {AGAIN}")
                stack.append(function(*arguments))
            case "BUILD":
                stack.pop()  # the _metadata of a state dict: versions of modules, no use here
                if not isinstance(stack[-1], dict):
                    raise UserError(f"sets attributes of {_kind(stack[-1])}: refused, nothing was run; {AGAIN}")
            case name:
                raise UserError(f"uses {name} in its pickle, which no state dict needs: refused; {AGAIN}")
    (value,) = stack
    return value


def _find(name: str) -> Any:
    if name not in _GLOBALS:
        shown = repr(name.replace(" ", "."))[:120]
        raise UserError(f"asks for {shown}, which no tensor needs: refused, nothing was run; {AGAIN}")
    return _GLOBALS[name]


def _storage(claim: Any) -> _Storage:
    """From what torch.save calls a persistent id: ("storage", type, key, device, number of elements)."""
    match claim:
        case ("storage", np.dtype() as dtype, str(key), str(), int(numel)) if numel >= 0 and type(numel) is int:
            return _Storage(dtype, key, numel)
    raise UserError(f"has a storage that is not described as torch.save does it: refused; {AGAIN}")


def _extend(target: Any, items: list) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, dict) and all(isinstance(key, str | int) for key in items[::2]):  # hashed without depth
        target.update(zip(items[::2], items[1::2], strict=True))
    else:
        raise UserError(f"puts items into {_kind(target)}, or under keys that are no names: refused; {AGAIN}")


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dict of {len(value)} entries"
    return "a tensor" if isinstance(value, _Tensor) else f"a value of type {type(value).__name__.strip('_')}"


# Writing.


def _pickle(tensors: Mapping[str, np.ndarray], names: Mapping[np.dtype, str]) -> bytes:
    return b"".join([b"\x80\x02", b"ccollections\nOrderedDict\n)R(", *_entries(tensors, names), b"u."])


def _entries(tensors: Mapping[str, np.ndarray], names: Mapping[np.dtype, str]) -> Iterator[bytes]:
    for number, (name, array) in enumerate(tensors.items()):
        storage = [b"(", _value("storage"), f"ctorch\n{names[array.dtype]}\n".encode()]
        storage += [_value(str(number)), _value("cpu"), _value(array.size), b"tQ"]
        stride = tuple(math.prod(max(n, 1) for n in array.shape[axis + 1 :]) for axis in range(array.ndim))
        view = [_value(0), _value(array.shape), _value(stride), _value(False), b"ccollections\nOrderedDict\n)R"]
        yield b"".join([_value(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", *storage, *view, b"tR"])


def _value(value: str | int | tuple[int, ...]) -> bytes:
    """The opcodes that push a plain value: its pickle without the first and the last opcode."""
    return pickletools.optimize(pickle.dumps(value, protocol=2))[2:-1]


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(f"archive/{name}")  # of 1980, so that equal tensors make equal files
    fixed = archive.start_dir + 30 + len(info.filename) + 4 + 20  # our extra field's head, zipfile's own field
    padding = -fixed % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=True) as member:
        member.write(data)
