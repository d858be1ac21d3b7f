"""An HTTP API that clients of OpenAI's chat completions can use; `trol_jax.serve.openai` says what of it.

POST /v1/chat/completions, GET /v1/models, /health (503 once an engine broke), /metrics (Prometheus).
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator

import prometheus_client
from fastapi import FastAPI
from fastapi import Request as Http
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from trol_jax.serve import openai
from trol_jax.serve.answering import LEFT, Answering
from trol_jax.serve.metrics import Metrics
from trol_jax.serve.models import Served
from trol_jax.serve.openai import Refused, reply


def app(served: dict[str, Served], max_body: int = 32 * 2**20, key: str = "") -> FastAPI:
    """max_body: bytes of a request. key: what clients of /v1 must send as their API key; "" = nothing."""
    api, fast, v1 = _Api(served, max_body, key), _app(), _app()
    v1.add_api_route("/chat/completions", api.completions, methods=["POST"])
    v1.add_api_route("/models", api.models)
    v1.add_api_route("/models/{name}", api.model)
    fast.mount("/v1", v1)  # all of it: what is not there is refused here, whatever else the app may have
    fast.add_api_route("/health", api.health)
    fast.add_api_route("/metrics", api.prometheus)
    return fast


def _app() -> FastAPI:
    fast = FastAPI(title="TroL", docs_url=None, redoc_url=None, openapi_url=None)
    fast.add_exception_handler(Refused, lambda _, error: error.response())
    fast.add_exception_handler(HTTPException, lambda _, error: Refused(error.status_code, error.detail).response())
    fast.add_exception_handler(Exception, lambda *_: Refused(500, "something went wrong in the server").response())
    return fast


class _Api:
    def __init__(self, served: dict[str, Served], max_body: int, key: str):
        self.served, self.max_body, self.key = served, max_body, key
        self.metrics, self.created = Metrics(served), int(time.time())

    async def models(self, http: Http) -> Response:
        self._admit(http)
        return reply({"object": "list", "data": [openai.model(name, self.created) for name in self.served]})

    async def model(self, http: Http, name: str) -> Response:
        self._admit(http)
        return reply(openai.model(self._find(name).name, self.created))

    async def health(self) -> Response:
        broken = [name for name, one in self.served.items() if not one.server.alive]
        return reply({"status": "broken", "models": broken} if broken else {"status": "ok"}, 503 if broken else 200)

    async def prometheus(self) -> Response:
        text = prometheus_client.generate_latest(self.metrics.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def completions(self, http: Http) -> Response:
        began, name = time.monotonic(), ""
        try:
            self._admit(http)
            chat = await asyncio.to_thread(openai.parse, await self._body(http))
            one = self._find(chat.model)
            name = one.name
            request = await asyncio.to_thread(openai.request, one, chat)
            answering = Answering(one, chat, request, self.metrics, began)
        except Exception as error:
            status = LEFT if isinstance(error, ClientDisconnect) else getattr(error, "status", 500)
            self.metrics.requests.labels(name, status).inc()
            if status == LEFT:
                return Response(status_code=LEFT)
            raise
        return _Events(answering) if chat.stream else await _whole(answering, http)

    def _admit(self, http: Http) -> None:
        given = http.headers.get("authorization", "").encode()
        if self.key and not secrets.compare_digest(given, f"Bearer {self.key}".encode()):
            raise Refused(401, "the API key is missing or wrong", code="invalid_api_key")

    def _find(self, name: str) -> Served:
        if name not in self.served:
            names = ", ".join(self.served)
            raise Refused(404, f"there is no model {name[:100]!r}, only {names}", code="model_not_found", param="model")
        return self.served[name]

    async def _body(self, http: Http) -> bytes:
        """A body that is too large is read to its end, and forgotten: who still sends does not look for an answer."""
        body, size = bytearray(), 0
        async for part in http.stream():
            size += len(part)
            if size <= self.max_body:
                body += part
            elif size > 8 * self.max_body:
                break
        if size > self.max_body:
            raise Refused(413, f"the request is larger than {self.max_body:,} bytes; send less or smaller pictures")
        return bytes(body)


async def _whole(answering: Answering, http: Http) -> Response:
    """The answer, unless the client leaves before it is there."""
    with answering:
        answer, left = asyncio.ensure_future(_text(answering)), asyncio.ensure_future(_leaves(http))
        try:
            await asyncio.wait([answer, left], return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                return Response(status_code=LEFT)
            return reply(openai.completion(answering.chat, answer.result(), answering.reason, answering.usage))
        finally:
            answer.cancel()
            left.cancel()


async def _text(answering: Answering) -> str:
    return "".join([piece async for piece in answering.pieces()])


async def _leaves(http: Http) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


class _Events(StreamingResponse):
    """Sends the pieces of an answer as they come; Starlette breaks it off when the client leaves."""

    def __init__(self, answering: Answering):
        super().__init__(_events(answering), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.answering = answering

    async def __call__(self, *connection) -> None:
        with self.answering:
            await super().__call__(*connection)


async def _events(answering: Answering) -> AsyncIterator[str]:
    chat = answering.chat
    start = openai.opening(chat) | ({"usage": None} if chat.include_usage else {})
    yield openai.event(openai.chunk(start, {"role": "assistant", "content": ""}))
    try:
        async for piece in answering.pieces():
            yield openai.event(openai.chunk(start, {"content": piece}))
    except Refused as refused:  # too late for its status
        yield openai.event(refused.body)
        return
    yield openai.event(openai.chunk(start, {}, answering.reason))
    if chat.include_usage:
        yield openai.event(start | {"choices": [], "usage": answering.usage})
    yield openai.event("[DONE]")
