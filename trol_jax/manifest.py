"""The manifest of a checkpoint: a checksum of every file, of itself, and the list of stored arrays.

Orbax returns the values of a data file with a flipped byte without complaint, so the bytes are checked here, by a hash
of 128 bits that is as fast as memory (it finds accidents; it is no defence against a forger). Plain
files and JSON only: nothing in this module knows about orbax or JAX.
"""

import json
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

FILE = "manifest.json"
FOREIGN = "is not part of the checkpoint"


def write(directory: str | os.PathLike, *, step: int, arrays: dict[str, dict]) -> None:
    """Describes every file now in `directory`, and sees to it that all of them have reached the disk.

    `arrays` maps names such as `params/head/kernel` to `{"shape": [..], "dtype": ".."}`.
    """
    directory = Path(directory)
    names = _files(directory)
    for name in names:
        sync(directory / name)
    with ThreadPoolExecutor() as pool:
        prints = pool.map(lambda name: _fingerprint(directory / name), names)
        body = {"step": step, "arrays": arrays, "files": dict(zip(names, prints, strict=True))}
    (directory / FILE).write_bytes(_encode(body))
    sync(directory / FILE)
    for folder, _, _ in os.walk(directory):
        sync(folder)


def read(directory: str | os.PathLike) -> dict:
    """The manifest's `step`, `arrays` and `files`; ValueError when it is missing or not exactly what `write` wrote."""
    try:
        data = (Path(directory) / FILE).read_bytes()
    except OSError as error:
        raise ValueError(f"{FILE} {_unreadable(error)}") from error
    try:
        body = json.loads(data)
        del body["checksum"]
        sound = _encode(body) == data
    except (ValueError, TypeError, KeyError):
        sound = False
    if not sound:
        raise ValueError(f"{FILE} differs from its checksum")
    return body


def identity(step_dir: str | os.PathLike) -> str:
    """Names a checkpoint by its step and content, wherever it lies."""
    step, data = read(step_dir)["step"], (Path(step_dir) / FILE).read_bytes()
    return f"step {step}, manifest {json.loads(data)['checksum'][:16]}"


def verify(step_dir: str | os.PathLike, only: Collection[str] | None = None) -> list[str]:
    """What is wrong with a checkpoint, one phrase a file that begins with its name; empty when it is sound.

    Finds changed, truncated, missing and extra files, and a step directory under the name of another step. `only`
    limits the check to some files.
    """
    step_dir = Path(step_dir)
    try:
        manifest = read(step_dir)
    except ValueError as error:
        return [str(error)]
    problems = []
    if step_dir.name.isdigit() and int(step_dir.name) != manifest["step"]:
        problems.append(f"{FILE} is that of step {manifest['step']}")
    names = sorted({*manifest["files"], *_files(step_dir)} - {FILE} if only is None else only)
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: _problem(step_dir / name, manifest["files"].get(name)), names)
        return problems + [f"{name} {problem}" for name, problem in zip(names, found, strict=True) if problem]


def differences(stored: dict[str, dict], wanted: dict[str, dict]) -> list[str]:
    """The arrays that differ between a checkpoint (`stored`) and a model (`wanted`), both as in `write`."""

    def text(array):
        return f"{array['dtype']}[{','.join(map(str, array['shape']))}]" if array else "absent"

    return [
        f"{name} is {text(stored.get(name))} in the checkpoint and {text(wanted.get(name))} in the model"
        for name in sorted({*stored, *wanted})
        if stored.get(name) != wanted.get(name)
    ]


def sync(path: str | os.PathLike) -> None:
    """Flushes a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encode(body: dict) -> bytes:
    # `read` encodes again and compares, so that a flip in white space or in the case of a hexadecimal digit shows too.
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())
    return json.dumps({"checksum": checksum, **body}, sort_keys=True, indent=1).encode()


def _files(directory: Path) -> list[str]:
    paths = (Path(folder, name) for folder, _, names in os.walk(directory) for name in names)
    return sorted(path.relative_to(directory).as_posix() for path in paths)


def _fingerprint(path: Path) -> dict:
    with path.open("rb") as file:
        digest = xxhash.xxh3_128()
        while piece := file.read(1 << 22):
            digest.update(piece)
        return {"size": os.fstat(file.fileno()).st_size, "xxh3_128": digest.hexdigest()}


def _problem(path: Path, recorded: dict | None) -> str | None:
    if recorded is None:
        return FOREIGN
    try:
        if (size := path.stat().st_size) != recorded["size"]:
            return f"has {size} bytes instead of {recorded['size']}"
        return None if _fingerprint(path) == recorded else "differs from its checksum"
    except OSError as error:
        return _unreadable(error)


def _unreadable(error: OSError) -> str:
    return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
