"""Continuous batching: answers are decoded side by side in a fixed number of slots, and a new prompt takes over a slot
as soon as the answer before it has ended.

Three compiled programs: prompts of one padded length are run (two passes), their keys and values move into slots, and
all slots decode a few tokens (one pass each). Slots never see each other: an answer is what it would be alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from trol_jax.infer.generate import decoder, inputs, prefill
from trol_jax.infer.sampling import Sampling, randoms, sample
from trol_jax.models.cache import Cache, placed, stored
from trol_jax.models.trol import TroL


@struct.dataclass
class Slots:
    cache: Cache
    token: jax.Array  # int32[B], the latest of each answer, whose pass is still to come; -1 where the slot is free
    step: jax.Array  # int32[B], tokens of the answer before it
    limit: jax.Array  # int32[B], tokens of the answer at most
    sampling: Sampling


SHORTEST = 192  # tokens of a slot at first


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """size: slots; length: tokens that a slot may hold, prompt and answer; chunk: tokens decoded between two looks.

    The parameters are on the device once, for prompts and answers alike, when `model.separate` is set and each layer's
    are arrays of their own (`models.layers.unstack_layers`).
    """

    model: TroL
    params: dict
    stop: tuple[int, ...]
    size: int = 8
    length: int = 32768
    chunk: int = 8
    cache: jnp.dtype | None = None  # of keys and values: the model's, bfloat16 or int8

    def start(self) -> Slots:
        """Slots that are all free, and short."""
        return _start(self.model, self.size, min(SHORTEST, self.length), self.cache)

    def fit(self, slots: Slots, tokens: int) -> Slots:
        """Slots that hold so many tokens: as they are, or 256, 384, 512, 768, 1024, ... long."""
        if slots.cache.valid.shape[1] >= tokens:
            return slots
        power = 1 << (tokens - 1).bit_length()
        length = min(power * 3 // 4 if tokens <= power * 3 // 4 else power, self.length)
        return _grow(self.model.layout, slots, length)

    def prompt(self, tokens: np.ndarray, tiles: np.ndarray | None):
        """tokens: int[P, T], padded with -1 on the right; tiles: uint8[P, M, height, width, C] or None.

        Returns what `admit` takes, and last the gate of each token, float32[P, L, T], the mean over a layer's passes.
        """
        return _prompt(self.model, self.params, tokens, tiles, self.cache)

    def admit(self, slots: Slots, where: Sequence[int], prompts, limits: Sequence[int], samplings: Sampling) -> Slots:
        """Puts what `prompt` returned into the free slots `where`, `size` = leave out, and chooses each answer's first
        token. All have an entry a prompt. `slots` is used up.
        """
        return _admit(
            self.model.layout, slots, np.array(where, np.int32), *prompts, np.array(limits, np.int32), samplings
        )

    def decode(self, slots: Slots) -> tuple[Slots, jax.Array]:
        """Up to `chunk` tokens of every answer: int32[B, chunk], -1 where there is none. `slots` is used up."""
        return _decode(self.model, self.params, slots, self.stop, self.chunk)

    def release(self, slots: Slots, gone: Sequence[int]) -> Slots:
        """Ends answers before their time."""
        return slots.replace(token=slots.token.at[np.array(gone)].set(-1))


def padded(length: int) -> int:
    """The length that a prompt of so many tokens is padded to: few lengths are compiled, and of long ones an eighth is
    wasted at most.
    """
    step = max(16, (1 << length.bit_length() - 1) // 8)
    return -(-length // step) * step


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _start(model: TroL, size: int, length: int, dtype) -> Slots:
    c, passes = model.config.decoder, model.config.token_passes
    zeros = functools.partial(jnp.zeros, size)
    nothing = jnp.zeros((size, length, c.kv_heads, c.head_dim), model.dtype)
    empty = stored([nothing] * 2 * passes, dtype or model.dtype)
    cache = Cache(
        kv=placed(tuple([a] * c.layers for a in empty), model.layout),
        valid=jnp.zeros((size, length), bool),
        lengths=zeros(jnp.int32),
        index=zeros(jnp.int32),
    )
    sampling = Sampling(zeros(jnp.float32), zeros(jnp.int32), zeros(jnp.float32), zeros(jnp.uint32))
    return Slots(
        cache, token=jnp.full(size, -1, jnp.int32), step=zeros(jnp.int32), limit=zeros(jnp.int32), sampling=sampling
    )


@functools.partial(jax.jit, static_argnums=(0, 2))
def _grow(layout: Callable, slots: Slots, length: int) -> Slots:
    def pad(a, axis):
        return jnp.pad(a, [(0, length - a.shape[axis] if i == axis else 0) for i in range(a.ndim)])

    kv = placed(jax.tree.map(lambda a: pad(a, 2), slots.cache.kv), layout)
    return slots.replace(cache=slots.cache.replace(kv=kv, valid=pad(slots.cache.valid, 1)))


@functools.partial(jax.jit, static_argnames=("model", "dtype"))
def _prompt(model: TroL, params, tokens, tiles, dtype):
    """(logits float32[P, V], cache of the prompts, gate float32[P, L, T])."""
    logits, cache, gate = prefill(model, params, *inputs(model, tokens, tiles), 0, dtype)
    return logits, cache, gate.mean(axis=1).swapaxes(0, 1)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _admit(layout: Callable, slots: Slots, free, logits, prompts: Cache, limits, samplings: Sampling) -> Slots:
    nothing = jnp.zeros_like(limits)
    new = Slots(prompts, sample(logits, samplings, randoms(samplings, nothing, 1)[0]), nothing, limits, samplings)
    length = prompts.valid.shape[1]
    empty = slots.cache.replace(valid=slots.cache.valid.at[free].set(False, mode="drop"))

    def put(rows, new):
        # Of what has slots for tokens the first are written: [B, S] or [B, K, S, ...].
        where = (free, *[slice(None)] * (rows.ndim > 2), *[slice(length)] * (rows.ndim > 1))
        return rows.at[where].set(new, mode="drop")

    slots = jax.tree.map(put, slots.replace(cache=empty), new)
    return slots.replace(cache=slots.cache.replace(kv=placed(slots.cache.kv, layout)))


@functools.partial(jax.jit, static_argnames=("model", "stop", "chunk"), donate_argnames="slots")
def _decode(model: TroL, params, slots: Slots, stop: tuple[int, ...], chunk: int):
    step_once = decoder(model, params)
    random = randoms(slots.sampling, slots.step + 1, chunk)

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
        next_token = jnp.where(ended, -1, sample(logits[:, 0], slots.sampling, random[i]))
        said = said.at[:, i].set(token)
        return i + 1, slots.replace(cache=cache, token=next_token, step=step), said

    said = jnp.full((len(slots.token), chunk), -1, jnp.int32)
    _, slots, said = jax.lax.while_loop(unfinished, body, (jnp.int32(0), slots, said))
    return slots, said
