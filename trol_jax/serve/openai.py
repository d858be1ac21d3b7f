"""OpenAI's chat completions as data: requests in, answers and errors out.

Read are: model, messages, max_tokens or max_completion_tokens, temperature, top_p, top_k (not OpenAI's), seed, stop,
stream, stream_options. What cannot change an answer (IGNORED) is ignored, and so is null. All else is refused unless it
asks for what is done anyway (NEUTRAL).

Unlike OpenAI's: answers are greedy unless a temperature is given. Drawn ones differ from request to request unless a
seed is, and with a seed are always the same. Messages are one system (or developer) message at most, which comes first
and replaces the checkpoint's own, then those of user and assistant in turns, the user's last. Of all pictures, wherever
they are, the model sees first all and then the text. Texts of one message are joined by line breaks.
"""

import base64
import dataclasses
import json
import secrets
import time
import uuid
from typing import Annotated, Any, Literal

import numpy as np
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from trol_jax.data.images import load_image
from trol_jax.errors import UserError
from trol_jax.infer.answer import Question
from trol_jax.infer.decoding import Decoding
from trol_jax.infer.server import Request, TooLong
from trol_jax.serve.models import Served

MOST_NEW_TOKENS = 512  # of an answer, where the request does not say
MOST_STOPS = 4
PICTURE_BYTES = 20 * 2**20
LETTERS = 16  # that a token has at most on average, or the request is refused before it is looked at

IGNORED = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
NEUTRAL = {
    "frequency_penalty": 0,
    "function_call": "none",
    "logit_bias": {},
    "logprobs": False,
    "modalities": ["text"],
    "n": 1,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "tool_choice": "none",
    "top_logprobs": 0,
}


class Refused(UserError):
    """Becomes an answer in OpenAI's error format. param: the field that is at fault."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.headers = status, headers
        kind = "server_error" if status >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, kind)
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        return reply(self.body, self.status, self.headers)


def reply(body: dict, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(body), status, headers, media_type="application/json")


# ---------------------------------------------------------------------- what a request holds
class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, given: Any) -> Any:
        """Clients send back what they got, with null or an empty list in every field that was not used."""
        return {k: v for k, v in given.items() if v not in (None, [])} if isinstance(given, dict) else given


class _Url(_Given):
    url: str
    detail: str = "auto"


class _Part(_Given):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: _Url | None = None

    @model_validator(mode="after")
    def _is_what_it_says(self):
        other = "image_url" if self.type == "text" else "text"
        if getattr(self, self.type) is None or getattr(self, other) is not None:
            raise ValueError(f"a part of type {self.type} must hold {self.type} and nothing else")
        return self


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class _Message(_Given):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[_Part], BeforeValidator(_parts)]
    name: str | None = None  # changes nothing

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content if part.type == "text")


class _StreamOptions(_Given):
    include_usage: bool = False
    include_obfuscation: bool = False  # of which there is none


def _stops(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


_Stop = Annotated[str, Field(min_length=1)]


class _Body(_Given):
    model: str
    messages: list[_Message]
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = Field(0, ge=0, lt=2**31)
    seed: int | None = None
    stop: Annotated[list[_Stop], Field(max_length=MOST_STOPS), BeforeValidator(_stops)] = []
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _without_what_changes_nothing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {k: v for k, v in given.items() if k not in IGNORED and (k not in NEUTRAL or v != NEUTRAL[k])}


@dataclasses.dataclass(frozen=True)
class Chat:
    """pictures: data URLs, each with its place in the request. system: None = the checkpoint's own."""

    model: str
    question: Question
    pictures: list[tuple[str, str]]
    system: str | None
    max_new_tokens: int | None
    decoding: Decoding
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def parse(body: bytes) -> Chat:
    """Raises Refused for what is no request, or one that cannot be answered here."""
    try:
        given = _Body.model_validate(from_json(body))
    except ValidationError as error:
        raise _refused(error.errors(include_url=False)[0]) from None
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    has_system = given.messages[0].role in ("system", "developer")
    turns = given.messages[has_system:]
    if [turn.role for turn in turns] != ["user", *["assistant", "user"] * (len(turns) // 2)]:
        wanted = "an optional system message, then user and assistant in turns, the user last"
        raise Refused(400, f"messages must be {wanted}", param="messages")
    texts = [turn.text for turn in turns]
    drawn = given.temperature > 0 and given.seed is None
    seed = secrets.randbits(32) if drawn else (given.seed or 0) % 2**32
    try:
        decoding = Decoding(temperature=given.temperature, top_k=given.top_k, top_p=given.top_p, seed=seed)
    except UserError as error:
        raise Refused(400, str(error), param=str(error).split()[0]) from None
    return Chat(
        model=given.model,
        question=Question(texts[-1], history=list(zip(texts[:-1:2], texts[1::2], strict=True))),
        pictures=[
            (f"messages[{i}].content[{j}].image_url.url", part.image_url.url)
            for i, message in enumerate(given.messages)
            for j, part in enumerate(message.content)
            if part.image_url
        ],
        system=given.messages[0].text if has_system else None,
        max_new_tokens=given.max_completion_tokens or given.max_tokens,
        decoding=decoding,
        stop=tuple(given.stop),
        stream=given.stream,
        include_usage=given.stream_options.include_usage,
    )


def _refused(error: dict) -> Refused:
    """Of the first thing that pydantic did not like."""
    param = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in error["loc"]).lstrip(".")[:100]
    if not param:
        return Refused(400, "the body must be a JSON object")
    if error["type"] == "missing":
        return Refused(400, f"{param} is missing or empty", code="missing_required_parameter", param=param)
    if error["type"] == "extra_forbidden":
        only = f"; it can only be {json.dumps(NEUTRAL[param])}" if param in NEUTRAL else ""
        return Refused(400, f"{param} is not supported{only}", code="unsupported_parameter", param=param)
    message = error["msg"].removeprefix("Value error, ")
    return Refused(400, f"{param}: {message[:1].lower()}{message[1:]}", code="invalid_value", param=param)


# ---------------------------------------------------------------------- from there to what is answered
def request(served: Served, chat: Chat) -> Request:
    """For `Server.submit`. Decodes pictures, which takes its time. Raises Refused for what cannot be read or held."""
    answerer, length = served.answerer, served.server.engine.length
    if chat.system is not None:
        answerer = dataclasses.replace(answerer, system=chat.system)
    turns = [*(text for turn in chat.question.history for text in turn), chat.question.text, chat.system or ""]
    if (letters := sum(map(len, turns))) > LETTERS * length:  # tokenising holds up all threads
        raise _too_long(f"messages of {letters:,} letters take more than {letters // LETTERS:,} tokens", length)
    least = len(chat.pictures) * answerer.model.config.image_tokens
    if least >= length:  # so much can be said before any picture is decoded
        raise _too_long(f"{len(chat.pictures)} pictures take {least:,} tokens or more", length)
    pictures = (_picture(*each) for each in chat.pictures)  # one at a time is in memory
    try:
        made = answerer.request(dataclasses.replace(chat.question, pictures=pictures), 1, chat.decoding, length)
    except Refused:
        raise
    except TooLong as error:
        raise _too_long(f"the prompt has {error.prompt:,} tokens", length) from None
    except UserError as error:
        raise Refused(400, str(error), code="invalid_value", param="messages") from None
    prompt = len(made.tokens)
    made.max_new_tokens = chat.max_new_tokens or max(1, min(MOST_NEW_TOKENS, length - prompt))
    if prompt + made.max_new_tokens > length:
        raise _too_long(f"the prompt has {prompt:,} tokens and the answer {made.max_new_tokens:,}", length)
    return made


def _too_long(what: str, length: int) -> Refused:
    message = f"{what}, of {length:,} that fit; shorten the messages or max_tokens"
    return Refused(400, message, code="context_length_exceeded", param="messages")


def _picture(place: str, url: str) -> np.ndarray:
    """Nothing is fetched and no file is opened: the URL itself holds the picture."""
    head, _, data = url.partition(",")
    if not (head[:5].lower() == "data:" and head.lower().endswith(";base64")):
        what = f"{place} must hold the picture itself, as data:image/png;base64,...; nothing is fetched"
        raise Refused(400, what, code="invalid_image_url", param=place)
    if len(data) * 3 // 4 > PICTURE_BYTES:
        what = f"{place} holds more than {PICTURE_BYTES >> 20} MB; send a smaller picture"
        raise Refused(400, what, code="image_too_large", param=place)
    try:
        return load_image(base64.b64decode(data, validate=True))
    except UserError as error:
        raise Refused(400, f"{place}: {error}", code="invalid_image", param=place) from None
    except ValueError:
        raise Refused(400, f"{place} is not base64", code="invalid_image", param=place) from None


# ---------------------------------------------------------------------- answers
def opening(chat: Chat) -> dict:
    """What all pieces of one answer share."""
    kind = "chat.completion.chunk" if chat.stream else "chat.completion"
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": chat.model}


def completion(chat: Chat, text: str, reason: str, counts: dict) -> dict:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return opening(chat) | {"choices": [choice], "usage": counts}


def chunk(start: dict, delta: dict, reason: str | None = None) -> dict:
    return start | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}


def event(body: dict | str) -> str:
    return f"data: {body if isinstance(body, str) else json.dumps(body)}\n\n"


def usage(prompt: int, answer: int) -> dict:
    """Tokens; those of pictures and the mark that ends an answer are among them."""
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def model(name: str, created: int) -> dict:
    return {"id": name, "object": "model", "created": created, "owned_by": "trol-jax"}
