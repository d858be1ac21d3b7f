"""Requests that come and go share slots, and no answer notices."""

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from trol_jax.errors import UserError
from trol_jax.infer import engine as engines
from trol_jax.infer.decoding import Decoding, sampling
from trol_jax.infer.engine import Engine, padded
from trol_jax.infer.server import Full, Request, Server
from trol_jax.models.layers import unstack_layers

STOP = tuple(range(4, tiny.VOCAB, 9))
LONGEST = 64


def engine(family="phi3", size=1, stop=STOP, length=96, chunk=2) -> Engine:
    module, params = tiny.model(family)
    return Engine(tiny.separate(module), unstack_layers(params), stop, size=size, length=length, chunk=chunk)


def request(family: str, text: int, tiles: int, new: int, drawn: bool, seed: int) -> Request:
    """Of so many text tokens and tiles."""
    module, _ = tiny.model(family)
    rng = np.random.default_rng(seed)
    picture = [module.config.image_token] * tiles * module.config.image_tokens
    pixels = rng.integers(0, 256, (tiles, 16, 16, 3), dtype=np.uint8) if tiles else None
    decoding = Decoding(temperature=1.5, seed=seed) if drawn else Decoding()
    return Request([*picture, *rng.integers(4, tiny.VOCAB, text).tolist()], pixels, new, decoding)


def alone(engine: Engine, request: Request) -> tuple[list[int], np.ndarray]:
    """Its answer and gate, by an engine of one slot, padded to the length of the longest."""
    tokens = np.full((1, LONGEST), -1, np.int32)
    tokens[0, : len(request.tokens)] = request.tokens
    *prompt, gate = engine.prompt(tokens, None if request.tiles is None else request.tiles[None])
    slots = engine.admit(engine.start(), [0], prompt, [request.max_new_tokens], sampling([request.decoding]))
    answer = []
    while (slots.token >= 0).any():
        slots, said = engine.decode(slots)
        answer += [token for token in said[0].tolist() if token >= 0]
    return answer, np.asarray(gate)[0, :, : len(request.tokens)]


def requests(text: int, tiles: list[int]):
    return st.tuples(st.integers(1, text), st.sampled_from(tiles), st.integers(1, 8), st.booleans(), st.integers(0, 99))


@pytest.mark.parametrize(
    ("family", "size", "drawn_from"),
    [
        ("internlm2", 2, requests(8, [0, 0, 2])),  # one padded length: fewer programs
        ("phi3", 3, requests(12, [0, 0, 1, 3])),  # of three prompts at once a row is left over
    ],
    ids=tiny.FAMILIES,
)
def test_answers_are_those_of_each_alone(family, size, drawn_from):
    single = engine(family)
    with Server(engine(family, size=size)) as server:

        @settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(st.lists(drawn_from, min_size=1, max_size=9))
        def check(drawn):
            asked = [server.submit(request(family, *options)) for options in drawn]
            for each in asked:
                answer, gate = alone(single, each)
                assert each.result() == answer
                np.testing.assert_allclose(each.gate, gate, atol=1e-6)

        check()


def test_prompts_are_padded_to_few_lengths():
    lengths = [padded(length) for length in range(1, 4097)]
    assert all(0 <= more - length < max(16, length / 8) for length, more in enumerate(lengths, start=1))
    assert len(set(lengths)) < 60


def test_slots_are_taken_over_as_they_fall_free(monkeypatch):
    rng, calls, decode = np.random.default_rng(0), [], Engine.decode
    monkeypatch.setattr(Engine, "decode", lambda self, slots: calls.append(1) or decode(self, slots))
    with Server(engine(size=4, stop=(), chunk=2)) as server:
        limits = [int(rng.integers(2, 30)) for _ in range(24)]
        asked = [server.submit(Request([5, 6 + i], None, limit)) for i, limit in enumerate(limits)]
        assert [len(each.result()) for each in asked] == limits
    in_waves = sum(max(limits[i : i + 4]) for i in range(0, 24, 4)) / 2
    assert sum(limits) / 2 / 4 < len(calls) < 0.8 * in_waves


def test_a_cancelled_request_frees_its_slot():
    with Server(engine(stop=(), length=96, chunk=1)) as server:
        first = server.submit(Request([5, 6], None, 80))
        second = server.submit(Request([7, 8], None, 3))
        third = server.submit(Request([7, 8], None, 80))
        next(first.stream())
        third.cancel()
        first.cancel()
        assert len(second.result()) == 3
        assert len(first.result()) < 80 and third.result() == []
        assert server.load == (0, 0)


def test_a_closed_server_tells_those_who_wait():
    server = Server(engine(stop=(), length=96, chunk=1))
    running, waiting = server.submit(Request([5, 6], None, 80)), server.submit(Request([5, 6], None, 80))
    next(running.stream())
    server.close()
    for request in (running, waiting):
        with pytest.raises(RuntimeError, match="closed"):
            request.result()
    with pytest.raises(RuntimeError, match="closed"):
        server.submit(Request([5], None, 1))


def test_what_breaks_the_engine_reaches_everyone(monkeypatch):
    def broken(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(Engine, "prompt", broken)
    with Server(engine()) as server:
        requests = [server.submit(Request([5, 6], None, 8)) for _ in range(1)]
        for each in requests:
            with pytest.raises(MemoryError, match="no room"):
                each.result()
        with pytest.raises(MemoryError):
            server.submit(Request([5], None, 1))


def test_the_queue_is_what_has_no_slot(monkeypatch):
    decode = Engine.decode
    monkeypatch.setattr(Engine, "decode", lambda *given: time.sleep(0.03) or decode(*given))
    with Server(engine(size=2, stop=(), length=96, chunk=1), waiting=1) as server:
        running = [server.submit(Request([5, 6], None, 80)) for _ in range(2)]
        for each in running:
            next(each.stream())
        for _ in range(3):  # who leaves makes room at once, also after its prompt was run ahead
            server.submit(Request([5, 6], None, 80)).cancel()
            time.sleep(0.05)
        last = server.submit(Request([5, 6], None, 3))
        with pytest.raises(Full, match="1 requests are waiting already"):
            server.submit(Request([5], None, 5))
        running[0].cancel()
        assert len(last.result()) == 3
        running[1].cancel()


def test_slots_grow_with_answers_and_are_short_again_when_idle(monkeypatch):
    lengths, decode = [], Engine.decode
    monkeypatch.setattr(engines, "SHORTEST", 16)
    monkeypatch.setattr(Engine, "decode", lambda self, s: lengths.append(s.cache.valid.shape[1]) or decode(self, s))
    with Server(engine(size=1, stop=(), length=96, chunk=4)) as server:
        for new in (40, 4):
            server.submit(Request([5, 6], None, new)).result()
            while server.load != (0, 0):
                time.sleep(0.01)
            time.sleep(0.1)
    assert sorted(set(lengths)) == [16, 24, 32, 48] and lengths[-1] == 16


def test_requests_that_cannot_be_answered_are_refused():
    with Server(engine(length=64)) as server:
        with pytest.raises(UserError, match=r"the prompt has 60 tokens, .* answer of 5 is more than the 64 that fit"):
            server.submit(Request([5] * 60, None, 5))
        with pytest.raises(UserError, match="beams"):
            server.submit(Request([5], None, 5, Decoding(beams=2)))
        with pytest.raises(ValueError, match="at least 1"):
            server.submit(Request([], None, 5))


def test_nothing_is_compiled_for_the_second_request():
    compiled = []
    with Server(engine(size=2, length=96, stop=())) as server:
        for seed in range(3):
            server.submit(request("phi3", 5, 0, 6, False, seed)).result()
            compiled.append([each._cache_size() for each in (engines._prompt, engines._admit, engines._decode)])
    assert compiled[0] == compiled[1] == compiled[2]
