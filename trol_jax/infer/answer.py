"""Answers to questions about pictures: a checkpoint, its tokeniser, and what turns a question into tokens and back."""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from trol_jax import checkpoint, saved
from trol_jax.data.images import load_image, prepare
from trol_jax.data.prompts import SYSTEM, encode_prompt
from trol_jax.data.tokenizer import Tokenizer
from trol_jax.errors import UserError
from trol_jax.infer import weights
from trol_jax.infer.beam import beam_search
from trol_jax.infer.decoding import GREEDY, Decoding
from trol_jax.infer.engine import Engine, padded
from trol_jax.infer.generate import inputs
from trol_jax.infer.server import PROMPT_TOKENS, Request, Server, TooLong
from trol_jax.models.layers import anywhere
from trol_jax.models.trol import TroL
from trol_jax.models.variants import with_traversal

# uint8[height, width, 3] of any size, what Pillow opened, a file or its content
Picture = np.ndarray | Image.Image | bytes | str | os.PathLike


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """history: earlier questions and their answers. All pictures come before the first of these, in order."""

    text: str
    pictures: Sequence[Picture] = ()
    history: Sequence[tuple[str, str]] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """gate: float32[L, T] over the prompt's tokens. gate_image, gate_text: float32[L], its means over image tokens and
    over the others; NaN without any. Where a layer runs more than twice, of all its gates the mean counts.
    """

    text: str
    tokens: list[int]  # as generated, with the mark that ended it
    stopped: bool  # by an end mark, not by max_new_tokens
    prompt: list[int]
    gate: np.ndarray
    gate_image: np.ndarray
    gate_text: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Answerer:
    model: TroL
    params: dict
    tokenizer: Tokenizer
    system: str  # system message; "" = none
    cache: jnp.dtype | None = None  # see `Engine`

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        weight_kind: str | None = None,
        cache: str | None = None,
        layout: Callable = anywhere,
        traversal: str | None = None,
        system: str | None = None,
    ) -> "Answerer":
        """From a run, its checkpoints or one step. UserError if it is missing, damaged or never learned to answer.

        weight_kind: one of `weights.KINDS`, by default as stored; all but float32 compute in bfloat16 (on a CPU in
        float32). cache: bfloat16 or int8, by default what is computed in. layout: a
        `sharding.rules.Layout`, by default the first device. traversal: options to answer by instead of those the model
        was trained with, as `answer_passes=1`. system: the message before the question; "" = none,
        by default that of training, or of a converted model the original's.
        """
        step_dir = checkpoint.resolve(path)
        here = saved.read_whole(step_dir)
        run = here.settings
        if run is not None and run.objective == "words":
            raise UserError(
                f"{step_dir} cannot answer: it was trained for {run.objective} (config.objective); "
                f"train a run that starts from it (config.start_from) first"
            )
        if here.tokenizer is None:
            raise UserError(f"{step_dir} cannot answer: it has no tokeniser; convert a folder that has one")
        if cache not in (None, "float32", "bfloat16", "int8"):
            raise UserError(f"a cache in {cache!r} is not known; choose float32, bfloat16 or int8")
        few = weight_kind not in (None, "float32") and jax.default_backend() != "cpu"
        dtype = jnp.bfloat16 if few else jnp.dtype(run.dtype if run and weight_kind is None else jnp.float32)
        model = TroL(with_traversal(here.model, traversal or ""), dtype, separate=True, layout=layout)
        params = weights.load(step_dir, model, weight_kind)
        if system is None:
            system = run.data.system if run else SYSTEM
        return cls(model, params, here.tokenizer, system, cache and jnp.dtype(cache))

    # ------------------------------------------------------------------ questions to tokens
    def prompt(self, question: Question, tiles: Sequence[int]) -> list[int]:
        """Tokens of the prompt with pictures of so many tiles; UserError for an empty question."""
        texts = [question.text, *(text for turn in question.history for text in turn)]
        if not question.text.strip():
            raise UserError("the question is empty; write one")
        for text in texts:
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise UserError(f"the question {text!r} is not UTF-8 text; write it anew")
        tokens = [self.model.config.image_tokens * count for count in tiles]
        return encode_prompt(
            self.tokenizer, self.tokenizer.format, question.text, tokens, self.system, question.history
        )

    def request(
        self, question: Question, max_new_tokens: int, decoding: Decoding = GREEDY, length: int = Engine.length
    ) -> Request:
        """For `Server.submit`. UserError for a picture that cannot be read, TooLong for what is beyond the model's
        context or `length`: some prompts would take all memory.
        """
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}, must be at least 1")
        tiles = [self._tiles(picture) for picture in question.pictures]
        prompt = self.prompt(question, [len(each) for each in tiles])
        if len(prompt) + max_new_tokens > (length := min(length, self.context)):
            raise TooLong(len(prompt), max_new_tokens, length)
        return Request(prompt, np.concatenate(tiles) if tiles else None, max_new_tokens, decoding)

    def _tiles(self, picture: Picture) -> np.ndarray:
        """uint8[M, size, size, 3]."""
        config = self.model.config
        how = (config.family, config.vision.image_size, config.max_tiles)
        if isinstance(picture, str | os.PathLike):
            return _tiles_of_file(os.fspath(picture), *how)
        return prepare(load_image(picture) if isinstance(picture, bytes | Image.Image) else picture, *how)

    @property
    def context(self) -> int:
        """Tokens of a prompt with its answer that the model was made for."""
        return self.model.config.decoder.rope.max_positions

    # ------------------------------------------------------------------ tokens to answers
    @property
    def stop(self) -> tuple[int, ...]:
        return self.tokenizer.end_id, self.tokenizer.eos_id

    def text(self, tokens: Sequence[int]) -> str:
        """Of an answer's tokens, without the mark that ended it."""
        stopped = bool(tokens) and tokens[-1] in self.stop
        return self.tokenizer.decode(tokens[:-1] if stopped else tokens).strip()

    def stream(self, request: Request) -> Iterator[str]:
        """The text of an answer in pieces, as they come."""
        shown = ""
        for news in itertools.chain(request.stream(), [None]):
            text = self.text(request.said)
            if news is not None:
                text = text.rstrip("\ufffd")  # what the first bytes of a letter look like
            if text.startswith(shown) and text != shown:
                yield text[len(shown) :]
                shown = text

    def finish(self, request: Request | UserError) -> Answer | UserError:
        """Waits for the whole answer."""
        if isinstance(request, UserError):
            return request
        tokens = request.result()
        is_image = np.array(request.tokens) == self.model.config.image_token
        means = []
        for where in (is_image, ~is_image):
            nothing = np.full(len(request.gate), np.nan, np.float32)
            means.append(request.gate[:, where].mean(axis=1) if where.any() else nothing)
        stopped = bool(tokens) and tokens[-1] in self.stop
        return Answer(self.text(tokens), tokens, stopped, request.tokens, request.gate, *means)

    # ------------------------------------------------------------------ many at a time
    def serve(
        self, size: int = 8, *, waiting: int | None = None, length: int = Engine.length, chunk: int = Engine.chunk
    ) -> Server:
        """See `Engine` and `Server`."""
        how = dict(length=min(length, self.context), chunk=chunk, cache=self.cache)
        return Server(Engine(self.model, self.params, self.stop, size, **how), waiting)

    def reply(self, question: Question, max_new_tokens: int, decoding: Decoding = GREEDY) -> Iterator[str]:
        """The answer to one question in pieces, as they come; what beams find comes as a whole."""
        request = self.request(question, max_new_tokens, decoding)
        if decoding.beams > 1:
            self._search([request], rows=1)
            yield from self.stream(request)
        else:
            with self.serve(1, chunk=1) as server:
                yield from self.stream(server.submit(request))

    def answer(
        self,
        questions: Collection[Question],
        max_new_tokens: int,
        decoding: Decoding = GREEDY,
        batch_size: int = 8,
        *,
        numbers: Sequence[int] | None = None,
        skip: bool = False,
    ) -> Iterator[Answer | UserError]:
        """In the order of the questions, each as soon as it and those before it are there.

        Up to `batch_size` are answered side by side, which changes no answer. A question draws with seed + its number,
        by default 0, 1, ... One that cannot be asked raises a UserError; with `skip` the error is its answer.
        """
        size = max(1, min(batch_size, len(questions)))
        numbers = numbers or range(len(questions))
        own = (dataclasses.replace(decoding, seed=(decoding.seed + i) % 2**32) for i in numbers)
        requests = _ahead(self._requests(zip(questions, own, strict=True), max_new_tokens, skip), size)
        if decoding.beams > 1:
            while batch := list(itertools.islice(requests, size)):
                sound = [request for request in batch if isinstance(request, Request)]
                rows = min(size, _rows(sound))
                for start in range(0, len(sound), rows):
                    self._search(sound[start : start + rows], rows)
                yield from map(self.finish, batch)
            return
        with self.serve(size, chunk=min(max_new_tokens, Engine.chunk)) as server:
            asked = collections.deque()
            for request in requests:
                asked.append(server.submit(request) if isinstance(request, Request) else request)
                if len(asked) > 2 * size:
                    yield self.finish(asked.popleft())
            yield from map(self.finish, asked)

    def _requests(self, questions, max_new_tokens: int, skip: bool) -> Iterator[Request | UserError]:
        for question, decoding in questions:
            try:
                yield self.request(question, max_new_tokens, decoding)
            except UserError as error:
                if not skip:
                    raise
                yield error

    def _search(self, requests: list[Request], rows: int) -> None:
        """Answers requests of the same options by beam search, in a batch of so many rows."""
        options = requests[0].decoding
        filled = requests + requests[:1] * (rows - len(requests))
        tokens = np.full((rows, padded(max(len(request.tokens) for request in requests))), -1, np.int32)
        for row, request in zip(tokens, filled, strict=True):
            row[: len(request.tokens)] = request.tokens
        images = _stack([request.tiles for request in filled])
        how = dict(beams=options.beams, stop=self.stop, cache_dtype=self.cache)
        how["max_new_tokens"] = requests[0].max_new_tokens
        out = search(self.model, self.params, tokens, images, options.length_penalty, **how)
        for request, said, gate in zip(requests, *map(np.asarray, out), strict=False):
            request.run(gate)
            request.say(said[said >= 0].tolist(), last=True)


def _ahead(items: Iterator, count: int) -> Iterator:
    """The items, up to `count` of them made in a thread while earlier ones are used: decoding pictures takes long."""
    end, thread = object(), concurrent.futures.ThreadPoolExecutor(1)
    try:
        coming = collections.deque(thread.submit(next, items, end) for _ in range(count))
        while (item := coming.popleft().result()) is not end:
            coming.append(thread.submit(next, items, end))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


@functools.lru_cache(32)
def _tiles_of_file(path: str, family: str, size: int, max_tiles: int) -> np.ndarray:
    return prepare(load_image(path), family, size, max_tiles)


def _rows(requests: Sequence[Request]) -> int:
    """How many are searched together: all are padded to the longest, and of long ones 8 could take all memory."""
    return max(1, PROMPT_TOKENS // padded(max((len(request.tokens) for request in requests), default=1)))


def _stack(tiles: list[np.ndarray | None]) -> np.ndarray | None:
    """uint8[B, M, size, size, 3]; None without any. Rows of fewer tiles end in black: no token asks for it."""
    some = next((mine for mine in tiles if mine is not None), None)
    if some is None:
        return None
    stacked = np.zeros((len(tiles), max(len(mine) for mine in tiles if mine is not None), *some.shape[1:]), np.uint8)
    for row, mine in zip(stacked, tiles, strict=True):
        if mine is not None:
            row[: len(mine)] = mine
    return stacked


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "stop", "beams", "cache_dtype"))
def search(model: TroL, params, tokens, images, length_penalty, **options):
    """tokens: int[B, T], padded with -1; images: uint8[B, M, height, width, C] or None; options: see `beam_search`.

    Returns (answers int32[B, max_new_tokens], -1 behind their ends; gate float32[B, L, T]).
    """
    prompts = inputs(model, tokens, images)
    answers, out = beam_search(model, params, *prompts, length_penalty=length_penalty, **options)
    return answers, out["gate"].mean(axis=1).swapaxes(0, 1)
