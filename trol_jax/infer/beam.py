"""Beam search by the rules of the original's library (transformers 4.41, BeamSearchScorer), without copying a cache.

The beams of a prompt are queries of one row. Each writes its keys and values into slots of its own, behind the prompt's
that all of them share, and a mask tells which slots hold a beam's own past. When beams give way to others, rows of that
mask change places and nothing else moves.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from trol_jax.infer.generate import decoder, prefill
from trol_jax.models.trol import TroL

CLOSED = -1e9  # score of beams that are not yet in use: at first all beams are equal and one is enough


@struct.dataclass
class Beams:
    """tokens, ended_tokens: int32[B, W, N], -1 where nothing is yet. Ended ones are in order, the best first."""

    tokens: jax.Array
    scores: jax.Array  # float32[B, W], sums of log-probabilities
    visible: jax.Array  # bool[B, W, S]
    ended_tokens: jax.Array
    ended_scores: jax.Array  # float32[B, W], divided by length ** length_penalty; -inf where none has ended
    done: jax.Array  # bool[B]


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "stop", "beams", "cache_dtype"))
def beam_search(
    model: TroL, params, tokens, segment_ids, images=None, *, max_new_tokens: int, stop: tuple[int, ...],
    beams: int = 5, length_penalty: float = 1.0, cache_dtype=None,
):  # fmt: skip
    """As `generate`, with `beams` candidates for each answer; out["score"]: float32[B], the mean log-probability.

    cache_dtype: by default the model's.

    Source: trol/test.py asks for 5 beams and a length penalty of 1.
    """
    logits, cache, gate = prefill(model, params, tokens, segment_ids, images, beams * max_new_tokens, cache_dtype)
    state = _start(cache.valid, beams, max_new_tokens)
    step_once, choose = decoder(model, params), functools.partial(_choose, stop=stop, length_penalty=length_penalty)
    state = choose(state, jnp.repeat(logits[:, None], beams, axis=1), jnp.int32(0))
    prompt_lengths = cache.lengths[:, None]

    def unfinished(carry):
        step, state, _ = carry
        return (step < max_new_tokens) & ~state.done.all()

    def body(carry):
        step, state, cache = carry
        own = jnp.arange(cache.valid.shape[1]) == (cache.index[:, None] + jnp.arange(beams))[..., None]
        state = state.replace(visible=state.visible | own)
        latest = jax.lax.dynamic_index_in_dim(state.tokens, step - 1, axis=2, keepdims=False)
        positions = jnp.broadcast_to(prompt_lengths + step - 1, latest.shape)
        logits, cache = step_once(jnp.maximum(latest, 0), cache, positions=positions, mask=state.visible)
        return step + 1, choose(state, logits, step), cache

    step, state, _ = jax.lax.while_loop(unfinished, body, (jnp.int32(1), state, cache))
    open_scores = jnp.where(state.done[:, None], -jnp.inf, state.scores / step**length_penalty)
    state = _end(state, state.tokens, open_scores)
    return state.ended_tokens[:, 0], {"gate": gate, "score": state.ended_scores[:, 0]}


def _start(valid: jax.Array, beams: int, length: int) -> Beams:
    batch, slots = valid.shape
    nothing = jnp.full((batch, beams, length), -1, jnp.int32)
    return Beams(
        tokens=nothing,
        scores=jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, CLOSED), (batch, beams)),
        visible=jnp.broadcast_to(valid[:, None], (batch, beams, slots)),
        ended_tokens=nothing,
        ended_scores=jnp.full((batch, beams), -jnp.inf),
        done=jnp.zeros(batch, bool),
    )


def _choose(state: Beams, logits: jax.Array, step: jax.Array, *, stop: tuple[int, ...], length_penalty) -> Beams:
    """Token number `step` of each beam. logits: float32[B, W, V] of what may follow it."""
    batch, beams, vocab = logits.shape
    sums = state.scores[..., None] + jax.nn.log_softmax(logits)
    # So many candidates that enough of them go on, whichever end.
    scores, index = jax.lax.top_k(sums.reshape(batch, -1), beams * max(2, 1 + len(stop)))
    parent, token = index // vocab, (index % vocab).astype(jnp.int32)
    said = _rows(state.tokens, parent).at[:, :, step].set(token)
    ends = jnp.isin(token, jnp.array(stop, jnp.int32))
    means = scores / (step + 1) ** length_penalty

    counted = ends & (jnp.arange(len(index[0])) < beams) & ~state.done[:, None]
    after = _end(state, said, jnp.where(counted, means, -jnp.inf))
    # The worst of the ended is at least as good as the best that may still come of this length.
    done = state.done | (after.ended_scores[:, -1] >= means[:, 0])

    scores, kept = jax.lax.top_k(jnp.where(ends, -jnp.inf, scores), beams)
    visible = _rows(state.visible, jnp.take_along_axis(parent, kept, axis=1))
    return after.replace(tokens=_rows(said, kept), scores=scores, visible=visible, done=done)


def _end(state: Beams, tokens: jax.Array, scores: jax.Array) -> Beams:
    """Keep the best of the ended ones and of some more. tokens: [B, C, N], scores: [B, C], -inf = not ended."""
    scores = jnp.concatenate([state.ended_scores, scores], axis=1)
    scores, kept = jax.lax.top_k(scores, state.ended_scores.shape[1])
    tokens = jnp.concatenate([state.ended_tokens, tokens], axis=1)
    return state.replace(ended_scores=scores, ended_tokens=_rows(tokens, kept))


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[b, index[b, i]] for x [B, C, ...] and index [B, I]."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)
