"""An answer on its way from the server's thread to the event loop."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from trol_jax.errors import UserError
from trol_jax.infer.server import Full, Request
from trol_jax.serve import openai
from trol_jax.serve.metrics import Metrics
from trol_jax.serve.models import Served
from trol_jax.serve.openai import Chat, Refused

log = logging.getLogger(__name__)
LEFT = 499  # status of a request whose client left, as nginx counts it


class Answering:
    """As a context it ends the request on leaving, however that comes, and counts it."""

    def __init__(self, served: Served, chat: Chat, request: Request, metrics: Metrics, began: float):
        """Raises Refused if the server does not take the request."""
        self.served, self.chat, self.request, self.metrics, self.began = served, chat, request, metrics, began
        self.tokens, self.text, self.reason, self.status = [], "", None, LEFT
        self._news, loop = asyncio.Queue(), asyncio.get_running_loop()

        def listener(news):
            with contextlib.suppress(RuntimeError):  # the loop was closed, and nobody waits
                loop.call_soon_threadsafe(self._news.put_nowait, news)

        request.listener = listener
        try:
            served.server.submit(request)
        except Full as full:
            raise Refused(429, str(full), code="server_busy", **{"Retry-After": "1"}) from None
        except UserError as error:
            raise Refused(400, str(error)) from None
        except Exception as error:
            raise _broken(served, error) from None

    @property
    def usage(self) -> dict:
        return openai.usage(len(self.request.tokens), len(self.tokens))

    async def pieces(self) -> AsyncIterator[str]:
        """The text as it comes. Raises Refused if the engine breaks."""
        async for tokens in self._arrivals():
            self.tokens += tokens
            if piece := self._look():
                yield piece
        if not self.reason:
            if piece := self._look(last=True):
                yield piece
            ended = self.tokens and self.tokens[-1] in self.served.answerer.stop
            self.reason = "stop" if ended else "length"
        self.status = 200

    async def _arrivals(self) -> AsyncIterator[list[int]]:
        """New tokens; one at a time where a stop sequence may end the answer within them."""
        while not self.reason and (news := await self._news.get()) is not None:
            if isinstance(news, BaseException):
                self.status = 500
                raise _broken(self.served, news)
            if not self.tokens:
                self.metrics.first.labels(self.served.name).observe(time.monotonic() - self.began)
            for tokens in [[token] for token in news] if self.chat.stop else [news]:
                if not self.reason:
                    yield tokens

    def _look(self, last: bool = False) -> str:
        """What is new of the text, without what may yet change or turn out to be a stop sequence."""
        text = self.served.answerer.text(self.tokens)
        found = [place for stop in self.chat.stop if (place := text.find(stop)) >= 0]
        if found:
            text, self.reason = text[: min(found)], "stop"
        elif not last:
            text = text.rstrip("\ufffd")  # what the first bytes of a letter look like
            text = text[: len(text) - max((_begun(stop, text) for stop in self.chat.stop), default=0)]
        new = text[len(self.text) :] if text.startswith(self.text) else ""
        self.text += new
        return new

    def __enter__(self) -> "Answering":
        return self

    def __exit__(self, *_) -> None:
        self.request.cancel()
        name, metrics = self.served.name, self.metrics
        metrics.requests.labels(name, self.status).inc()
        metrics.prompt_tokens.labels(name).inc(len(self.request.tokens))
        metrics.completion_tokens.labels(name).inc(len(self.tokens))
        metrics.whole.labels(name).observe(time.monotonic() - self.began)


def _broken(served: Served, error: BaseException) -> Refused:
    log.error("%s no longer answers: %r", served.name, error)
    return Refused(500, f"{served.name} no longer answers; the server must be started again", code="engine_failed")


def _begun(stop: str, text: str) -> int:
    """Letters at the end of the text with which the stop sequence may begin."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
