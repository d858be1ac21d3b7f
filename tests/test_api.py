"""The HTTP API, as clients of OpenAI's see it: over a socket, from a tiny model."""

import asyncio
import base64
import concurrent.futures
import contextlib
import dataclasses
import http.client
import io
import json
import signal
import socket
import threading
import time
import urllib.request

import numpy as np
import openai
import pytest
import uvicorn
from PIL import Image

import fixtures
import programs
from programs import Program
from trol_jax.infer.answer import Answerer, Question
from trol_jax.infer.decoding import GREEDY, Decoding
from trol_jax.infer.engine import Engine
from trol_jax.serve import api
from trol_jax.serve.models import Served

LENGTH = 128
PICTURE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
ASK = {"role": "user", "content": "what color is it?"}


def data_url(picture=PICTURE) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def with_picture(text="what color is it?", url=None):
    image = {"type": "image_url", "image_url": {"url": url or data_url()}}
    return {"role": "user", "content": [{"type": "text", "text": text}, image]}


MANY = with_picture()["content"][1:] * 40


@dataclasses.dataclass
class Site:
    port: int
    one: Served
    client: openai.OpenAI

    def ask(self, *messages, model="nano", **options):
        return self.client.chat.completions.create(model=model, messages=messages, **options)

    def raw(self, method, path, body=None, headers=None):
        """(status, content)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode()

    def metric(self, line: str) -> float:
        lines = self.raw("GET", "/metrics")[1].splitlines()
        return sum(float(each.rpartition(" ")[2]) for each in lines if each.startswith(line))


@pytest.fixture(scope="module")
def answerer(tmp_path_factory):
    with fixtures.nano_variants():
        return Answerer.load(fixtures.save_run(tmp_path_factory.mktemp("run")))


@contextlib.contextmanager
def site(answerer, size=4, waiting=256, stop=None, chunk=8, **options):
    """stop=(): no answer ends before it must."""
    if stop is not None:
        answerer = Endless(**vars(answerer))
    engine = dict(length=LENGTH, chunk=chunk, waiting=waiting)
    with answerer.serve(size, **engine) as server, socket.create_server(("127.0.0.1", 0)) as listener:
        one = Served("nano", answerer, server)
        config = uvicorn.Config(api.app({"nano": one}, **options), log_level="critical", lifespan="off")
        http_server = uvicorn.Server(config)
        thread = threading.Thread(target=http_server.run, args=([listener],))
        thread.start()
        port = listener.getsockname()[1]
        try:
            with openai.OpenAI(**address(port)) as client:
                yield Site(port, one, client)
        finally:
            http_server.should_exit = True
            thread.join()


def address(port):
    return dict(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)


class Endless(Answerer):
    stop = ()


@pytest.fixture(scope="module")
def nano(answerer):
    with site(answerer) as here:
        yield here


@pytest.fixture(scope="module")
def endless(answerer):
    """One slot, and one request may wait; answers go on to the last token that fits."""
    with site(answerer, size=1, waiting=1, stop=(), chunk=1) as here:
        yield here


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def expected(site, question, max_new_tokens, decoding=GREEDY, **changes):
    """The answer without HTTP."""
    answerer = dataclasses.replace(site.one.answerer, **changes)
    return answerer.finish(site.one.server.submit(answerer.request(question, max_new_tokens, decoding)))


# ---------------------------------------------------------------------- answers
def test_an_answer_is_that_of_the_answerer(nano):
    wanted = expected(nano, Question(ASK["content"]), 12)
    got = nano.ask(ASK, max_tokens=12)
    assert (got.object, got.model) == ("chat.completion", "nano") and got.id.startswith("chatcmpl-")
    (choice,) = got.choices
    assert (choice.message.role, choice.message.content) == ("assistant", wanted.text)
    assert choice.finish_reason == ("stop" if wanted.stopped else "length")
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (len(wanted.prompt), len(wanted.tokens))
    assert got.usage.total_tokens == len(wanted.prompt) + len(wanted.tokens)


def test_pictures_a_conversation_and_a_system_message(nano, answerer):
    other = 255 - PICTURE
    history = [("what color is it?\nsay", "red"), ("and now?", "blue")]
    messages = [
        {"role": "system", "content": "Be brief."},
        with_picture("what color is it?"),
        {"role": "assistant", "content": "red"},
        with_picture("and now?", data_url(other)),
        {"role": "assistant", "content": [{"type": "text", "text": "blue"}]},
        {"role": "user", "content": "what shape is in the image?"},
    ]
    messages[1]["content"].append({"type": "text", "text": "say"})
    question = Question("what shape is in the image?", [PICTURE, other], history)
    wanted = expected(nano, question, 9, system="Be brief.")
    got = nano.ask(*messages, max_completion_tokens=9)
    assert got.choices[0].message.content == wanted.text
    assert got.usage.prompt_tokens == len(wanted.prompt)
    assert wanted.prompt.count(answerer.tokenizer.image_id) == 2 * answerer.model.config.image_tokens
    assert nano.ask(*messages[1:], max_tokens=9).usage.prompt_tokens < len(wanted.prompt)


def test_a_stream_is_the_same_answer_in_pieces(nano):
    whole = nano.ask(with_picture(), max_tokens=40)
    chunks = list(nano.ask(with_picture(), max_tokens=40, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].choices[0].delta.role == "assistant"
    *pieces, end, usage = chunks
    assert "".join(piece.choices[0].delta.content for piece in pieces) == whole.choices[0].message.content
    assert len(pieces) > 2 and all(piece.usage is None for piece in pieces)
    assert end.choices[0].finish_reason == whole.choices[0].finish_reason
    assert usage.choices == [] and usage.usage == whole.usage


def test_drawn_answers_have_a_seed(nano):
    decoding = Decoding(temperature=1.5, top_p=0.9, top_k=50, seed=5)
    wanted = expected(nano, Question(ASK["content"]), 12, decoding)
    options = dict(temperature=1.5, top_p=0.9, max_tokens=12, extra_body={"top_k": 50})
    assert {nano.ask(ASK, seed=5, **options).choices[0].message.content for _ in range(2)} == {wanted.text}
    assert len({nano.ask(ASK, **options).choices[0].message.content for _ in range(4)}) > 1


def test_an_answer_is_cut_before_a_stop_sequence(endless):
    whole = endless.ask(ASK, max_tokens=30).choices[0].message.content
    stop = whole[12:15]
    cut = endless.ask(ASK, max_tokens=30, stop=[stop, "never said"])
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop" and cut.usage.completion_tokens < 30
    chunks = endless.ask(ASK, max_tokens=30, stop=stop, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == cut.choices[0].message.content


def test_an_answer_is_as_long_as_fits_unless_the_request_says(endless):
    usage = endless.ask(ASK).usage
    assert usage.total_tokens == LENGTH


# ---------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("change", "status", "code", "message"),
    [
        ({"model": "other"}, 404, "model_not_found", "there is no model 'other', only nano"),
        ({"messages": [ASK | {"content": "why " * 200}]}, 400, "context_length_exceeded", "of 128 that fit"),
        ({"max_tokens": 128}, 400, "context_length_exceeded", "the answer 128, of 128 that fit"),
        (
            {"messages": [{"role": "user", "content": MANY}]},
            400,
            "context_length_exceeded",
            "40 pictures take 160 tokens",
        ),
        ({"messages": [with_picture(url="http://127.0.0.1/a.png")]}, 400, "invalid_image_url", "nothing is fetched"),
        ({"messages": [with_picture(url="/etc/passwd")]}, 400, "invalid_image_url", "must hold the picture itself"),
        ({"messages": [with_picture(url="data:image/png;base64,!")]}, 400, "invalid_image", "is not base64"),
        ({"messages": [with_picture(url="data:;base64,aGVsbG8=")]}, 400, "invalid_image", "is not a picture"),
        ({"messages": [with_picture(url=data_url()[:-40])]}, 400, "invalid_image", "damaged"),
        ({"messages": []}, 400, "missing_required_parameter", "messages is missing or empty"),
        ({"messages": [ASK, ASK]}, 400, None, "user and assistant in turns"),
        ({"messages": [ASK, {"role": "assistant", "content": "red"}]}, 400, None, "the user last"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, None, "the user last"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_value", "messages[0].role: input should be"),
        ({"messages": [ASK | {"content": " "}]}, 400, "invalid_value", "the question is empty"),
        ({"messages": [ASK | {"content": [{"type": "text"}]}]}, 400, "invalid_value", "must hold text"),
        ({"messages": [ASK | {"content": [{"type": "input_audio"}]}]}, 400, "invalid_value", "'text' or 'image_url'"),
        ({"temperature": -1}, 400, None, "temperature is -1.0, must be between 0 and 1e6"),
        ({"top_p": 2}, 400, None, "top_p is 2.0"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens: input should be greater than or equal to 1"),
        ({"max_tokens": "9"}, 400, "invalid_value", "max_tokens: input should be a valid integer"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, "invalid_value", "stop: list should have at most 4"),
        ({"stop": ""}, 400, "invalid_value", "at least 1 character"),
        ({"n": 2}, 400, "unsupported_parameter", "n is not supported; it can only be 1"),
        ({"logprobs": True}, 400, "unsupported_parameter", "logprobs is not supported"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter", "tools is not supported"),
        ({"max_token": 9}, 400, "unsupported_parameter", "max_token is not supported"),
    ],
)
def test_what_cannot_be_answered_is_refused(nano, change, status, code, message):
    for stream in (False, True):
        body = {"model": "nano", "messages": [ASK], "stream": stream} | change
        got, content = nano.raw("POST", "/v1/chat/completions", json.dumps(body))
        error = json.loads(content)["error"]
        assert (got, error["code"]) == (status, code), error
        assert message in error["message"] and "\n" not in error["message"]
        assert error["type"] == "invalid_request_error" and "param" in error


@pytest.mark.parametrize("body", ["", "{", "[]", "7", '{"model": "\\ud800"}', "[" * 10000, "\xff", '{"model": NaN}'])
def test_what_is_no_request_is_refused(nano, body):
    status, content = nano.raw("POST", "/v1/chat/completions", body.encode("latin-1"))
    assert status == 400 and json.loads(content)["error"]["type"] == "invalid_request_error"


def test_the_client_raises_the_right_errors(nano):
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        nano.ask(ASK, model="other")
    with pytest.raises(openai.BadRequestError, match="of 128 that fit"):
        nano.ask(ASK | {"content": "why " * 200})


def test_what_changes_nothing_is_ignored(nano):
    plain = nano.ask(ASK, max_tokens=5).choices[0].message
    back = plain.model_dump()  # null in many fields
    got = nano.ask(ASK, back, ASK, max_tokens=5, n=1, frequency_penalty=0, logprobs=False, user="me", tools=[])
    asked = [ASK, {"role": "assistant", "content": plain.content}, ASK | {"name": "me"}]
    assert got.choices[0].message.content == nano.ask(*asked, max_tokens=5).choices[0].message.content


def test_a_large_body_is_refused(answerer):
    with site(answerer, max_body=10_000) as here:
        for size in (10_001, 1_000_000):
            with pytest.raises(openai.APIStatusError, match="larger than 10,000 bytes") as raised:
                here.ask(ASK | {"content": "x" * size})
            assert raised.value.status_code == 413
        assert here.ask(ASK, max_tokens=1)


def test_a_key_may_be_wanted(answerer):
    with site(answerer, key="secret") as here:
        with pytest.raises(openai.AuthenticationError, match="API key"):
            here.ask(ASK)
        assert [model.id for model in here.client.with_options(api_key="secret").models.list()] == ["nano"]
        assert here.raw("GET", "/health")[0] == 200


# ---------------------------------------------------------------------- many at a time
def test_200_requests_at_once_are_each_answered_once(nano, answerer):
    rng, before = np.random.default_rng(0), nano.metric("trol_requests_total{")
    colors = ["red", "blue", "teal", "grey"]
    questions = [f"is there a {colors[i % 4]} shape {100 + i}?" for i in range(200)]
    pictures = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) if i % 2 else None for i in range(200)]
    limits = rng.integers(1, 9, 200).tolist()
    messages = [
        {"role": "user", "content": text} if picture is None else with_picture(text, data_url(picture))
        for text, picture in zip(questions, pictures, strict=True)
    ]

    async def everyone():
        async with openai.AsyncOpenAI(**address(nano.port)) as client:

            async def one(i):
                options = dict(model="nano", messages=[messages[i]], max_tokens=limits[i])
                if i % 4 < 2:
                    return (await client.chat.completions.create(**options)).choices[0].message.content
                stream = await client.chat.completions.create(stream=True, **options)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, range(200)))

    together = asyncio.run(everyone())
    alone = []
    for i in range(200):
        question = Question(questions[i], [] if pictures[i] is None else [pictures[i]])
        alone.append(answerer.text(nano.one.server.submit(answerer.request(question, limits[i])).result()))
    assert together == alone and len(set(together)) > 20
    assert nano.metric("trol_requests_total{") == before + 200
    assert nano.one.server.load == (0, 0)


@pytest.fixture
def slow(endless, monkeypatch):
    """A token takes time enough to look at what goes on."""
    decode = Engine.decode
    monkeypatch.setattr(Engine, "decode", lambda *args: time.sleep(0.05) or decode(*args))
    return endless


def test_a_full_queue_says_so(slow):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = slow.ask(ASK, stream=True)
        until(lambda: slow.one.server.load == (1, 0))
        waits = pool.submit(slow.ask, ASK, max_tokens=1)
        until(lambda: slow.one.server.load == (1, 1))
        assert slow.metric('trol_requests_running{model="nano"}') == 1
        assert slow.metric('trol_requests_waiting{model="nano"}') == 1
        with pytest.raises(openai.RateLimitError, match="1 requests are waiting already") as raised:
            slow.ask(ASK)
        assert raised.value.response.headers["retry-after"] == "1"
        running.close()
        assert waits.result().usage.completion_tokens == 1


def test_a_long_text_is_refused_before_it_is_read(nano, monkeypatch):
    monkeypatch.setattr(Answerer, "prompt", lambda *_: pytest.fail("it was read"))
    with pytest.raises(openai.BadRequestError, match="letters take more than 128 tokens, of 128 that fit") as raised:
        nano.ask(ASK | {"content": "x" * (16 * LENGTH + 1)})
    assert raised.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(slow, stream):
    def leave(load):
        """Sends a request, waits until the server has so many, and goes away."""
        connection = http.client.HTTPConnection("127.0.0.1", slow.port)
        body = json.dumps({"model": "nano", "messages": [ASK], "stream": stream})
        connection.request("POST", "/v1/chat/completions", body)
        until(lambda: slow.one.server.load == load)
        return connection

    left = 'trol_requests_total{model="nano",status="499"}'
    before = slow.metric(left)
    running, waiting = leave((1, 0)), leave((1, 1))
    waiting.close()
    until(lambda: slow.one.server.load == (1, 0))
    running.close()
    until(lambda: slow.one.server.load == (0, 0))
    until(lambda: slow.metric(left) == before + 2)
    assert slow.ask(ASK, max_tokens=2).usage.completion_tokens == 2


# ---------------------------------------------------------------------- around the answers
def test_models_are_listed(nano):
    assert [(model.id, model.object) for model in nano.client.models.list()] == [("nano", "model")]
    assert nano.client.models.retrieve("nano").owned_by == "trol-jax"
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        nano.client.models.retrieve("other")


def test_paths_and_methods_that_are_not_there_have_the_same_errors(nano):
    for method, path, status in [("GET", "/v1/chat/completions", 405), ("POST", "/v1/embeddings", 404)]:
        got, content = nano.raw(method, path)
        assert got == status and json.loads(content)["error"]["type"] == "invalid_request_error"


def test_what_was_done_is_counted(nano):
    lines = {
        'trol_requests_total{model="nano",status="200"}': 2,
        'trol_requests_total{model="",status="404"}': 1,
        "trol_prompt_tokens_total": 2 * nano.ask(ASK, max_tokens=1).usage.prompt_tokens,
        "trol_completion_tokens_total": 2 * 3,
        "trol_time_to_first_token_seconds_count": 2,
        "trol_request_seconds_count": 2,
    }
    before = {line: nano.metric(line) for line in lines}
    nano.ask(ASK, max_tokens=3)
    list(nano.ask(ASK, max_tokens=3, stream=True))
    with pytest.raises(openai.NotFoundError):
        nano.ask(ASK, model="other")
    until(lambda: {line: nano.metric(line) - before[line] for line in lines} == lines)
    assert nano.raw("GET", "/health") == (200, '{"status": "ok"}')


def test_a_broken_engine_is_told_to_everyone(answerer, monkeypatch):
    def broken(*_):
        raise MemoryError("no room")

    with site(answerer) as here:
        assert here.ask(ASK, max_tokens=1)
        monkeypatch.setattr(Engine, "decode", broken)
        with pytest.raises(openai.APIError, match="no longer answers"):
            list(here.ask(ASK, stream=True))
        with pytest.raises(openai.InternalServerError, match="no longer answers") as raised:
            here.ask(ASK)
        assert "no room" not in str(raised.value)
        status, content = here.raw("GET", "/health")
        assert status == 503 and json.loads(content)["models"] == ["nano"]


@contextlib.contextmanager
def serve(*arguments, program="serve"):
    program = Program(programs.launch(program), *arguments, TROL_API_KEY="secret")
    try:
        yield program
    finally:
        program.send_signal(signal.SIGKILL)


def test_the_programs_serve_until_they_are_told_to_end(tmp_path):
    with fixtures.nano_variants():
        run = f"--checkpoint={fixtures.save_run(tmp_path / 'nano')}"
    with serve(run, "--port=0") as one, serve(run, "--port=0", program="demo") as other:
        for program, number in ((one, signal.SIGINT), (other, signal.SIGTERM)):
            program.wait_for_line()
            ready, _ = program.said()
            assert ready.startswith("nano at http://127.0.0.1:")
            address = ready.split()[-1].removesuffix("/v1")
            with openai.OpenAI(base_url=f"{address}/v1", api_key="secret") as client:
                assert [model.id for model in client.models.list()] == ["nano"]
            if program is other:
                page = urllib.request.urlopen(address, timeout=30).read().decode()
                assert "auth_required" in page
            program.send_signal(number)
            assert program.wait(timeout=60) == (0, ready, "")


def test_a_port_in_use_is_one_clear_line(nano, tmp_path):
    message = f"error: cannot listen on 127.0.0.1 port {nano.port} (--host, --port): Address already in use\n"
    flags = f"--checkpoint={tmp_path}", f"--port={nano.port}"
    assert programs.fresh("-m", "launch.serve", *flags) == (2, "", message)
