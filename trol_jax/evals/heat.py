"""The gate of a prompt's tokens as colours: on each picture, where its tokens lie, and on the words of the question."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image

from trol_jax.data.images import grid
from trol_jax.data.prompts import encode_chat
from trol_jax.data.tokenizer import Tokenizer
from trol_jax.models.variants import ModelConfig

COLORS = colormaps["viridis"]
DARKEST = 0.35  # of a colour, over black; over white it is as in its scale


@dataclasses.dataclass(frozen=True, eq=False)
class Map:
    """Gates of one picture, float32[L, rows, columns], a cell a token. whole: of the small picture behind tiles."""

    cells: np.ndarray
    whole: np.ndarray | None = None

    @property
    def tokens(self) -> int:
        return sum(each[0].size for each in (self.cells, self.whole) if each is not None)


def maps(gate: np.ndarray, sizes: Sequence[tuple[int, int]], config: ModelConfig) -> list[Map]:
    """gate: float32[L, N] of the image tokens alone, in their order; sizes: (height, width) of each picture in pixels.

    Tokens of a square are in reading order, also after pixel shuffle; tiles are, and the whole picture follows them.
    """
    side, start, made = round(config.image_tokens**0.5), 0, []
    for height, width in sizes:
        columns, rows = grid(height, width, config.vision.image_size, config.max_tiles)
        count = rows * columns
        end = start + (count + (count > 1)) * side**2
        if end > gate.shape[1]:
            break
        squares = gate[:, start:end].reshape(len(gate), -1, side, side)
        tiles = squares[:, :count].reshape(-1, rows, columns, side, side).swapaxes(2, 3)
        made.append(Map(tiles.reshape(-1, rows * side, columns * side), squares[:, -1] if count > 1 else None))
        start = end
    if len(made) < len(sizes) or start < gate.shape[1]:
        raise ValueError(f"{gate.shape[1]} image tokens are not those of {len(sizes)} pictures of {config.name}")
    return made


def words(
    tokenizer: Tokenizer, prompt: Sequence[int], gate: np.ndarray, question: str, maps: Sequence[Map], system: str
) -> list[tuple[str, np.ndarray]]:
    """[(piece of the question, its gate float32[L]), ...] of a prompt that asks it first, about these pictures.

    gate: float32[L, T] of the prompt. Tokens that are parts of one letter are one piece, with the mean of their gates.
    """
    tokens = [each.tokens for each in maps]
    chat = encode_chat(tokenizer, tokenizer.format, [(question, "")], tokens, system, isolate_turns=True)
    start = int((chat.turn_ids == 0).sum())
    end = len(prompt) - 1 - list(prompt)[::-1].index(tokenizer.end_id)
    return pieces(tokenizer, prompt[start:end], gate[:, start:end])


def pieces(tokenizer: Tokenizer, tokens: Sequence[int], gate: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The text of the tokens as in their sequence, token by token where that can be told."""
    made, before, start = [], 0, 0
    for end in range(1, len(tokens) + 1):
        known, text = tokenizer.decode(tokens[before:start]), tokenizer.decode(tokens[before:end])
        new = text[len(known) :]
        if new and (not new.endswith("\ufffd") or end == len(tokens)):  # what the first bytes of a letter look like
            made.append((new, gate[:, start:end].mean(axis=1)))
            before, start = start, end
    return made


def layer(values: np.ndarray, number: int) -> np.ndarray:
    """values: float[L, ...]. Those of layer 1, 2, ...; number 0: the mean of all."""
    return values[number - 1] if number else values.mean(axis=0)


def colors(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """float[...] -> uint8[..., 3], where `low` is dark blue and `high` yellow."""
    scaled = (np.asarray(values, np.float32) - low) / max(high - low, 1e-6)
    return COLORS(np.clip(scaled, 0, 1), bytes=True)[..., :3]


def paint(picture: np.ndarray, values: np.ndarray, low: float, high: float) -> np.ndarray:
    """picture: uint8[height, width, 3], values: float[rows, columns] -> the colours, darker where the picture is.

    Each cell is an even part of the picture, with sharp borders: nothing is known between tokens.
    """
    height, width = picture.shape[:2]
    rows, columns = (np.arange(n) * cells // n for n, cells in zip((height, width), values.shape, strict=True))
    over = colors(values, low, high)[rows][:, columns]
    grey = np.asarray(Image.fromarray(picture).convert("L"))[..., None] / 255
    return np.rint(over * (DARKEST + (1 - DARKEST) * grey)).astype(np.uint8)
