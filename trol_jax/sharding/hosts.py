"""Several processes that compute as one: who reads which rows of a batch, and who writes.

Every process runs the same program over all devices of the job and sees the arrays of its own. With one process nothing
here does anything.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax._src.distributed import global_state  # the store of names that all processes see has no public name
from jax.experimental import multihost_utils

from trol_jax.errors import UserError

OWN_FAULTS = ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "NOT_FOUND")  # how errors begin that are ours
BARRIER_SECONDS = 1200  # the slowest of all processes has so long to write its part of a checkpoint


def is_first() -> bool:
    """Whether this process prints, and writes what is not an array."""
    return jax.process_index() == 0


def meet(name: str, seconds: int = BARRIER_SECONDS) -> None:
    """Returns when all processes are here; a name is used once. From any thread: no device takes part."""
    if jax.process_count() > 1:
        barrier = ocp.multihost.get_barrier_sync_fn()
        _waited_for(lambda: barrier(key=f"trol_jax {name}", timeout_ms=seconds * 1000))


def said(name: str, mine: str, seconds: int = BARRIER_SECONDS) -> dict[str, list[int]]:
    """What all processes say, and which of them say it; the same in each. A name is used once, as for `meet`."""
    if jax.process_count() == 1:
        return {mine: [0]}
    name, store, found = f"trol_jax said {name}", global_state.client, {}

    def get(key: str) -> str:
        return _waited_for(lambda: store.blocking_key_value_get(key, seconds * 1000))

    store.key_value_set(f"{name}/{jax.process_index()}", mine)
    if is_first():
        for i in range(jax.process_count()):
            found.setdefault(get(f"{name}/{i}"), []).append(i)
        store.key_value_set(f"{name}, all", json.dumps(found))
    return json.loads(get(f"{name}, all"))


def require_same(values: Mapping[str, Any]) -> None:
    """UserError in every process where the JSON-able `values` of one are not those of the first. To be called once."""
    with explained():
        (first, _), *others = said("values", json.dumps(values)).items()
    if not others:
        return
    one, other, who = json.loads(first), json.loads(others[0][0]), others[0][1][0]
    differ = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    shown = [f"{name} is {one.get(name)} in process 0, {other.get(name)} in process {who}" for name in differ[:3]]
    more = f"; and {len(differ) - 3} more" if len(differ) > 3 else ""
    raise refused(
        f"the processes do not train the same: {'; '.join(shown)}{more}; start all of them with the same flags, and a "
        "--workdir on a disk that all share"
    )


def refused(message: str) -> UserError:
    """What every process is to raise, and the last that they do. The end of the first cuts the others off: it waits."""
    meet("refused")
    if is_first():
        time.sleep(1)
    return UserError(message)


def _waited_for(call: Callable[[], Any]) -> Any:
    # A signal reaches who waits for a thread, not who waits in C++.
    waits = concurrent.futures.ThreadPoolExecutor(1)
    try:
        return waits.submit(call).result()
    finally:
        waits.shutdown(wait=False)


def told_to_stop(step: int) -> bool:
    """Whether a SIGTERM that any of several processes got ends the run before `step`: it is the same step for all."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def agree(text: str) -> bool:
    """Whether all processes say the same; every one must ask."""
    if jax.process_count() == 1:
        return True
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    with jax.transfer_guard("allow"):
        return bool((multihost_utils.process_allgather(digest) == digest).all())


def row_shares(sharding: jax.sharding.Sharding, rows: int) -> tuple[list[tuple[int, ...]], int]:
    """(the rows of a batch that the devices of a process hold, for each that holds others; which of these is ours).

    Processes whose devices hold the same rows share them. UserError where the rows of two overlap in part.
    """
    held: dict[int, set[int]] = {}
    for device, index in sharding.devices_indices_map((rows,)).items():
        held.setdefault(device.process_index, set()).update(range(*index[0].indices(rows)))
    shares = sorted({tuple(sorted(each)) for each in held.values()})
    if sum(map(len, shares)) != rows or len({len(each) for each in shares}) > 1:
        raise UserError(
            "the mesh gives some processes rows of a batch that others have in part; "
            "let the data and fsdp axes together, or the others, be a multiple of the processes"
        )
    return shares, shares.index(tuple(sorted(held[jax.process_index()])))


def global_batch(batch, sharding: jax.sharding.Sharding, rows: int, own: Sequence[int]):
    """Arrays over all devices of a batch of `rows`, from those of this process, which hold the rows `own`, in order."""
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)

    def spread(x: np.ndarray) -> jax.Array:
        def part(index):
            start, stop, _ = index[0].indices(rows)
            first = np.searchsorted(own, start)
            return x[first : first + stop - start]

        return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, part)

    with jax.transfer_guard_host_to_device("allow"):  # it is meant
        return jax.tree.map(spread, batch)


def put(array, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array that every process has whole, as one over all devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@contextlib.contextmanager
def explained():
    """What JAX raises when another process of the job is gone, as one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if (lost := another_lost(error)) is None:
            raise
        raise lost from error


def another_lost(error: BaseException | None) -> UserError | None:
    """What to say where an error, or what it is raised from, comes of another process of the job that is gone."""
    while error is not None and not isinstance(error, jax.errors.JaxRuntimeError):
        error = error.__cause__
    if error is None or jax.process_count() == 1 or str(error).startswith(OWN_FAULTS):
        return None
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"process {jax.process_index()} of {jax.process_count()} cannot go on, another one has ended or cannot be "
        f"reached ({reason}); see its output, then start all of them again: they go on where they stood"
    )
