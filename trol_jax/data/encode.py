"""From a sample of the training sources to tokens: what the model reads, what it is to write, where pictures go."""

import dataclasses
import itertools
import os
from collections.abc import Sequence

import numpy as np

from trol_jax.data import images
from trol_jax.data.paths import resolve
from trol_jax.data.prompts import encode_chat
from trol_jax.data.sources.sample import ASSISTANT, IMAGE, USER, Sample
from trol_jax.data.tokenizer import Tokenizer
from trol_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A sample that is ready to be packed; its pictures are not decoded yet.

    tokens: int32[T]; loss_mask: bool[T], the answers, each with its end mark.
    pictures: encoded, or full paths; tiles: how many the tower gets of each.
    cut: tokens that were cut off at the end.
    """

    source: str
    id: str
    tokens: np.ndarray
    loss_mask: np.ndarray
    pictures: tuple[str | bytes, ...]
    tiles: tuple[int, ...]
    cut: int = 0


@dataclasses.dataclass(frozen=True)
class SampleEncoder:
    """Sample -> Encoded. UserError names source and id of a sample that cannot be used.

    image_size: pixels a side of a tile; tile_tokens: tokens that a tile takes; max_tiles: of a picture, in the family
    that cuts pictures into tiles; max_length: tokens of a sample; system: the system message, "" = none.

    The picture stands where the data has its mark. A line break between mark and text goes, for the prompts of the
    original have none. What is too long is cut off at the end, and never within a picture.
    """

    root: str
    tokenizer: Tokenizer
    image_size: int
    tile_tokens: int
    max_tiles: int
    max_length: int
    system: str

    def __call__(self, sample: Sample) -> Encoded:
        try:
            return self._encode(sample)
        except UserError as error:
            raise type(error)(f"sample {sample.id} of {sample.source}: {error}") from error

    def _encode(self, sample: Sample) -> Encoded:
        pairs = paired(sample.turns)
        marks = sum(question.count(IMAGE) for question, _ in pairs)
        if marks != len(sample.pictures):
            raise UserError(f"{marks} marks {IMAGE} in the questions, {len(sample.pictures)} pictures")
        pictures = tuple(p if isinstance(p, bytes) else resolve(self.root, os.fspath(p)) for p in sample.pictures)
        tiles = tuple(map(self._tiles, pictures))
        counts = (count * self.tile_tokens for count in tiles)
        turns = [(_pieces(question, counts), answer) for question, answer in pairs]
        chat = encode_chat(self.tokenizer, self.tokenizer.format, turns, 0, self.system)
        length = self._end(chat.tokens, tiles)
        if not chat.loss_mask[:length].any():
            raise UserError(f"nothing of an answer is within the {self.max_length:,} tokens of a row")
        kept = int((chat.tokens[:length] == self.tokenizer.image_id).sum()) // self.tile_tokens
        whole = sum(total <= kept for total in itertools.accumulate(tiles))
        return Encoded(
            sample.source, sample.id, chat.tokens[:length], chat.loss_mask[:length],
            pictures[:whole], tiles[:whole], len(chat.tokens) - length,
        )  # fmt: skip

    def _tiles(self, picture: str | bytes) -> int:
        family = self.tokenizer.format.name
        size = (1, 1) if family == "internlm2" else images.upright_size(picture)
        return images.tiles_of(*size, family, self.image_size, self.max_tiles)

    def _end(self, tokens: np.ndarray, tiles: Sequence[int]) -> int:
        """How many tokens stay: max_length, or all before the picture that would be cut."""
        if len(tokens) <= self.max_length:
            return len(tokens)
        around = bool(self.tokenizer.format.image_start), bool(self.tokenizer.format.image_end)
        places, first = np.flatnonzero(tokens == self.tokenizer.image_id), 0
        for count in tiles:
            start = places[first] - around[0]
            first += count * self.tile_tokens
            if start < self.max_length < places[first - 1] + 1 + around[1]:
                return int(start)
        return self.max_length


def paired(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(question, answer) pairs of turns that alternate; a last question without an answer is left out."""
    for number, (role, _) in enumerate(turns):
        if role != (USER, ASSISTANT)[number % 2]:
            raise UserError(f"turn {number + 1} is by the {role}; they must alternate and begin with the {USER}")
    pairs = [(question, answer) for (_, question), (_, answer) in zip(turns[::2], turns[1::2], strict=False)]
    if not any(answer.strip() for _, answer in pairs):
        raise UserError("no answer")
    return pairs


def _pieces(question: str, counts) -> list[str | int]:
    """Text and, in the place of each mark, the next of `counts`."""
    texts, pieces = question.split(IMAGE), []
    for number, text in enumerate(texts):
        if number:
            pieces.append(next(counts))
            text = text.removeprefix("\n")
        pieces.append(text.removesuffix("\n") if number < len(texts) - 1 else text)
    return [piece for piece in pieces if piece != ""]
