"""From a source of pictures with questions to training batches of fixed shape, by grain."""

import dataclasses
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

import grain
import numpy as np
from absl import flags
from grain.experimental import ElasticIterator

from trol_jax.data.images import load_image, prepare
from trol_jax.data.prompts import ChatFormat, encode_chat
from trol_jax.data.tokenizer import Tokenizer
from trol_jax.errors import UserError

log = logging.getLogger(__name__)
# Each keeps every answer of easy-vqa true. (picture [height, width, 3], generator) -> picture.
AUGMENTATIONS = {
    "hflip": lambda image, rng: image[:, ::-1] if rng.random() < 0.5 else image,
    "vflip": lambda image, rng: image[::-1] if rng.random() < 0.5 else image,
    "rot90": lambda image, rng: np.rot90(image, rng.integers(4)),
}
DEATHS = 3  # of worker processes, after which a run ends
CACHE_BYTES = 128 << 20  # of decoded pictures, in each process; all of easy-vqa at 64 pixels is 49 MB


@dataclasses.dataclass(frozen=True)
class DataOptions:
    root: str  # data folder; "" = that of the installed package
    turns: int  # questions a row at most
    isolate_turns: bool  # each question sees the picture only, not the questions before
    max_length: int  # tokens a row
    augment: tuple[str, ...]  # names of AUGMENTATIONS
    system: str  # system message; "" = none
    workers: int  # processes; 0 = a thread of this one


def train_iterator(
    source,
    options: DataOptions,
    tokenizer: Tokenizer,
    *,
    image_size: int,
    image_tokens: int,
    batch_size: int,
    seed: int,
    shares: Sequence[Sequence[int]] = (),
    share: int = 0,
):
    """Batches for training without end: a new order of the pictures, of their questions and new flips every epoch.

    source: len and [i] -> {"id", "image": path, "turns": [(question, answer), ...]}.
    image_size: pixels a side, image_tokens: tokens a picture, both of the model.
    batch_size: rows of all shares together. shares: the rows of a batch that each of several hosts reads, as many
    each (B); share: which of them this is. By default all rows are read here.

    Yields dicts: images uint8[B, 1, height, width, 3]; tokens, positions, segment_ids (1, padding 0) and turn_ids
    int32[B, T]; loss_mask bool[B, T]. T = max_length, padding on the right. See `prompts.encode_chat`.

    The iterator has get_state() -> dict for JSON, which describes the batches taken, not those fetched ahead,
    set_state(state) and close(). What it yields depends on the seed and the position only, not on `workers`;
    shares have one state. UserError for options that cannot work, when made; for a bad picture or a question that
    does not fit into a row, when met.
    """
    _check(source, options, batch_size)
    encoder = RowEncoder(tokenizer, tokenizer.format, options, image_size, image_tokens)
    encoder(source[0], np.random.default_rng(seed))  # what fits no row at all is told at once
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(encoder)
    if len(shares) > 1:
        dataset = grain.MapDataset.source(Shares(dataset, shares))
    processes = None
    if options.workers:
        if not flags.FLAGS.is_parsed():  # grain's processes read absl flags, which a caller without absl never parsed
            flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(num_workers=options.workers, per_worker_buffer_size=2)

    def make():
        return iter(
            ElasticIterator(
                dataset,
                batch_size,
                grain.sharding.ShardOptions(share, max(1, len(shares))),
                read_options=grain.ReadOptions(num_threads=1, prefetch_buffer_size=4),
                multiprocessing_options=processes,
            )
        )

    return Restarting(make) if options.workers else make()


class Restarting:
    """An iterator that is made anew where it was when one of its processes dies, killed for its memory, say."""

    def __init__(self, make: Callable):
        self.make, self.inner, self.deaths = make, make(), 0
        self.get_state = lambda: self.inner.get_state()
        self.set_state = lambda state: self.inner.set_state(state)
        self.close = lambda: self.inner.close()

    def __iter__(self):
        return self

    def __next__(self):
        state = self.inner.get_state()
        while True:
            try:
                return next(self.inner)
            except RuntimeError as error:
                if "terminated unexpectedly" not in str(error):
                    raise
                self.deaths += 1
                log.warning("a process that reads data has died (%s); another goes on where it was", error)
                if self.deaths > DEATHS:
                    raise UserError(
                        f"a process that reads data died for the {self.deaths}th time ({error}); "
                        f"memory may be short: lower config.data.workers, then start again"
                    ) from error
            self.inner.close()
            self.inner = self.make()
            self.inner.set_state(state)


class Shares:
    """A dataset in the order in which grain, that gives each host every n-th example, gives it those of its share."""

    def __init__(self, dataset: grain.MapDataset, shares: Sequence[Sequence[int]]):
        self.dataset, self.shares = dataset, shares
        self.rows = sum(map(len, shares))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        batch, row = divmod(index, self.rows)
        place, share = divmod(row, len(self.shares))
        return self.dataset[batch * self.rows + self.shares[share][place]]


class RowEncoder:
    """A picture with its questions -> one row of a training batch (without the axis B)."""

    def __init__(
        self, tokenizer: Tokenizer, format: ChatFormat, options: DataOptions, image_size: int, image_tokens: int
    ):
        self._arguments = tokenizer, format, options, image_size, image_tokens
        self.tokenizer, self.format, self.options = tokenizer, format, options
        self.image_size, self.image_tokens = image_size, image_tokens
        self._picture = functools.lru_cache(CACHE_BYTES // (3 * image_size**2))(self._load)

    def __reduce__(self):  # worker processes get the encoder without its cache
        return _encoder_of_worker, (os.getpid(), self._arguments)

    def __call__(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        order = rng.permutation(len(example["turns"]))[: self.options.turns]
        image = self._picture(example["image"])
        for name in self.options.augment:
            image = AUGMENTATIONS[name](image, rng)
        return {
            "images": np.ascontiguousarray(image)[None],
            **self._text([example["turns"][i] for i in order], example),
        }

    def _load(self, path: str) -> np.ndarray:
        return prepare(load_image(path), self.format.name, self.image_size, max_tiles=1)[0]

    def _text(self, turns: list[tuple[str, str]], example: dict) -> dict[str, np.ndarray]:
        """As many of the turns, from the first, as fit into max_length."""
        options = self.options
        for count in range(len(turns), 0, -1):
            chat = encode_chat(
                self.tokenizer, self.format, turns[:count], self.image_tokens, options.system, options.isolate_turns
            )
            length = len(chat.tokens)
            if length <= options.max_length:
                break
        else:
            raise UserError(
                f"{example['image']}: the question {turns[0][0]!r} makes a row of {length} tokens, "
                f"longer than max_length {options.max_length}; make max_length larger or the system message shorter"
            )
        return {
            "tokens": _pad(chat.tokens, options.max_length, self.tokenizer.pad_id),
            "positions": _pad(chat.positions, options.max_length),
            "segment_ids": _pad(np.ones_like(chat.tokens), options.max_length),
            "turn_ids": _pad(chat.turn_ids, options.max_length),
            "loss_mask": _pad(chat.loss_mask, options.max_length),
        }


def _encoder_of_worker(parent: int, arguments: tuple) -> RowEncoder:
    """Worker processes would outlive a parent that is killed: theirs end themselves then."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.getpid() != parent:
        threading.Thread(target=watch, daemon=True).start()
    return RowEncoder(*arguments)


def _pad(values: np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    padded = np.full(length, fill, values.dtype)
    padded[: len(values)] = values
    return padded


def _check(source, options: DataOptions, batch_size: int) -> None:
    for name, least in (("turns", 1), ("max_length", 1), ("workers", 0)):
        if getattr(options, name) < least:
            raise UserError(f"data.{name} is {getattr(options, name)}, must be at least {least}")
    if unknown := [name for name in options.augment if name not in AUGMENTATIONS]:
        raise UserError(f"data.augment: {unknown[0]!r} is not known; choose from {', '.join(AUGMENTATIONS)}")
    if options.augment and getattr(source, "upright", False):
        raise UserError("data.augment turns left into right, and the answers would be wrong; set it to ()")
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} must be at least 1")
    if not len(source):
        raise UserError("the source has no pictures")
