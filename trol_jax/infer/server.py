"""A loop that answers requests as they come: those that wait take over the slots of those that have ended."""

import collections
import dataclasses
import queue
import threading
from collections.abc import Iterator

import jax
import numpy as np

from trol_jax.infer.decoding import GREEDY, Decoding
from trol_jax.infer.engine import Engine

BUCKET = 64  # prompts are padded to a multiple of this many tokens, so that few lengths are compiled


@dataclasses.dataclass(eq=False)
class Request:
    """tokens: the prompt, image tokens included; tiles: uint8[M, height, width, C] or None."""

    tokens: list[int]
    tiles: np.ndarray | None
    max_new_tokens: int
    decoding: Decoding = GREEDY
    gate: np.ndarray | None = None  # float32[L, T] of the prompt, once it has been run
    said: list[int] = dataclasses.field(default_factory=list)
    cancelled: bool = False
    _news: queue.SimpleQueue = dataclasses.field(default_factory=queue.SimpleQueue)

    def stream(self) -> Iterator[list[int]]:
        """New tokens as they come; ends when the answer does. Raises what went wrong while answering."""
        while (news := self._news.get()) is not None:
            if isinstance(news, BaseException):
                raise news
            yield news

    def result(self) -> list[int]:
        for _ in self.stream():
            pass
        return self.said

    def cancel(self) -> None:
        """Its slot is free for others within a chunk."""
        self.cancelled = True


class Server:
    """Runs an engine in a thread of its own. Requests are admitted in the order of `submit`."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._waiting: collections.deque[Request] = collections.deque()
        self._wake, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Request:
        with self._wake:
            if self._closed:
                raise RuntimeError("the server is closed")
            self._waiting.append(request)
            self._wake.notify()
        return request

    def close(self) -> None:
        """Ends what is running and drops what waits."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # ------------------------------------------------------------------ in the thread
    def _run(self) -> None:
        slots, running = self.engine.start(), {}
        try:
            while self._wait(running):
                slots = self._admit(slots, running)
                slots, said = self.engine.decode(slots)
                slots = self._deliver(slots, running, np.asarray(said))
        except BaseException as error:
            self._closed = True
            for request in [*running.values(), *self._waiting]:
                request._news.put(error)
        else:
            for request in [*running.values(), *self._waiting]:
                request._news.put(RuntimeError("the server was closed"))

    def _wait(self, running: dict[int, Request]) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._closed or running or self._waiting)
            return not self._closed

    def _admit(self, slots, running: dict[int, Request]):
        free = [slot for slot in range(self.engine.size) if slot not in running]
        while free and self._waiting:
            request = self._waiting.popleft()
            if request.cancelled:
                request._news.put(None)
                continue
            slot, length = free.pop(0), len(request.tokens)
            tokens = np.full(min(-(-length // BUCKET) * BUCKET, self.engine.length), -1, np.int32)
            tokens[:length] = request.tokens
            *prompt, gate = self.engine.prompt(tokens, request.tiles)
            sampling = request.decoding.sampling(0, 1)
            slots = self.engine.admit(slots, slot, prompt, request.max_new_tokens, sampling)
            request.gate, running[slot] = np.asarray(gate[:, :length]), request
        return slots

    def _deliver(self, slots, running: dict[int, Request], said: np.ndarray):
        latest = np.asarray(slots.token)
        gone = []
        for slot, request in list(running.items()):
            if new := [token for token in said[slot].tolist() if token >= 0]:
                request.said += new
                request._news.put(new)
            if latest[slot] < 0 or request.cancelled:
                request._news.put(None)
                del running[slot]
                gone.append(slot)
        if any(latest[slot] >= 0 for slot in gone):
            slots = slots.replace(token=jax.numpy.asarray(np.where(np.isin(np.arange(len(latest)), gone), -1, latest)))
        return slots
