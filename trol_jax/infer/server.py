"""A loop that answers requests as they come: those that wait take over the slots of those that have ended."""

import collections
import dataclasses
import itertools
import queue
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np

from trol_jax.errors import UserError
from trol_jax.infer.decoding import GREEDY, Decoding, sampling
from trol_jax.infer.engine import Engine, padded
from trol_jax.infer.sampling import Sampling

PROMPT_TOKENS = 16384  # of prompts that are run together


class Full(UserError):
    """As many requests wait as may."""


class TooLong(UserError):
    def __init__(self, prompt: int, new: int, length: int):
        """Tokens of the prompt, of its answer at most, and those that fit."""
        super().__init__(
            f"the prompt has {prompt:,} tokens, which with an answer of {new:,} is more than "
            f"the {length:,} that fit; shorten the question or max_new_tokens"
        )
        self.prompt = prompt


@dataclasses.dataclass(eq=False)
class Request:
    """tokens: the prompt, image tokens included; tiles: uint8[M, height, width, C] or None."""

    tokens: list[int]
    tiles: np.ndarray | None
    max_new_tokens: int
    decoding: Decoding = GREEDY
    gate: np.ndarray | None = None  # float32[L, T] of the prompt, mean over the passes, once it has been run
    said: list[int] = dataclasses.field(default_factory=list)
    listener: Callable[[list[int] | BaseException | None], None] | None = None  # gets the news in place of `stream`
    _cancelled: bool = False
    _news: queue.SimpleQueue = dataclasses.field(default_factory=queue.SimpleQueue)

    def stream(self) -> Iterator[list[int]]:
        """New tokens as they come; ends when the answer does. Raises what went wrong while answering.

        A `listener` set before `Server.submit` is called with the same instead, from the server's thread, which it must
        not hold up: new tokens, at last None or what went wrong.
        """
        while (news := self._news.get()) is not None:
            if isinstance(news, BaseException):
                raise news
            yield news

    def result(self) -> list[int]:
        """The whole answer, with the token that stopped it."""
        for _ in self.stream():
            pass
        return self.said

    def run(self, gate: np.ndarray) -> None:
        """The prompt has been run. gate: float32[L, T or more]."""
        self.gate = gate[:, : len(self.tokens)]

    def say(self, tokens: list[int], last: bool) -> None:
        self.said += tokens
        if tokens:
            self._tell(tokens)
        if last:
            self._tell(None)

    def fail(self, error: BaseException) -> None:
        self._tell(error)

    def _tell(self, news: list[int] | BaseException | None) -> None:
        (self.listener or self._news.put)(news)

    def cancel(self) -> None:
        """Ends the answer; its slot is free for others within a chunk."""
        self._cancelled = True


@dataclasses.dataclass
class Ready:
    """Prompts that were run together. requests: by row, those that have no slot yet."""

    requests: dict[int, Request] = dataclasses.field(default_factory=dict)
    prompts: list = dataclasses.field(default_factory=list)  # for `Engine.admit`
    limits: list[int] = dataclasses.field(default_factory=list)
    samplings: Sampling | None = None
    gate: jax.Array | None = None


class Server:
    """Runs an engine in a thread of its own. Requests are admitted in the order of `submit`."""

    def __init__(self, engine: Engine, waiting: int | None = None):
        """waiting: requests that may wait for a slot; by default any number."""
        self.engine, self._limit = engine, waiting
        self._waiting: collections.deque[Request] = collections.deque()
        self._ready = Ready()
        self._running: dict[int, Request] = {}  # by slot
        self._wake, self._end = threading.Condition(), None
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Request:
        """TooLong for one that no slot can hold, Full if too many wait."""
        self._check(request)
        with self._wake:
            if self._end:
                raise self._end
            if self._limit is not None and sum(self.load) >= self.engine.size + self._limit:
                raise Full(f"{self._limit} requests are waiting already; try again later")
            self._waiting.append(request)
            self._wake.notify()
        return request

    @property
    def alive(self) -> bool:
        """Whether it takes requests: it was not closed, and nothing broke it."""
        return self._end is None

    @property
    def load(self) -> tuple[int, int]:
        """Requests that are being answered, and that wait; without those that were cancelled."""
        lists = list(self._running.values()), [*self._ready.requests.values(), *self._waiting]
        running, waiting = (sum(not request._cancelled for request in each) for each in lists)
        return running, waiting

    def close(self) -> None:
        """Ends what is running and what waits, with an error for those who listen."""
        self._stop(RuntimeError("the server was closed"))
        self._thread.join()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _check(self, request: Request) -> None:
        prompt, new = len(request.tokens), request.max_new_tokens
        if prompt < 1 or new < 1:
            raise ValueError(f"a prompt of {prompt} tokens and an answer of {new}: both must be at least 1")
        if prompt + new > self.engine.length:
            raise TooLong(prompt, new, self.engine.length)
        if request.decoding.beams > 1:
            raise UserError("beams are not searched side by side with other requests")

    # ------------------------------------------------------------------ in the thread
    def _run(self) -> None:
        try:
            while True:
                self._forget()
                if not self._busy():
                    slots = self.engine.start()  # what long answers took is free again
                if not self._wait():
                    break
                slots = self._grow(self._admit(slots))
                slots, said = self.engine.decode(slots)
                self._prefill()  # of some that wait, at the same time where the device can
                slots = self._deliver(slots, np.asarray(said))
        except BaseException as error:
            self._stop(error)
        for request in [*self._running.values(), *self._ready.requests.values(), *self._waiting]:
            request.fail(self._end)

    def _stop(self, reason: BaseException) -> None:
        with self._wake:
            self._end = self._end or reason
            self._wake.notify()

    def _busy(self) -> bool:
        return bool(self._running or self._ready.requests or self._waiting)

    def _wait(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._end or self._busy())
            return not self._end

    def _forget(self) -> None:
        """Those that were cancelled before they had a slot."""
        gone = [request for request in list(self._waiting) if request._cancelled]
        for request in gone:
            self._waiting.remove(request)
        ready = self._ready.requests
        gone += [ready.pop(row) for row, request in list(ready.items()) if request._cancelled]
        for request in gone:
            request.say([], last=True)
        if not ready:
            self._ready = Ready()  # prompts take memory

    def _prefill(self) -> None:
        """Runs the prompts of the one that waits longest and of those like it; at most as many as slots are free, or
        a quarter of all before any is.
        """
        free = self.engine.size - len(self._running)
        batch = [] if self._ready.requests else self._next(free or max(1, self.engine.size // 4))
        if not batch:
            return
        self._ready = ready = Ready(dict(enumerate(batch)))
        filled = batch + batch[:1] * ((1 << (len(batch) - 1).bit_length()) - len(batch))
        tokens = np.full((len(filled), self._shape(batch[0])[0]), -1, np.int32)
        for row, request in zip(tokens, filled, strict=True):
            row[: len(request.tokens)] = request.tokens
        tiles = None if batch[0].tiles is None else np.stack([request.tiles for request in filled])
        *ready.prompts, ready.gate = self.engine.prompt(tokens, tiles)
        ready.limits = [request.max_new_tokens for request in filled]
        ready.samplings = sampling([request.decoding for request in filled])

    def _admit(self, slots):
        self._prefill()
        ready = self._ready
        free = (slot for slot in range(self.engine.size) if slot not in self._running)
        if not (taken := dict(zip(list(ready.requests), list(free), strict=False))):
            return slots
        self._running |= {slot: ready.requests.pop(row) for row, slot in taken.items()}
        for row, slot in taken.items():
            self._running[slot].run(np.asarray(ready.gate[row]))
        if not ready.requests:
            self._ready = Ready()
        slots = self.engine.fit(slots, ready.prompts[1].valid.shape[1])
        where = [taken.get(row, self.engine.size) for row in range(len(ready.limits))]
        return self.engine.admit(slots, where, ready.prompts, ready.limits, ready.samplings)

    def _grow(self, slots):
        """Slots that hold what the next chunk may bring."""
        chunk, running = self.engine.chunk, self._running.values()
        tokens = (len(r.tokens) + min(len(r.said) + chunk, r.max_new_tokens) for r in running)
        return self.engine.fit(slots, max(tokens, default=1))

    def _next(self, most: int) -> list[Request]:
        """The one that waits longest, and of the others, in order, those whose prompts have its shape."""
        self._forget()
        if not self._waiting:
            return []
        shape = self._shape(self._waiting[0])
        like = (request for request in list(self._waiting) if self._shape(request) == shape)
        batch = list(itertools.islice(like, min(most, max(1, PROMPT_TOKENS // shape[0]))))
        for request in batch:
            self._waiting.remove(request)
        return batch

    def _shape(self, request: Request) -> tuple:
        length = min(padded(len(request.tokens)), self.engine.length)
        return length, None if request.tiles is None else request.tiles.shape

    def _deliver(self, slots, said: np.ndarray):
        latest, gone = np.asarray(slots.token), []
        for slot, request in list(self._running.items()):
            last = latest[slot] < 0 or request._cancelled
            request.say([token for token in said[slot].tolist() if token >= 0], last)
            if last:
                del self._running[slot]
                gone += [slot] if latest[slot] >= 0 else []
        return self.engine.release(slots, gone) if gone else slots
