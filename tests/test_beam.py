"""Beam search against its rules, written down plainly, and what must not change an answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from trol_jax.infer.beam import beam_search
from trol_jax.infer.generate import decoder, generate, prefill

NEW = 7


class Reference:
    """Every hypothesis is run from the prompt's cache, alone and token by token; lists instead of arrays."""

    def __init__(self, family, prompt, images=None):
        module, params = tiny.model(family)
        self.first, self.cache, _ = jax.jit(
            lambda: prefill(module, params, prompt, jnp.ones_like(prompt), images, NEW)
        )()
        self.step = jax.jit(decoder(module, params))
        self.after = functools.cache(self._after)

    def _after(self, said):
        """(log-probabilities of the next token, cache)."""
        if not said:
            return jax.nn.log_softmax(self.first[0]), self.cache
        logits, cache = self.step(jnp.array([[said[-1]]]), self.after(said[:-1])[1])
        return jax.nn.log_softmax(logits[0, 0]), cache

    def search(self, beams, stop, penalty):
        ended, alive, done = [], [(0.0, ())], False
        for length in range(1, NEW + 1):
            ways = [
                (s + float(p), (*said, t)) for s, said in alive for t, p in enumerate(np.asarray(self.after(said)[0]))
            ]
            ways = sorted(ways, reverse=True)[: beams * max(2, 1 + len(stop))]
            for rank, (score, said) in enumerate(ways):
                if said[-1] in stop and rank < beams:
                    ended = sorted([*ended, (score / length**penalty, said)], reverse=True)[:beams]
            alive = [way for way in ways if way[1][-1] not in stop][:beams]
            done = len(ended) == beams and ended[-1][0] >= ways[0][0] / length**penalty
            if done:
                break
        if not done:
            ended += [(score / NEW**penalty, said) for score, said in alive]
        return max(ended)


MANY = tuple(range(0, tiny.VOCAB, 3))


@pytest.mark.parametrize(
    ("family", "searches"),
    [
        ("internlm2", [(3, MANY, 0.5), (4, (), 1.0)]),
        ("phi3", [(2, (5, 11, 30), 1.0), (3, MANY, 0.0)]),
    ],
)
def test_it_follows_the_rules(family, searches):
    prompt, images = tiny.with_picture(tiny.model(family)[0], tiny.tokens(1, 4)), tiny.images(1)
    reference, lengths = Reference(family, prompt, images), set()
    for beams, stop, penalty in searches:
        score, said = reference.search(beams, stop, penalty)
        answers, out = beam_search(
            *tiny.model(family), prompt, jnp.ones_like(prompt), images,
            max_new_tokens=NEW, stop=stop, beams=beams, length_penalty=penalty,
        )  # fmt: skip
        assert [token for token in answers[0].tolist() if token >= 0] == list(said), (beams, stop)
        np.testing.assert_allclose(out["score"][0], score, atol=1e-4)
        lengths.add(len(said))
    assert len(lengths) == 2  # one was ended by a stop token


def test_one_beam_is_greedy():
    module, params = tiny.model("phi3")
    prompt = tiny.tokens(2, 5)
    options = dict(max_new_tokens=NEW, stop=(7, 9))
    greedy, _ = generate(module, params, prompt, jnp.ones_like(prompt), **options)
    one, _ = beam_search(module, params, prompt, jnp.ones_like(prompt), beams=1, **options)
    np.testing.assert_array_equal(greedy, one)


def test_company_and_padding_change_nothing():
    module, params = tiny.model("internlm2")
    prompts = [tiny.tokens(1, length, seed=length) for length in (3, 6)]
    options = dict(max_new_tokens=NEW, stop=tuple(range(0, 40, 4)), beams=3)
    alone = [beam_search(module, params, prompt, jnp.ones_like(prompt), **options) for prompt in prompts]
    padded = jnp.concatenate([jnp.pad(prompt, ((0, 0), (8 - prompt.shape[1], 0))) for prompt in prompts])
    real = jnp.arange(8) >= jnp.array([[5], [2]])
    together, out = beam_search(module, params, padded, real.astype(jnp.int32), **options)
    np.testing.assert_array_equal(together, jnp.concatenate([answer for answer, _ in alone]))
    np.testing.assert_allclose(out["score"], jnp.concatenate([o["score"] for _, o in alone]), atol=1e-5)
