"""Checkpoints: what a run needs to continue, and what inference needs, in one directory a step.

    checkpoints/300/state/         arrays, by orbax, as nested dicts that follow the names in the manifest
    checkpoints/300/data.json      position of the data iterator
    checkpoints/300/config.json    settings of the run
    checkpoints/300/tokenizer.json (or whatever else the run gives)
    checkpoints/300/manifest.json  checksums and shapes; see `manifest.py`

A directory under a step's name is complete: it is written as `300.tmp-…`, checksums included, and renamed at the end.
Of several processes each writes its shards, by orbax; all else is done by the first.
"""

import contextlib
import fcntl
import json
import logging
import math
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
import tensorstore
from flax.traverse_util import flatten_dict, unflatten_dict

from trol_jax import manifest
from trol_jax.errors import UserError
from trol_jax.lazy import Lazy, LazyHandler
from trol_jax.manifest import verify
from trol_jax.retry import PASSING
from trol_jax.sharding import hosts

CHECKPOINTS = "checkpoints"  # the folder of a run directory
PARAMS = "params/"  # how the names of parameters begin
STATE, DATA, CONFIG = "state", "data.json", "config.json"
BEST = "best.json"  # of the checkpoints of a run: {"step", "metric", "value"}

_STEP = re.compile(r"0|[1-9][0-9]*")
_TEMPORARY = re.compile(r"[0-9]+\.tmp-[0-9a-f]{8}")
_SHOWN = 3  # problems in one message
_SHARED_SECONDS = 20  # until all processes see what one of them wrote: a network disk may be late


class Restored(NamedTuple):
    step: int
    state: Any
    data_state: dict
    config: dict


class NotSaved(UserError):
    """passing: whether it may be tried again, as with a network disk that was away for a moment."""

    passing = False


class Checkpoints:
    """The checkpoints of one run, for the process that writes them. Readers need only the functions below.

    `keep` steps stay on disk, and the best. Leftovers of a killed run are removed at once. Close it, or use `with`.
    damaged: steps that do not count among them; they stay until they are saved again.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 3, damaged: Collection[int] = ()):
        if keep < 1:
            raise ValueError(f"keep={keep}: at least one checkpoint must stay")
        self.directory = Path(directory).absolute()
        self.keep, self.damaged = keep, set(damaged)
        self._written = threading.Event()  # nothing is being written; an interrupted join would forget its thread
        self._written.set()
        self._error: UserError | None = None
        self._saves = 0  # the same in every process: names that they share are made of it
        self._orbax = ocp.AsyncCheckpointer(_handler())
        refuse_inside(self.directory.parent)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.directory)
            for path in self.directory.iterdir() if hosts.is_first() else ():
                if _TEMPORARY.fullmatch(path.name):
                    shutil.rmtree(path)
        except OSError as error:
            raise UserError(f"cannot use {self.directory} for checkpoints: {error.strerror}") from error
        self._require_shared()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def all_steps(self) -> list[int]:
        return steps_in(self.directory)

    def latest_step(self) -> int | None:
        return max(self.all_steps(), default=None)

    def keep_best(self, best: Mapping[str, Any]) -> None:
        """Lets a step stay until another is called the best; see BEST."""
        if hosts.is_first():
            temporary = self.directory / f"{BEST}.tmp"
            temporary.write_bytes(to_json(dict(best)))
            temporary.replace(self.directory / BEST)

    def failed(self) -> bool:
        """Whether the last save failed, which `wait` and the next `save` will tell."""
        return self._error is not None

    def save(
        self,
        step: int,
        state: Any,
        *,
        data_state: dict | None,
        config: dict | None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Copies `state` (a pytree of jax arrays, free to be donated then) to the host and writes in the background.

        `Lazy` leaves are made and written before this returns, one after the other, with a few pieces in memory.
        Waits first for the save before it, whose failure is raised here. An old checkpoint of the step is replaced.
        `files` are stored beside under their names, which may have a folder.
        """
        self.wait()
        step, arrays = int(step), _named(state)
        described = {name: _describe(array) for name, array in arrays.items()}
        small = {**(files or {}), DATA: to_json(data_state), CONFIG: to_json(config)}
        self._saves += 1
        temporary = self.directory / f"{step}.tmp-{self._saves:08x}"
        try:
            if hosts.is_first():
                temporary.mkdir()
            hosts.meet(f"{temporary} made")
            self._orbax.save(temporary / STATE, args=ocp.args.PyTreeSave(unflatten_dict(arrays, sep="/")))
        except Exception as error:
            if (failed := self._failed(step, temporary, error)) is error:
                raise
            raise failed from error
        except BaseException:  # the user's interrupt
            _remove(temporary)
            raise
        self._written.clear()
        arguments = step, temporary, small, described
        threading.Thread(target=self._finish, args=arguments, name=f"checkpoint-{step}").start()

    def wait(self) -> None:
        """Returns when nothing is being written. UserError when the last save failed; nothing of it stays behind."""
        try:
            self._written.wait()
        except BaseException:  # the user's interrupt: what is nearly done is not left half done
            self._written.wait()
            raise
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._orbax.close()
            os.close(self._lock)

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored:
        """The state of `step` (default: the newest) in the shardings of `abstract_state`, after all checksums agree.

        UserError when there is none, when it is damaged, or when it is of another model.
        """
        self.wait()
        step_dir = resolve(self.directory) if step is None else self.directory / str(step)
        return restore(step_dir, abstract_state)

    def _require_shared(self) -> None:
        """UserError in every process unless all see this directory, which is cleared by then."""
        if jax.process_count() == 1:
            return
        token = self.directory / f"0.tmp-{secrets.token_hex(4)}"  # a leftover of it is removed as others are
        if hosts.is_first():
            token.mkdir()
        name = f"{self.directory} at {{}}"
        (first,) = [each for each, who in hosts.said(name.format("start"), token.name).items() if 0 in who]
        token, end = self.directory / first, time.monotonic() + _SHARED_SECONDS
        while not token.exists() and time.monotonic() < end:
            time.sleep(0.1)
        blind = hosts.said(name.format("end"), str(token.exists())).get("False")
        if hosts.is_first():
            token.rmdir()
        if blind:
            raise hosts.refused(
                f"process {blind[0]} does not see what process 0 writes into {self.directory}; let --workdir be on a "
                "disk that all processes share, under the same path"
            )

    def _finish(self, step: int, temporary: Path, small: Mapping, described: dict) -> None:
        try:
            self._orbax.wait_until_finished()
            hosts.meet(f"{temporary} written")
            if hosts.is_first():
                for name in described if jax.process_count() > 1 else ():
                    open_array(temporary, name)  # all of it is there
                for name, content in small.items():
                    (temporary / name).parent.mkdir(exist_ok=True)
                    (temporary / name).write_bytes(content)
                manifest.write(temporary, step=step, arrays=described)
                self._publish(step, temporary)
            hosts.meet(f"{temporary} published")
        except Exception as error:
            self._error = self._failed(step, temporary, error)
            self._error.__cause__ = None if self._error is error else error
        finally:
            self._written.set()

    def _publish(self, step: int, temporary: Path) -> None:
        final = self.directory / str(step)
        doomed = [self._set_aside(step)] if final.exists() else []
        temporary.rename(final)
        manifest.sync(self.directory)
        # After a return to an earlier step there may be higher ones: what was just written stays in any case.
        best = (read_best(self.directory) or {}).get("step")
        self.damaged.discard(step)
        others = [other for other in self.all_steps() if other not in (step, best, *self.damaged)]
        doomed += [self._set_aside(old) for old in others[: max(0, len(others) + 1 - self.keep)]]
        for path in doomed:
            shutil.rmtree(path)

    def _set_aside(self, step: int) -> Path:
        # A half-deleted checkpoint never has the name of a whole one.
        return (self.directory / str(step)).rename(self.directory / f"{step}.tmp-{secrets.token_hex(4)}")

    def _failed(self, step: int, temporary: Path, error: Exception) -> UserError:
        with contextlib.suppress(Exception):
            self._orbax.wait_until_finished()
        _remove(temporary)
        if isinstance(error, UserError):
            return error
        if lost := hosts.another_lost(error):
            return lost
        last = self.latest_step()
        kept = "no checkpoint was written before" if last is None else f"the last one is {self.directory / str(last)}"
        failed = NotSaved(
            f"cannot save checkpoint {self.directory / str(step)}: {_reason(error)}; "
            f"make room or use another directory ({kept})"
        )
        failed.passing = _errno(error) in PASSING and jax.process_count() == 1  # several would have to agree
        return failed


def restore(path: str | os.PathLike, abstract_state: Any) -> Restored:
    """As `Checkpoints.restore`, from any path that `resolve` takes."""
    step_dir = resolve(path)
    require_sound(step_dir)
    state = _read_arrays(step_dir, abstract_state)
    data_state, config = (json.loads((step_dir / name).read_bytes()) for name in (DATA, CONFIG))
    return Restored(manifest.read(step_dir)["step"], state, data_state, config)


def restore_params(path: str | os.PathLike, abstract_params: Any, *, as_stored: bool = False) -> Any:
    """Only `state["params"]` (or `state.params`), in the shardings of `abstract_params`; `path` as for `resolve`.

    They are cast to the dtypes of `abstract_params`; with `as_stored` they keep their own.
    """
    step_dir = resolve(path)
    wanted, stored = {"params": abstract_params}, stored_params(step_dir, abstract_params)
    own = [
        jax.ShapeDtypeStruct(leaf.shape, stored[name].dtype, sharding=_sharding(leaf))
        for name, leaf in _named(abstract_params).items()
    ]
    own = jax.tree.unflatten(jax.tree.structure(wanted), own)
    return _read_arrays(step_dir, own, only=PARAMS, into=own if as_stored else wanted)["params"]


def stored_params(step_dir: str | os.PathLike, abstract_params: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """`arrays_in` of the parameters. UserError unless they are those of `abstract_params`, dtypes apart."""
    stored = arrays_in(step_dir, PARAMS)
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, stored.get(name, leaf).dtype)
        for name, leaf in _named(abstract_params).items()
    }
    described = ({PARAMS + name: _describe(leaf) for name, leaf in tree.items()} for tree in (stored, wanted))
    _require_same(Path(step_dir), *described)
    return stored


def arrays_in(step_dir: str | os.PathLike, within: str = "") -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the arrays whose names begin with `within`, which is cut off; after all checksums agree."""
    require_sound(step_dir)
    return {
        name.removeprefix(within): jax.ShapeDtypeStruct(array["shape"], array["dtype"])
        for name, array in manifest.read(step_dir)["arrays"].items()
        if name.startswith(within)
    }


def open_array(step_dir: str | os.PathLike, name: str) -> tensorstore.TensorStore:
    """One array by its name in the manifest: `array[2:4].read()` is a future of these rows. Checksums: `arrays_in`.

    UserError where parts of it are not there, which would be read as zeros.
    """
    # Not a URL: any name of a folder will do.
    state = {"driver": "file", "path": f"{Path(step_dir).absolute() / STATE}/"}
    kvstore = {"driver": "ocdbt", "base": state, "path": name.replace("/", ".")}
    mapped = tensorstore.Context({"file_io_mode": {"mode": "memmap"}})  # half the time of reading into new memory
    array = tensorstore.open({"driver": "zarr", "kvstore": kvstore}, read=True, context=mapped).result()
    part = array.chunk_layout.read_chunk.shape or ()  # None for a single number
    parts = math.prod(-(-n // size) for n, size in zip(array.shape, part, strict=True))
    if len(array.kvstore.list().result()) < parts + 1:  # with its description
        raise UserError(
            f"{step_dir} has not all parts of {name}: a process that saved it wrote elsewhere; remove {step_dir}, and "
            "let --workdir be on a disk that all processes share"
        )
    return array


def read_file(step_dir: str | os.PathLike, name: str) -> bytes:
    """A file stored beside the arrays, such as the tokenizer, checked on its own."""
    require_sound(step_dir, only=[name])
    return (Path(step_dir) / name).read_bytes()


def read_json(step_dir: str | os.PathLike, name: str) -> Any:
    return json.loads(read_file(step_dir, name))


def read_config(step_dir: str | os.PathLike) -> dict | None:
    """The settings of the run; None where the arrays come from elsewhere."""
    return read_json(step_dir, CONFIG)


def resolve(path: str | os.PathLike) -> Path:
    """The step directory meant by a run, a checkpoints directory (the newest step of either), RUN/best, or a step."""
    path = Path(path).absolute()
    if path.name == "best" and (best := read_best(path.parent / CHECKPOINTS)):
        path = path.parent / CHECKPOINTS / str(best["step"])
    if (path / manifest.FILE).exists() or (_STEP.fullmatch(path.name) and (path / STATE).exists()):
        return path
    for directory in (path, path / CHECKPOINTS):
        if steps := steps_in(directory):
            return directory / str(steps[-1])
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}: there is no such directory")
    raise UserError(
        f"no checkpoint in {path}: looked for {manifest.FILE} (a step), <step>/ (the checkpoints of a run) "
        f"and {CHECKPOINTS}/<step>/ (a run)"
    )


def steps_in(directory: Path) -> list[int]:
    """Steps of the complete checkpoints of a directory, in order; none where there is no such directory."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if _STEP.fullmatch(path.name) and path.is_dir())


def newest_sound(directory: Path) -> tuple[Path | None, dict[Path, list[str]]]:
    """(the newest complete checkpoint without damage, what is wrong with those after it)."""
    damaged = {}
    for step in reversed(steps_in(directory)):
        if not (problems := verify(directory / str(step))):
            return directory / str(step), damaged
        damaged[directory / str(step)] = problems
    return None, damaged


def read_best(directory: Path) -> dict | None:
    """See BEST; None where no checkpoint was called the best, or it is gone."""
    try:
        best = json.loads((directory / BEST).read_bytes())
        return best if (directory / str(best["step"])).is_dir() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def refuse_inside(path: str | os.PathLike) -> None:
    """UserError for a place within a step, or among the steps of a run: what is written there would spoil them."""
    real = Path(os.path.realpath(path))
    for folder in (real, *real.parents):
        if any((each / manifest.FILE).exists() for each in (folder, *(folder / str(i) for i in steps_in(folder)))):
            raise UserError(f"{path} is inside the checkpoints {folder}; write elsewhere")


def lock(directory: Path, shown: Path | None = None) -> int:
    """Keeps a second process from writing here, until the descriptor is closed or the process ends. `shown`: its name
    in the error, where that is not its own.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    if hosts.is_first():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"another process writes to {shown or directory}; let it end, or use another directory"
            ) from None
        except OSError:
            pass  # a file system without locks
    return descriptor


def require_sound(step_dir: str | os.PathLike, only: list[str] | None = None) -> None:
    """UserError unless all checksums agree, of the manifest and the files `only`, by default all."""
    step_dir = Path(step_dir).absolute()
    problems = verify(step_dir, only)
    if not problems:
        return
    if all(problem.endswith(manifest.FOREIGN) for problem in problems):
        raise UserError(f"{step_dir}: {_some(problems)}; move it out of there")
    others = [step_dir.parent / str(step) for step in reversed(steps_in(step_dir.parent))]
    sound = next((other for other in others if other != step_dir and not verify(other)), None)
    advice = (
        f"newest sound checkpoint: {sound} (use that, or remove {step_dir} and start again)"
        if sound
        else f"no other checkpoint in {step_dir.parent} is sound (bring back a copy, or remove it and start anew)"
    )
    raise UserError(f"checkpoint {step_dir} is damaged: {_some(problems)}; {advice}")


def _require_same(step_dir: Path, stored: dict[str, dict], wanted: dict[str, dict]) -> None:
    if differences := manifest.differences(stored, wanted):
        raise UserError(
            f"checkpoint {step_dir} is of another model: {_some(differences)}; "
            f"use the settings it was trained with ({step_dir / CONFIG})"
        )


def _read_arrays(step_dir: Path, abstract: Any, only: str = "", into: Any = None) -> Any:
    wanted = _named(abstract)
    stored = {name: array for name, array in manifest.read(step_dir)["arrays"].items() if name.startswith(only)}
    _require_same(step_dir, stored, {name: _describe(leaf) for name, leaf in wanted.items()})
    item = unflatten_dict(_named(abstract if into is None else into), sep="/")
    arguments = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(sharding=_sharding(leaf), global_shape=leaf.shape, dtype=leaf.dtype), item
    )
    with ocp.Checkpointer(_handler()) as reader:
        tree = reader.restore(
            step_dir / STATE,
            args=ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=bool(only)),
        )
    arrays = flatten_dict(tree, sep="/")
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in wanted])


def _handler() -> ocp.PyTreeCheckpointHandler:
    # Replica-parallel writing slices every replicated array by a compiled program: 250 ms instead of 50 ms for 17 MB on
    # 8 simulated devices. Shapes and dtypes are in the manifest and shardings come from the caller: no files for them.
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False, enable_write_sharding_file=False)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays), (Lazy, LazyHandler()))
    # Without a limit on bytes in flight orbax writes all arrays in one transaction: fewer files, and a full disk is one
    # error. With one, the writes that are still under way after an error print tracebacks of their own.
    handler = ocp.BasePyTreeCheckpointHandler(
        save_concurrent_bytes=None, use_compression=False, type_handler_registry=registry
    )
    return ocp.PyTreeCheckpointHandler(handler_impl=handler, type_handler_registry=registry)


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by name (`params/layers/kernel`), in the order of the tree; types of containers do not matter."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _describe(leaf: Any) -> dict:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise TypeError("a checkpoint holds plain arrays: store jax.random.key_data(key) instead of a typed key")
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _remove(path: Path) -> None:
    # After a failed write, other writers of orbax may still be at work for a moment and make the folder again.
    gone = 0
    for _ in range(40):
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)
        gone = 0 if path.exists() else gone + 1
        if gone == 5:
            return


def _reason(error: Exception) -> str:
    """The system's words for a failed write; tensorstore's errors only end in `[os_error_code='28']`."""
    if number := _errno(error):
        return os.strerror(number)
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return int(code[1]) if code else None


def _some(problems: list[str]) -> str:
    more = len(problems) - _SHOWN
    return "; ".join(problems[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _worth_showing(record: logging.LogRecord) -> bool:
    # Orbax logs every step of every save, and a failed save with several tracebacks: `wait` raises that as one line.
    from_orbax = f"{os.sep}orbax{os.sep}" in record.pathname
    return not from_orbax or (record.levelno >= logging.WARNING and not record.exc_info)


logging.getLogger("absl").addFilter(_worth_showing)
