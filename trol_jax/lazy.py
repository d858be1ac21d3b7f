"""Arrays that are made while orbax writes them, a piece at a time."""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from trol_jax.rows import Rows

PIECE = 64 << 20  # bytes that are stored, and read, together
PIECES = 3  # in memory at once

_DONE = concurrent.futures.Future()
_DONE.set_result(None)


@dataclasses.dataclass(frozen=True)
class Lazy:
    """An array that is made while it is written: `blocks` yields its rows, from first to last, as many at a time as it
    likes, in any dtype and order in memory.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Callable[[], Iterable[np.ndarray]]
    name: str = "them"  # for errors

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def make(self) -> np.ndarray:
        array = np.empty(self.shape, self.dtype)
        Rows(self.blocks(), self.name).read_into(array)
        return array


class LazyHandler(ocp.type_handlers.NumpyHandler):
    """For orbax: a piece of one array after the other is filled while those before it are on their way to the disk."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(self, values, infos, args=None):
        self._stopped = False
        for written in await super().serialize(values, infos, args):
            try:
                written.result()
            except BaseException:  # nothing is written after an error, or after the user's interrupt
                self._stopped = True
                with contextlib.suppress(Exception):
                    written.result()
                raise
        return []

    async def _background_serialize(self, values, infos, args=None):
        self._pending = collections.deque((_DONE, np.empty(0, np.uint8)) for _ in range(PIECES))
        with concurrent.futures.ThreadPoolExecutor(1) as self._thread:
            await super()._background_serialize(values, infos, args)
            for future, _ in self._pending:
                future.result()

    async def _open_and_write(self, value, tspec, ts_context):
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write, value, tspec, ts_context)

    def _write(self, value, tspec, ts_context):
        if not self._stopped:
            try:
                self._write_pieces(value, tspec, ts_context)
            except Exception:
                self._stopped = True
                raise

    def _write_pieces(self, value, tspec, ts_context):
        rows, source = _rows_in_a_piece(value), Rows(value.blocks(), value.name)
        if value.shape:
            tspec["metadata"]["chunks"] = [rows, *value.shape[1:]]
        store = tensorstore.open(tspec, create=True, open=True, context=ts_context).result()
        for start in range(0, value.shape[0] if value.shape else 1, rows):
            part = store[start : min(start + rows, value.shape[0])] if value.shape else store
            before, memory = self._pending[0]
            before.result()
            if self._stopped:
                return
            size = math.prod(part.shape) * value.dtype.itemsize
            if memory.size < size:
                memory = np.empty(max(size, PIECE), np.uint8)
            piece = memory[:size].view(value.dtype).reshape(part.shape)
            source.read_into(piece)
            # A piece is a whole chunk: it goes to the file as it is, without a copy.
            self._pending.append((part.write(piece, can_reference_source_data_indefinitely=True), memory))
            self._pending.popleft()


def _rows_in_a_piece(array: Lazy) -> int:
    if not array.shape:
        return 1
    pieces = math.ceil(array.size * array.dtype.itemsize / PIECE)
    return math.ceil(array.shape[0] / min(pieces, array.shape[0]))
