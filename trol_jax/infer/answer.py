"""Answers to questions about pictures: a checkpoint, its tokeniser and greedy generation, in batches of few shapes."""

import dataclasses
import functools
import os
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from trol_jax import checkpoint
from trol_jax.data.images import resize_image
from trol_jax.data.prompts import encode_prompt
from trol_jax.data.tokenizer import FILE as TOKENIZER
from trol_jax.data.tokenizer import Tokenizer
from trol_jax.errors import UserError
from trol_jax.infer.greedy import generate
from trol_jax.models.trol import TroL, abstract_params
from trol_jax.ops.image import normalize
from trol_jax.train import config as config_lib

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
        config = read_config(step_dir)
        if config.objective != "answers":
            raise UserError(
                f"{step_dir} cannot answer: it was trained for {config.objective} (config.objective); "
                f"train a run that starts from it (config.start_from) first"
            )
        tokenizer = Tokenizer.parse(checkpoint.read_file(step_dir, TOKENIZER), step_dir / TOKENIZER)
        sizes = config_lib.model_config(config.model, tokenizer.vocab_size, tokenizer.image_id)
        model = TroL(sizes, jnp.dtype(config.dtype))
        params = checkpoint.restore_params(step_dir, nn.unbox(abstract_params(model)))
        return cls(model, params, tokenizer, config.data.system, batch_size)

    def prompt(self, question: str, with_image: bool) -> list[int]:
        """Tokens of the prompt; UserError for an empty question."""
        if not question.strip():
            raise UserError("the question is empty; write one")
        image_tokens = self.model.config.image_tokens if with_image else 0
        return encode_prompt(self.tokenizer, self.tokenizer.format, question, image_tokens, self.system)

    def answer(self, questions: Sequence[Question], max_new_tokens: int) -> list[Answer]:
        """Greedy answers, in the order of the questions. Neighbours of similar length share a batch at least cost."""
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}, must be at least 1")
        answers = []
        for start in range(0, len(questions), self.batch_size):
            answers += self._batch(questions[start : start + self.batch_size], max_new_tokens)
        return answers

    def _batch(self, questions: Sequence[Question], max_new_tokens: int) -> list[Answer]:
        count = len(questions)
        # Copies of the first question fill the batch: they stop when it does, and so never keep the others waiting.
        questions = [*questions, *[questions[0]] * (self.batch_size - count)]
        tokens, valid = self._pad_left([self.prompt(text, image is not None) for image, text in questions])
        images = self._stack([image for image, _ in questions])
        stop = (self.tokenizer.end_id, self.tokenizer.eos_id)
        out = run(self.model, self.params, tokens, valid, images, max_new_tokens=max_new_tokens, stop=stop)
        return [self._answer(*row) for row in zip(*(np.asarray(a)[:count] for a in out), strict=True)]

    def _pad_left(self, prompts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        length = -(-max(map(len, prompts)) // BUCKET) * BUCKET
        tokens = np.full((len(prompts), length), self.tokenizer.pad_id, np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[length - len(prompt) :] = prompt
        return tokens, np.arange(length) >= length - np.array([[len(prompt)] for prompt in prompts])

    def _stack(self, images: list[np.ndarray | None]) -> np.ndarray | None:
        """uint8[B, size, size, 3], black where a question has no picture; None if none has."""
        if all(image is None for image in images):
            return None
        size = self.model.config.vision.image_size
        black = np.zeros((size, size, 3), np.uint8)
        return np.stack([black if image is None else resize_image(image, size) for image in images])

    def _answer(self, tokens: np.ndarray, gate_image: np.ndarray, gate_text: np.ndarray) -> Answer:
        tokens = tokens[tokens >= 0].tolist()
        stopped = tokens[-1] in (self.tokenizer.end_id, self.tokenizer.eos_id)
        text = self.tokenizer.decode(tokens[:-1] if stopped else tokens).strip()
        return Answer(text, tokens, stopped, gate_image, gate_text)


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "stop"))
def run(model: TroL, params, tokens, valid, images, *, max_new_tokens: int, stop: tuple[int, ...]):
    """tokens: int[B, T], valid: bool[B, T], images: uint8[B, height, width, C] or None.

    Returns (answers int32[B, max_new_tokens] as `generate` does, and the mean gates over image tokens and over the
    others, float32[B, L] each).
    """
    if images is not None:
        images = normalize(images, model.config.vision.mean, model.config.vision.std)[:, None]
    segment_ids = valid.astype(jnp.int32)
    answers, out = generate(model, params, tokens, segment_ids, images, max_new_tokens=max_new_tokens, stop=stop)
    gate = out["gate"].mean(axis=1)

    def mean(where):
        count = where.sum(axis=1)
        total = jnp.sum(gate, axis=2, where=where)
        return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan).T

    is_image = tokens == model.config.image_token
    return answers, mean(valid & is_image), mean(valid & ~is_image)


def read_config(step_dir: str | os.PathLike) -> config_lib.RunConfig:
    """The settings of the run that a step belongs to."""
    where = f"{os.fspath(step_dir)}/{checkpoint.CONFIG}: config"
    return config_lib.from_dict(checkpoint.read_config(step_dir), where=where)
