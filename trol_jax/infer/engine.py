"""Continuous batching: answers are decoded side by side in a fixed number of slots, and a new prompt takes over a slot
as soon as the answer before it has ended.

Three compiled programs: a prompt of some padded length is run (two passes), its keys and values move into a slot, and
all slots decode a few tokens (one pass each). Slots never see each other: an answer is what it would be alone.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from trol_jax.infer.generate import decoder, prefill
from trol_jax.infer.sampling import Sampling, sample
from trol_jax.models.cache import Cache
from trol_jax.models.trol import TroL
from trol_jax.ops.image import normalize


@struct.dataclass
class Slots:
    """token: int32[B], the latest of each answer, whose pass is still to come; -1 where the slot is free."""

    cache: Cache
    token: jax.Array
    step: jax.Array  # int32[B], tokens of the answer so far
    limit: jax.Array  # int32[B], tokens of the answer at most
    sampling: Sampling


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """size: slots; length: tokens that a slot holds, prompt and answer; chunk: tokens decoded between two looks."""

    model: TroL
    params: dict
    stop: tuple[int, ...]
    size: int = 8
    length: int = 2048
    chunk: int = 8

    def start(self) -> Slots:
        """Slots that are all free."""
        c = self.model.config.decoder
        shape = (self.size, self.length, c.kv_heads, c.head_dim)
        empty = [[jnp.zeros(shape, self.model.dtype) for _ in range(c.layers)] for _ in range(2)]
        none = jnp.zeros(self.size, jnp.int32)
        return Slots(
            cache=Cache(*empty, valid=jnp.zeros(shape[:2], bool), lengths=none, index=none),
            token=none - 1, step=none, limit=none,
            sampling=_draws_nothing(self.size),
        )  # fmt: skip

    def prompt(self, tokens: np.ndarray, tiles: np.ndarray | None):
        """tokens: int[T], padded with -1 on the right; tiles: uint8[M, height, width, C] or None.

        Returns what `admit` takes, and last the gate of each token, float32[L, T].
        """
        return _prompt(self.model, self.params, tokens[None], None if tiles is None else tiles[None])

    def admit(self, slots: Slots, slot: int, prompt, limit: int, sampling: Sampling | None) -> Slots:
        """Puts what `prompt` returned into a free slot. `slots` is used up."""
        return _admit(slots, slot, prompt[0], prompt[1], limit, sampling or _draws_nothing(1))

    def decode(self, slots: Slots) -> tuple[Slots, jax.Array]:
        """Up to `chunk` tokens of every answer: int32[B, chunk], -1 where there is none. `slots` is used up."""
        return _decode(self.model, self.params, slots, self.stop, self.chunk)


def _draws_nothing(rows: int) -> Sampling:
    zeros = functools.partial(np.zeros, rows)
    return Sampling(zeros(np.float32), zeros(np.int32), zeros(np.float32), zeros(np.uint32))


@functools.partial(jax.jit, static_argnames="model")
def _prompt(model: TroL, params, tokens, tiles):
    """(logits float32[1, V], cache of the prompt, gate float32[L, T], the mean over the passes)."""
    if tiles is not None:
        tiles = normalize(tiles, model.config.vision.mean, model.config.vision.std)
    logits, cache, gate = prefill(model, params, jnp.maximum(tokens, 0), (tokens >= 0).astype(jnp.int32), tiles, 0)
    return logits, cache, gate.mean(axis=1)[:, 0]


@functools.partial(jax.jit, donate_argnums=0)
def _admit(slots: Slots, slot, logits, prompt: Cache, limit, sampling: Sampling) -> Slots:
    def put(row, new):
        return jax.lax.dynamic_update_slice(row, new.astype(row.dtype), (slot, *(0,) * (row.ndim - 1)))

    room = slots.cache.valid.shape[1] - prompt.valid.shape[1]
    prompt = prompt.replace(valid=jnp.pad(prompt.valid, ((0, 0), (0, room))))
    first = sample(logits, jnp.int32(0), sampling)
    one = lambda value: jnp.full(1, value, jnp.int32)  # noqa: E731
    new = Slots(prompt, token=first, step=one(0), limit=one(limit), sampling=sampling)
    return jax.tree.map(put, slots, new)


@functools.partial(jax.jit, static_argnames=("model", "stop", "chunk"), donate_argnames="slots")
def _decode(model: TroL, params, slots: Slots, stop: tuple[int, ...], chunk: int):
    step_once = decoder(model, params)

    def unfinished(carry):
        i, slots, _ = carry
        return (i < chunk) & (slots.token >= 0).any()

    def body(carry):
        i, slots, said = carry
        token, step = slots.token, slots.step + 1
        busy = token >= 0
        ended = ~busy | jnp.isin(token, jnp.array(stop, jnp.int32)) | (step >= slots.limit)
        logits, cache = step_once(
            jnp.maximum(token, 0)[:, None], slots.cache, segment_ids=busy[:, None].astype(jnp.int32)
        )
        # A slot that is free writes where its next prompt will: its index stays.
        cache = cache.replace(index=jnp.where(busy, cache.index, slots.cache.index))
        token = jnp.where(ended, -1, sample(logits[:, 0], step, slots.sampling))
        return (
            i + 1,
            slots.replace(cache=cache, token=token, step=step),
            said.at[:, i].set(jnp.where(busy, slots.token, -1)),
        )

    said = jnp.full((len(slots.token), chunk), -1, jnp.int32)
    _, slots, said = jax.lax.while_loop(unfinished, body, (jnp.int32(0), slots, said))
    return slots, said
