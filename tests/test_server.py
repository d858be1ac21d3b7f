"""Requests that come and go share slots, and no answer notices."""

import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from trol_jax.infer.decoding import Decoding
from trol_jax.infer.engine import Engine
from trol_jax.infer.generate import generate
from trol_jax.infer.server import Request, Server

STOP = tuple(range(4, tiny.VOCAB, 9))


def requests(family, count=9):
    """Prompts of mixed lengths, with and without pictures; some are drawn."""
    module, _ = tiny.model(family)
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        text = tiny.tokens(1, int(rng.integers(2, 9)), seed=i)
        picture = i % 3 > 0
        tokens = (tiny.with_picture(module, text) if picture else text)[0].tolist()
        tiles = rng.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8) if picture else None
        decoding = Decoding(temperature=1.5, seed=i) if i % 4 == 0 else Decoding()
        made.append(Request(tokens, tiles, int(rng.integers(1, 9)), decoding))
    return made


def alone(module, params, request):
    with Server(Engine(module, params, STOP, size=1, length=96, chunk=1)) as server:
        return server.submit(Request(request.tokens, request.tiles, request.max_new_tokens, request.decoding)).result()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_answers_are_those_of_each_alone(family):
    module, params = tiny.model(family)
    given = requests(family)
    with Server(Engine(module, params, STOP, size=3, length=96, chunk=2)) as server:
        together = [request.result() for request in [server.submit(request) for request in given]]
    assert together == [alone(module, params, request) for request in given]
    assert len({len(answer) for answer in together}) > 3
    assert given[1].gate.shape == (2, len(given[1].tokens))
    plain = given[3]  # neither picture nor drawing
    prompt = jnp.array([plain.tokens])
    answer, _ = generate(module, params, prompt, jnp.ones_like(prompt), max_new_tokens=plain.max_new_tokens, stop=STOP)
    assert [token for token in answer[0].tolist() if token >= 0] == together[3]


def test_a_cancelled_request_frees_its_slot():
    module, params = tiny.model("phi3")
    with Server(Engine(module, params, (), size=1, length=96, chunk=1)) as server:
        first = server.submit(Request([5, 6], None, 80))
        second = server.submit(Request([7, 8], None, 3))
        next(first.stream())
        first.cancel()
        assert len(second.result()) == 3
        assert len(first.result()) < 80


def test_a_closed_server_tells_those_who_wait():
    module, params = tiny.model("phi3")
    server = Server(Engine(module, params, (), size=1, length=96, chunk=1))
    request = server.submit(Request([5, 6], None, 80))
    next(request.stream())
    server.close()
    with pytest.raises(RuntimeError, match="closed"):
        request.result()
    with pytest.raises(RuntimeError, match="closed"):
        server.submit(Request([5], None, 1))
