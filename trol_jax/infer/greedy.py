"""Greedy generation: two passes over the prompt, one pass for each generated token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from trol_jax.models.cache import Cache
from trol_jax.models.layers import unstack_layers
from trol_jax.models.trol import TroL


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "stop"))
def generate(model: TroL, params, tokens, segment_ids, images=None, *, max_new_tokens: int, stop: tuple[int, ...]):
    """Answer a batch of prompts, each token the most likely one.

    tokens: int[B, T], padded on the left.
    segment_ids: int[B, T], 0 = padding. images: float[B, M, height, width, C], normalised, or None.
    stop: ids that end an answer. Returns (answers int32[B, max_new_tokens], out): the stop token included, -1 after it;
    out["gate"]: float32[L, passes - 1, B, T] over the prompt.
    """
    apply = functools.partial(model.apply, {"params": params})
    x, out = apply(tokens, images, segment_ids=segment_ids)
    cache = Cache.from_prompt(out["kv"], segment_ids != 0, tokens.shape[1] + max_new_tokens)
    first = pick(apply(x[:, -1:], method="logits"))

    # A scan would copy each layer's slice of the weights for every token: decode over separate arrays.
    decoder = dataclasses.replace(model, separate=True)
    apply = functools.partial(decoder.apply, {"params": unstack_layers(params)})

    def unfinished(carry):
        step, token, *_ = carry
        return (step < max_new_tokens) & (token >= 0).any()

    def body(carry):
        step, token, cache, answers = carry
        answers = answers.at[:, step].set(token)
        ended = (token < 0) | jnp.isin(token, jnp.array(stop))
        x, out = apply(jnp.maximum(token, 0)[:, None], cache=cache)
        return step + 1, jnp.where(ended, -1, pick(apply(x, method="logits"))), out["cache"], answers

    answers = jnp.full((len(tokens), max_new_tokens), -1, jnp.int32)
    answers = jax.lax.while_loop(unfinished, body, (jnp.int32(0), first, cache, answers))[-1]
    return answers, {"gate": out["gate"]}


def pick(logits: jax.Array) -> jax.Array:
    """[B, 1, V] -> int32[B]."""
    return logits[:, 0].argmax(axis=-1).astype(jnp.int32)
