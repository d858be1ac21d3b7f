"""Where the model looks twice: gates by layer, kind of token and task over any number of samples, in fixed memory.

Samples are run with their answers, as in training: there answers are traversed, while tokens that are generated are
not. Kept are sums, numbers and histograms, and the first few pictures.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from trol_jax.data.encode import Encoded, SampleEncoder
from trol_jax.data.images import load_image, prepare
from trol_jax.data.prompts import TEXT
from trol_jax.data.sources.sample import IMAGE, Sample
from trol_jax.data.tokenizer import Tokenizer
from trol_jax.errors import UserError
from trol_jax.infer.answer import Answerer
from trol_jax.infer.engine import padded
from trol_jax.infer.generate import inputs
from trol_jax.models.trol import TroL
from trol_jax.study.samples import Samples

KINDS = "picture", "question", "system", "answer", "mark"  # marks: of the chat, answers' end marks among them
PICTURE, QUESTION, SYSTEM, ANSWER, MARK = range(len(KINDS))
BINS = 20  # of histograms, over 0 to 1
LENGTH = 4096  # tokens of a sample; what is beyond is cut off, as in training
WINDOW = 16  # batches whose samples are sorted by length
SIDE = 384  # pixels of a picture that is shown


@dataclasses.dataclass
class Sums:
    """Of the gates of some tokens. count: int64[K] by kind; total, squares: float64[K, L]; histogram: int64[K, L, BINS]
    with, of 0 to 1, equal parts.
    """

    count: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    histogram: np.ndarray

    @classmethod
    def empty(cls, layers: int) -> "Sums":
        k = len(KINDS)
        total, squares, histogram = np.zeros((k, layers)), np.zeros((k, layers)), np.zeros((k, layers, BINS), np.int64)
        return cls(np.zeros(k, np.int64), total, squares, histogram)

    def add(self, gate: np.ndarray, kinds: np.ndarray) -> None:
        """gate: float32[L, T]; kinds: int[T]."""
        places = np.clip((gate * BINS).astype(int), 0, BINS - 1)
        for kind in np.unique(kinds):
            here = kinds == kind
            values = gate[:, here].astype(np.float64)
            self.count[kind] += here.sum()
            self.total[kind] += values.sum(axis=1)
            self.squares[kind] += (values**2).sum(axis=1)
            for layer, bins in enumerate(places[:, here]):
                self.histogram[kind, layer] += np.bincount(bins, minlength=BINS)

    def mean(self, kind: int) -> np.ndarray:
        """float64[L]; NaN without such tokens."""
        return self.total[kind] / self.count[kind] if self.count[kind] else np.full_like(self.total[kind], np.nan)

    def deviation(self, kind: int) -> np.ndarray:
        """The standard deviation over tokens, likewise."""
        mean = self.mean(kind)
        return np.sqrt(np.maximum(self.squares[kind] / max(1, self.count[kind]) - mean**2, 0))


@dataclasses.dataclass
class Words:
    """Of the tokens of text, by kind and id. count: int64[K, V]; total: float64[K, V, L]."""

    count: np.ndarray
    total: np.ndarray

    @classmethod
    def empty(cls, vocabulary: int, layers: int) -> "Words":
        shape = len(KINDS), vocabulary
        return cls(np.zeros(shape, np.int64), np.zeros((*shape, layers)))

    def add(self, gate: np.ndarray, kinds: np.ndarray, tokens: np.ndarray) -> None:
        where = np.isin(kinds, (QUESTION, SYSTEM, ANSWER))
        place = kinds[where], tokens[where]
        np.add.at(self.count, place, 1)
        np.add.at(self.total, place, gate[:, where].T)

    def ranked(self, least: int) -> list[tuple[int, int]]:
        """(kind, id) of those seen `least` times, by the mean over layers, the most open first."""
        places = np.argwhere(self.count >= least)
        means = [self.total[kind, token].mean() / self.count[kind, token] for kind, token in places]
        return [(int(kind), int(token)) for kind, token in places[np.argsort(means, kind="stable")[::-1]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A picture of a sample, uint8[h, w, 3], made smaller if it is large; its size (height, width) in pixels, and the
    gates of its tokens, float32[L, N].
    """

    task: str
    text: str
    picture: np.ndarray
    size: tuple[int, int]
    gate: np.ndarray


@dataclasses.dataclass
class Gates:
    """What was found. tasks: by name. samples: number of each task. bad: samples that cannot be used; the first of them
    is told in `why`.
    """

    all: Sums
    words: Words
    tasks: dict[str, Sums] = dataclasses.field(default_factory=dict)
    samples: dict[str, int] = dataclasses.field(default_factory=dict)
    shown: list[Shown] = dataclasses.field(default_factory=list)
    bad: int = 0
    why: str = ""

    def add(self, task: str, gate: np.ndarray, kinds: np.ndarray, tokens: np.ndarray) -> None:
        """gate: float32[L, T] of a sample; kinds, tokens: int[T]."""
        own = self.tasks.setdefault(task, Sums.empty(len(gate)))
        for sums in (self.all, own):
            sums.add(gate, kinds)
        self.words.add(gate, kinds, tokens)
        self.samples[task] = self.samples.get(task, 0) + 1

    def leave_out(self, error: UserError) -> None:
        self.bad, self.why = self.bad + 1, self.why or str(error)


def record(
    answerer: Answerer, samples: Samples, limit: int | None = None, batch_size: int = 8, pictures: int = 6
) -> Gates:
    """The gates of the first `limit` samples, of all by default, and of some pictures, spread over the tasks.

    What a sample is run with changes nothing. One that cannot be used is left out and counted; UserError where none is
    left, and for a model of one pass.
    """
    config = answerer.model.config
    if config.prompt_passes == 1:
        raise UserError(f"{config.name} takes one pass over prompts: it has no gates")
    vocabulary, layers = config.decoder.vocab + config.decoder.extra_rows, config.decoder.layers
    found = Gates(Sums.empty(layers), Words.empty(vocabulary, layers))
    encode = SampleEncoder(
        samples.root, answerer.tokenizer, config.vision.image_size, config.image_tokens,
        config.max_tiles, LENGTH, answerer.system,
    )  # fmt: skip
    marks = marks_of(answerer.tokenizer)
    quota, seen = -(-pictures // len(samples.names)), set()
    total = min(len(samples.each), limit or len(samples.each))
    looks = dict(desc="gates", unit="sample", mininterval=1.0, dynamic_ncols=True)
    with concurrent.futures.ThreadPoolExecutor(4) as pool, tqdm(total=total, **looks) as bar:
        for batch in _batches(_encoded(samples.each, encode, total, found), batch_size):
            bar.update(len(batch))
            batch, images = _read(batch, pool, found)
            if not batch:
                continue
            gates = _run(answerer, [encoded for _, encoded in batch], images, encode, batch_size)
            for (sample, encoded), gate, own in zip(batch, gates, images, strict=True):
                gate = gate[:, : len(encoded.tokens)]
                kinds = kinds_of(encoded, marks, answerer.tokenizer, bool(answerer.system))
                found.add(sample.source, gate, kinds, encoded.tokens)
                shown = sum(each.task == sample.source for each in found.shown)
                if own and len(found.shown) < pictures and shown < quota and encoded.pictures[0] not in seen:
                    seen.add(encoded.pictures[0])
                    first = encoded.tiles[0] * config.image_tokens
                    found.shown.append(_shown(sample, own[0], gate[:, kinds == PICTURE][:, :first]))
    if not found.samples:
        raise UserError(f"{samples.root}: none of the samples can be used; the first: {found.why}")
    return found


# ---------------------------------------------------------------------- kinds of tokens
def marks_of(tokenizer: Tokenizer) -> list[list[int]]:
    """The sequences of tokens that the chat puts between texts."""
    f = tokenizer.format
    opening = (tokenizer.encode(f.bos + mark) for mark in (f.system, f.user))
    between = (tokenizer.encode(f"{f.end}\n{mark}", after=TEXT) for mark in (f.user, f.assistant))
    around = (tokenizer.encode(mark) for mark in (f.image_start, f.image_end) if mark)
    return [*opening, *between, *around]


def kinds_of(encoded: Encoded, marks: Sequence[Sequence[int]], tokenizer: Tokenizer, system: bool) -> np.ndarray:
    """int[T], places in KINDS. marks: as of `marks_of`. system: whether there is a system message."""
    tokens = encoded.tokens.tolist()
    kinds = np.where(encoded.loss_mask, ANSWER, QUESTION)
    if system:
        kinds[: tokens.index(tokenizer.end_id)] = SYSTEM
    starts = {mark[0] for mark in marks}  # special tokens, which no text has
    for start in (number for number, token in enumerate(tokens) if token in starts):
        pairs = (zip(mark, tokens[start : start + len(mark)], strict=False) for mark in marks)
        alike = (itertools.takewhile(lambda pair: pair[0] == pair[1], each) for each in pairs)
        kinds[start : start + max(len(list(each)) for each in alike)] = MARK
    kinds[encoded.tokens == tokenizer.image_id] = PICTURE
    return kinds


# ---------------------------------------------------------------------- samples to gates
Pair = tuple[Sample, Encoded]


def _encoded(samples: Sequence[Sample], encode: SampleEncoder, total: int, found: Gates) -> Iterator[Pair]:
    for number in range(total):
        try:
            sample = samples[number]
            yield sample, encode(sample)
        except UserError as error:
            found.leave_out(error)


def _batches(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    """Samples of about equal length; of as many tiles, where that can be had."""
    pairs = iter(pairs)
    while window := list(itertools.islice(pairs, WINDOW * size)):
        window.sort(key=lambda pair: (sum(pair[1].tiles), len(pair[1].tokens)))
        yield from (window[start : start + size] for start in range(0, len(window), size))


def _read(batch: Sequence[Pair], pool, found: Gates) -> tuple[list[Pair], list[list[np.ndarray]]]:
    """The samples whose pictures can be read, and these."""

    def read(pair: Pair):
        try:
            return [load_image(picture) for picture in pair[1].pictures]
        except UserError as error:
            return UserError(f"sample {pair[0].id} of {pair[0].source}: {error}")

    pairs, images = [], []
    for pair, pictures in zip(batch, pool.map(read, batch), strict=True):
        if isinstance(pictures, UserError):
            found.leave_out(pictures)
        else:
            pairs.append(pair)
            images.append(pictures)
    return pairs, images


def _shown(sample: Sample, picture: np.ndarray, gate: np.ndarray) -> Shown:
    text = " / ".join(" ".join(text.replace(IMAGE, "").split()) for _, text in sample.turns[:2])
    small = Image.fromarray(picture)
    small.thumbnail((SIDE, SIDE))
    return Shown(sample.source, text, np.asarray(small), picture.shape[:2], gate)


def _run(
    answerer: Answerer, batch: Sequence[Encoded], images: Sequence[Sequence[np.ndarray]],
    encode: SampleEncoder, size: int,
) -> np.ndarray:  # fmt: skip
    """float32[B, L, T or more]. Rows are filled up to `size`, so that few shapes are compiled."""
    length, side = padded(max(len(each.tokens) for each in batch)), encode.image_size
    tokens, learned = np.full((size, length), -1, np.int32), np.zeros((size, length), bool)
    tiles = np.zeros((size, max(sum(each.tiles) for each in batch), side, side, 3), np.uint8)
    for row in range(size):
        each, own = batch[row % len(batch)], images[row % len(batch)]
        tokens[row, : len(each.tokens)], learned[row, : len(each.tokens)] = each.tokens, each.loss_mask
        if own:
            made = [prepare(picture, encode.tokenizer.format.name, side, encode.max_tiles) for picture in own]
            tiles[row, : sum(each.tiles)] = np.concatenate(made)
    gates = scores(answerer.model, answerer.params, tokens, tiles if tiles.shape[1] else None, learned)
    return np.asarray(gates)[: len(batch)]


@functools.partial(jax.jit, static_argnums=0)
def scores(model: TroL, params, tokens, tiles, learned):
    """The mean over passes, float32[B, L, T]; tokens: int[B, T], padded with -1; tiles: uint8 as `inputs` takes it."""
    tokens, segment_ids, images = inputs(model, tokens, tiles)
    _, out = model.apply({"params": params}, tokens, images, segment_ids=segment_ids, loss_mask=learned)
    return out["gate"].mean(axis=1).swapaxes(0, 1)
