"""Answers to questions about pictures: a checkpoint, its tokeniser and generation, in batches of few shapes."""

import dataclasses
import functools
import os
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from trol_jax import checkpoint, saved
from trol_jax.data.images import prepare
from trol_jax.data.prompts import SYSTEM, encode_prompt
from trol_jax.data.tokenizer import Tokenizer
from trol_jax.errors import UserError
from trol_jax.infer.beam import beam_search
from trol_jax.infer.decoding import GREEDY, Decoding
from trol_jax.infer.generate import generate
from trol_jax.models.trol import TroL, abstract_params
from trol_jax.ops.image import normalize

BUCKET = 16  # prompts are padded to a multiple of this many tokens, so that few lengths are compiled

Question = tuple[np.ndarray | None, str]  # picture uint8[height, width, 3] of any size, and what is asked


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """gate_image, gate_text: float32[L], mean gate over the prompt's image tokens and over its others; NaN without any.

    Where a layer runs more than twice, the mean is over all its gates.
    """

    text: str
    tokens: list[int]  # as generated, with the mark that ended it
    stopped: bool  # by an end mark, not by max_new_tokens
    gate_image: np.ndarray
    gate_text: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Answerer:
    """`batch_size` questions run at a time, on one device; fewer are filled up, which changes no answer."""

    model: TroL
    params: dict
    tokenizer: Tokenizer
    system: str  # system message; "" = none
    batch_size: int = 1

    @classmethod
    def load(cls, path: str | os.PathLike, batch_size: int = 1) -> "Answerer":
        """From a run, its checkpoints or one step. UserError if it is missing, damaged or never learned to answer."""
        step_dir = checkpoint.resolve(path)
        here = saved.read(step_dir)
        run = here.settings
        if run is not None and run.objective != "answers":
            raise UserError(
                f"{step_dir} cannot answer: it was trained for {run.objective} (config.objective); "
                f"train a run that starts from it (config.start_from) first"
            )
        if here.tokenizer is None:
            raise UserError(f"{step_dir} cannot answer: it has no tokeniser; convert a folder that has one")
        model = TroL(here.model, jnp.dtype(run.dtype if run else jnp.float32))
        params = checkpoint.restore_params(step_dir, nn.unbox(abstract_params(model)), as_stored=True)
        return cls(model, params, here.tokenizer, run.data.system if run else SYSTEM, batch_size)

    def prompt(self, question: str, tiles: int) -> list[int]:
        """Tokens of the prompt with a picture of so many tiles, 0 = none; UserError for an empty question."""
        if not question.strip():
            raise UserError("the question is empty; write one")
        if any("\ud800" <= letter <= "\udfff" for letter in question):
            raise UserError(f"the question {question!r} is not UTF-8 text; write it anew")
        image_tokens = self.model.config.image_tokens * tiles
        return encode_prompt(self.tokenizer, self.tokenizer.format, question, image_tokens, self.system)

    def answer(self, questions: Sequence[Question], max_new_tokens: int, decoding: Decoding = GREEDY) -> list[Answer]:
        """Answers in the order of the questions. Neighbours of similar length share a batch at least cost."""
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}, must be at least 1")
        answers = []
        for start in range(0, len(questions), self.batch_size):
            batch, sampling = questions[start : start + self.batch_size], decoding.sampling(start, self.batch_size)
            answers += self._batch(batch, max_new_tokens, decoding, sampling)
        return answers

    def _batch(self, questions: Sequence[Question], max_new_tokens: int, decoding, sampling) -> list[Answer]:
        count = len(questions)
        tiles = [self._tiles(image) for image, _ in questions]
        prompts = [self.prompt(text, len(mine)) for mine, (_, text) in zip(tiles, questions, strict=True)]
        # Copies of the first question fill the batch: they stop when it does, and so never keep the others waiting.
        tiles, prompts = (rows + rows[:1] * (self.batch_size - count) for rows in (tiles, prompts))
        (tokens, valid), images = self._pad_left(prompts), self._stack(tiles)
        stop = (self.tokenizer.end_id, self.tokenizer.eos_id)
        options = dict(max_new_tokens=max_new_tokens, stop=stop, beams=decoding.beams)
        out = run(self.model, self.params, tokens, valid, images, sampling, decoding.length_penalty, **options)
        return [self._answer(*row) for row in zip(*(np.asarray(a)[:count] for a in out), strict=True)]

    def _pad_left(self, prompts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        length = -(-max(map(len, prompts)) // BUCKET) * BUCKET
        tokens = np.full((len(prompts), length), self.tokenizer.pad_id, np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[length - len(prompt) :] = prompt
        return tokens, np.arange(length) >= length - np.array([[len(prompt)] for prompt in prompts])

    def _tiles(self, image: np.ndarray | None) -> np.ndarray:
        """uint8[M, size, size, 3]; M = 0 without a picture."""
        size = self.model.config.vision.image_size
        if image is None:
            return np.zeros((0, size, size, 3), np.uint8)
        return prepare(image, self.model.config.family, size, self.model.config.max_tiles)

    @staticmethod
    def _stack(tiles: list[np.ndarray]) -> np.ndarray | None:
        """uint8[B, M, size, size, 3]; None without any. Rows of fewer tiles end in black: no token asks for it."""
        most = max(map(len, tiles))
        if not most:
            return None
        return np.stack([np.pad(mine, ((0, most - len(mine)), *[(0, 0)] * 3)) for mine in tiles])

    def _answer(self, tokens: np.ndarray, gate_image: np.ndarray, gate_text: np.ndarray) -> Answer:
        tokens = tokens[tokens >= 0].tolist()
        stopped = tokens[-1] in (self.tokenizer.end_id, self.tokenizer.eos_id)
        text = self.tokenizer.decode(tokens[:-1] if stopped else tokens).strip()
        return Answer(text, tokens, stopped, gate_image, gate_text)


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "stop", "beams"))
def run(
    model: TroL, params, tokens, valid, images, sampling=None, length_penalty=1.0, *,
    max_new_tokens: int, stop: tuple[int, ...], beams: int = 1,
):  # fmt: skip
    """tokens: int[B, T], valid: bool[B, T], images: uint8[B, M, height, width, C] or None.

    Returns (answers int32[B, max_new_tokens] as `generate` does, and the mean gates over image tokens and over the
    others, float32[B, L] each).
    """
    if images is not None:
        images = normalize(images, model.config.vision.mean, model.config.vision.std)
    inputs, options = (tokens, valid.astype(jnp.int32), images), dict(max_new_tokens=max_new_tokens, stop=stop)
    if beams > 1:
        answers, out = beam_search(model, params, *inputs, beams=beams, length_penalty=length_penalty, **options)
    else:
        answers, out = generate(model, params, *inputs, sampling, **options)
    gate = out["gate"].mean(axis=1)

    def mean(where):
        count = where.sum(axis=1)
        total = jnp.sum(gate, axis=2, where=where)
        return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan).T

    is_image = tokens == model.config.image_token
    return answers, mean(valid & is_image), mean(valid & ~is_image)
