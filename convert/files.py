"""Tensors of a released folder: model.safetensors, its shards with an index, or pytorch_model.bin, one at a time.

Nothing is loaded before it is asked for, an index names files of its own folder only, and no file is executed.
"""

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from convert import torch_files
from trol_jax.checkpoint import lock
from trol_jax.errors import UserError
from trol_jax.rows import assign

PIECE = 16 << 20  # bytes that are written together
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
DTYPES = {  # safetensors -> NumPy
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}  # fmt: skip


class Stored(NamedTuple):
    """A tensor on disk."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    offset: int  # bytes from the start of the file; -1: `array` has it
    array: np.ndarray | None = None  # of a torch file, memory-mapped

    def load(self) -> np.ndarray:
        """A read-only view of the file."""
        if self.array is not None:
            return self.array
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape or (1,)).reshape(self.shape)


def read_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder by its released name. UserError for a missing, damaged or untrusted file."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return _read(folder / name)
        if (folder / (name + INDEX)).is_file():
            return _read_shards(folder, folder / (name + INDEX))
    looked = ", ".join([*WEIGHTS, *(name + INDEX for name in WEIGHTS)])
    raise UserError(f"{folder} has no weights: looked for {looked}; download the whole repository")


def read_json(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"{path} is missing; download the whole repository")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; download it again")
    return value


def _read(path: Path) -> dict[str, Stored]:
    if path.suffix == ".bin":
        return {name: Stored(a.shape, a.dtype, path, -1, a) for name, a in torch_files.read(path).items()}
    try:
        with path.open("rb") as file, safe_open(path, framework="numpy"):  # the library checks sizes, holes, overlaps
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a sound safetensors file: {error}; download it again") from error
    header.pop("__metadata__", None)
    if unknown := sorted({entry["dtype"] for entry in header.values()} - set(DTYPES)):
        raise UserError(f"{path} holds tensors of type {', '.join(unknown)}; known are {', '.join(DTYPES)}")
    return {
        name: Stored(tuple(entry["shape"]), DTYPES[entry["dtype"]], path, 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _read_shards(folder: Path, index: Path) -> dict[str, Stored]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map; download it again")
    shards = {}
    for name in sorted({str(file) for file in weight_map.values()}):
        if not re.fullmatch(r"[\w-][\w.-]{0,200}\.(safetensors|bin)", name):
            raise UserError(f"{index} names {name!r}, which is no weight file of its own folder: refused")
        refuse_link_out(folder, name)
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing, {index.name} names it; download it again")
        shards[name] = _read(folder / name)
    stored = [(name, file) for file, tensors in shards.items() for name in tensors]
    listed = list(weight_map.items())
    if wrong := sorted(set(stored) ^ set(listed)):
        raise UserError(
            f"{index} and its files disagree about {some(f'{n} in {f}' for n, f in wrong)}; download them again"
        )
    return {name: shards[file][name] for name, file in listed}


def refuse_link_out(folder: Path, name: str) -> None:
    if Path(os.path.realpath(folder / name)).parent not in (folder.resolve(), *_blobs(folder)):
        raise UserError(f"{folder / name} is a link out of its folder: refused")


def _blobs(folder: Path) -> list[Path]:
    """Where a cache of the Hugging Face hub keeps the files that `snapshots/<revision>/` links to."""
    return [folder.resolve().parents[1] / "blobs"] if folder.resolve().parent.name == "snapshots" else []


def some(names, shown: int = 10) -> str:
    names = list(names)
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


class Writer:
    """A safetensors file whose tensors are written one by one, in any order. Use `with`."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]):
        names = {dtype: name for name, dtype in DTYPES.items()}
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, (shape, dtype) in tensors.items():
            size = math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start, self._header, self._left = 8 + len(text), header, set(tensors)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, self._start + offset)
        self._file = path.open("r+b", buffering=0)
        self._thread, self._memory = ThreadPoolExecutor(1), np.empty((2, PIECE), np.uint8)
        self._written = [Future(), Future()]  # of either memory
        for future in self._written:
            future.set_result(None)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, *_) -> None:
        self._thread.shutdown(cancel_futures=kind is not None)
        with self._file:
            if kind is None:
                for future in self._written:
                    future.result()
                if self._left:
                    raise ValueError(f"not written: {some(self._left)}")
                os.fsync(self._file.fileno())

    def write(self, name: str, array: np.ndarray) -> None:
        """Casts it to what was announced. An error in writing is raised by a later call."""
        entry = self._header[name]
        offset, dtype = self._start + entry["data_offsets"][0], DTYPES[entry["dtype"]]
        if list(array.shape) != entry["shape"]:
            raise ValueError(f"{name} is {list(array.shape)} and should be {entry['shape']}")
        array = array if array.ndim else array.reshape(1)
        rows = max(1, PIECE // (math.prod(array.shape[1:]) * dtype.itemsize))
        for start in range(0, len(array), rows):
            part = array[start : start + rows]
            size = part.size * dtype.itemsize
            self._written[0].result()
            memory = self._memory[0] if size <= PIECE else np.empty(size, np.uint8)
            assign(memory[:size].view(dtype).reshape(part.shape), part, name)
            self._written = [self._written[1], self._thread.submit(self._write, memory[:size], offset)]
            self._memory = self._memory[::-1]
            offset += size
        self._left.discard(name)

    def _write(self, content: np.ndarray, offset: int) -> None:
        content = memoryview(content)
        while content:
            done = os.pwrite(self._file.fileno(), content, offset)
            content, offset = content[done:], offset + done
        os.fdatasync(self._file.fileno())  # the disk works while the next piece is made


def real(path: Path) -> Path:
    """Without links, where they lead anywhere."""
    return Path(os.path.realpath(path))


@contextmanager
def new_folders(path: Path):
    """Where the work fails, of the folder and those above it the new ones go again if they are empty."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def new_folder(path: Path):
    """A folder that gets its name when everything in it is written; nothing is left of one that fails."""
    path = real(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty; name another, or remove it")
    leftover = re.compile(re.escape(path.name) + r"\.tmp-convert-[0-9a-f]{8}")
    for old in path.parent.iterdir() if path.parent.is_dir() else ():
        if leftover.fullmatch(old.name) and old.is_dir():
            os.close(lock(old, path))
            shutil.rmtree(old, ignore_errors=True)
    temporary = path.with_name(f"{path.name}.tmp-convert-{secrets.token_hex(4)}")
    with new_folders(path.parent):
        held = None
        try:
            temporary.mkdir(parents=True)
            held = lock(temporary, path)
            yield temporary
            if path.exists():
                path.rmdir()
            temporary.rename(path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}; make room or name another") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if held is not None:
                os.close(held)
