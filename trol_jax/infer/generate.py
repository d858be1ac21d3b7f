"""Generation: two passes over the prompt, one pass for each generated token."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from trol_jax.infer.sampling import Sampling, randoms, sample
from trol_jax.models.cache import Cache, placed
from trol_jax.models.layers import unstack_layers
from trol_jax.models.trol import TroL
from trol_jax.ops.image import normalize


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "stop"))
def generate(
    model: TroL, params, tokens, segment_ids, images=None, sampling: Sampling | None = None, *,
    max_new_tokens: int, stop: tuple[int, ...],
):  # fmt: skip
    """Answer a batch of prompts token by token; without `sampling` each is the most likely one.

    tokens: int[B, T], padded on either side.
    segment_ids: int[B, T], 0 = padding. images: float[B, M, height, width, C], normalised, or None.
    stop: ids that end an answer. Returns (answers int32[B, max_new_tokens], out): the stop token included, -1 after it;
    out["gate"]: float32[L, passes - 1, B, T] over the prompt.
    """
    logits, cache, gate = prefill(model, params, tokens, segment_ids, images, max_new_tokens)
    step_once = decoder(model, params)
    random = None
    if sampling is not None:
        random = randoms(sampling, jnp.zeros(len(tokens), jnp.int32), max_new_tokens + 1)

    def choose(logits, step):
        return sample(logits, sampling, None if random is None else random[step])

    def unfinished(carry):
        step, token, *_ = carry
        return (step < max_new_tokens) & (token >= 0).any()

    def body(carry):
        step, token, cache, answers = carry
        answers = answers.at[:, step].set(token)
        ended = (token < 0) | jnp.isin(token, jnp.array(stop))
        logits, cache = step_once(jnp.maximum(token, 0)[:, None], cache)
        return step + 1, jnp.where(ended, -1, choose(logits[:, 0], step + 1)), cache, answers

    answers = jnp.full((len(tokens), max_new_tokens), -1, jnp.int32)
    answers = jax.lax.while_loop(unfinished, body, (jnp.int32(0), choose(logits, 0), cache, answers))[-1]
    return answers, {"gate": gate}


def inputs(model: TroL, tokens, tiles):
    """Prompts int[B, T], padded with -1, and tiles uint8[B, M, height, width, C] or None -> what `prefill` takes."""
    if tiles is not None:
        tiles = normalize(tiles, model.config.vision.mean, model.config.vision.std)
    return jnp.maximum(tokens, 0), (tokens >= 0).astype(jnp.int32), tiles


def prefill(model: TroL, params, tokens, segment_ids, images, new_slots: int, dtype=None):
    """Run prompts: (logits of the next token float32[B, V], cache with `new_slots` free slots, gate of the prompts).

    dtype: of the cache, by default the model's.
    """
    apply = functools.partial(model.apply, {"params": params})
    x, out = apply(tokens, images, segment_ids=segment_ids)
    cache = Cache.from_prompt(out["kv"], segment_ids != 0, tokens.shape[1] + new_slots, dtype)
    cache = cache.replace(kv=placed(cache.kv, model.layout))
    last = jnp.take_along_axis(x, cache.index[:, None, None] - 1, axis=1)
    return apply(last, method="logits")[:, 0], cache, out["gate"]


def decoder(model: TroL, params) -> Callable:
    """A function of tokens int[B, T] and a cache, as a rule one pass for each token: (logits [B, T, V], cache)."""
    # A scan would copy each layer's slice of the weights for every token: decode over separate arrays.
    model = dataclasses.replace(model, separate=True)
    apply = functools.partial(model.apply, {"params": unstack_layers(params)})

    def step(tokens, cache, **options):
        x, out = apply(tokens, cache=cache, passes=model.config.token_passes, **options)
        return apply(x, method="logits"), out["cache"]

    return step
