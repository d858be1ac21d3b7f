"""Who says whether a free answer is right, where rules cannot: nobody, replies in a file, or a model behind a URL.

What judges are asked is in the files of the benchmarks; `judging` lets the two talk.
"""

import concurrent.futures
import email.message
import http.client
import json
import os
import random
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trol_jax import journal
from trol_jax.errors import UserError
from trol_jax.evals.files import Root

KEY = "OPENAI_API_KEY"  # the only place that a key is taken from; it stands in no file, log or error
SECRET = 16  # letters of a key that no text has by chance
REFUSED = (400, 413, 422)  # what the server holds against one prompt; other prompts may go well
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)


class Judge(Protocol):
    """name: stands in every result, as scores of different judges cannot be compared."""

    name: str

    def replies(self, prompts: Sequence[str]) -> list[str | None]:
        """What the judge says to each; None where it says nothing, which is counted and never averaged."""
        ...

    def account(self) -> Mapping[str, Any]:
        """What the replies took since the last account, for results."""
        ...


class NoJudge:
    """Rules only."""

    name = "none"

    def replies(self, prompts: Sequence[str]) -> list[None]:
        return [None] * len(prompts)

    def account(self) -> dict[str, Any]:
        return {}


class Recorded:
    """Replies in a file, an object a line with "prompt" and "reply", as `OpenAIJudge` writes it."""

    def __init__(self, file: str | os.PathLike):
        self.known, models = {}, set()
        for row in Root("").lines(str(file)):
            self.known[row.text("prompt")] = row.get("reply", str, type(None))
            models.add(str(row.data.get("model", "unknown")))
        self.name = f"recorded ({', '.join(sorted(models))})"

    def replies(self, prompts: Sequence[str]) -> list[str | None]:
        return [self.known.get(prompt) for prompt in prompts]

    def account(self) -> dict[str, Any]:
        return {}


class OpenAIJudge:
    """Any server that speaks OpenAI's chat completions.

    file: replies are kept there as they come, and never paid for again. prices: dollars for a million tokens of prompts
    and of replies. UserError where the server cannot be used at all, or says nothing useful `tries` times.
    """

    def __init__(
        self,
        url: str,
        model: str,
        file: Path,
        *,
        prices: Sequence[float] = (),
        workers: int = 8,
        tries: int = 6,
        wait: float = 1.0,
        timeout: float = 120.0,
    ):
        try:
            parts = urllib.parse.urlsplit(url)
            plain = parts.hostname and not (parts.username or parts.query or parts.fragment) and parts.port != 0
        except ValueError:  # brackets or a port that no address has
            plain = False
        if not plain:
            raise UserError(
                f"--judge must be a plain address, as https://api.openai.com/v1; a key is taken from {KEY} alone"
            )
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self.url = urllib.parse.urlunsplit((parts.scheme, parts.netloc, f"{path}/chat/completions", "", ""))
        self.model, self.file, self.prices = model, Path(file), prices
        self.workers, self.tries, self.wait, self.timeout = workers, tries, wait, timeout
        self.name = f"{model} ({parts.netloc})"
        self.key = os.environ.get(KEY, "").strip()
        if not (self.key.isascii() and self.key.isprintable()):
            raise UserError(f"{KEY} holds characters that no key has; set it anew")
        self.opener = urllib.request.build_opener(_NoRedirect)
        self.lock, self.over = threading.Lock(), threading.Event()
        self.known, self.asked = self._read(), {}

    def account(self) -> dict[str, Any]:
        """Of all replies that were used, those of earlier runs too."""
        used, self.asked = list(self.asked.values()), {}
        told = {name: sum(line.get(name) or 0 for line in used) for name in ("tokens_in", "tokens_out")}
        told |= {"replies": len(used), "versions": sorted({str(line.get("version")) for line in used})}
        if refused := [line["refused"] for line in used if "refused" in line]:
            told |= {"refused": len(refused), "first_refusal": refused[0]}
        if self.prices:
            told["dollars"] = sum(
                p * told[name] / 1e6 for p, name in zip(self.prices, ("tokens_in", "tokens_out"), strict=True)
            )
        return told

    def replies(self, prompts: Sequence[str]) -> list[str | None]:
        from tqdm import tqdm

        todo = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        self.over.clear()
        pool = concurrent.futures.ThreadPoolExecutor(self.workers)
        try:
            coming = [pool.submit(self._ask, prompt) for prompt in todo]
            done = concurrent.futures.as_completed(coming)
            for each in tqdm(done, "judge", len(todo), unit="reply", dynamic_ncols=True, disable=not todo):
                each.result()
        finally:
            self.over.set()  # none waits for another try
            pool.shutdown(wait=False, cancel_futures=True)
        self.asked |= {prompt: self.known[prompt] for prompt in prompts}
        return [self.known[prompt]["reply"] for prompt in prompts]

    # ------------------------------------------------------------------ replies on disk
    def _read(self) -> dict[str, dict]:
        """Of this model and address; a last line that was being written leaves the file."""
        if not self.file.exists():
            return {}
        with journal.explained(self.file):
            lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            journal.write(self.file, "".join(lines[:-1]).encode())
            lines = lines[:-1]
        try:
            found = [json.loads(line) for line in lines]
            return {line["prompt"]: line for line in found if (line["model"], line["url"]) == (self.model, self.url)}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.file} is no file of a judge's replies; move it away") from None

    def _keep(self, line: dict) -> None:
        """What the server refused cost nothing, and may go well another time."""
        with self.lock:
            if "refused" not in line:
                journal.Journal(self.file, self.name, ()).append([line])
            self.known[line["prompt"]] = line

    # ------------------------------------------------------------------ the server
    def _ask(self, prompt: str) -> None:
        said = self._send({"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0})
        self._keep({"prompt": prompt, "model": self.model, "url": self.url, **said})

    def _send(self, body: dict) -> dict[str, Any]:
        """reply, version, tokens_in, tokens_out."""
        trouble, pause = "", 0.0
        for attempt in range(self.tries):
            if attempt and self.over.wait(max(pause, self.wait * 2 ** (attempt - 1) * random.uniform(0.5, 1))):
                break
            pause = 0.0
            try:
                return self._read_reply(self._post(body))
            except urllib.error.HTTPError as error:
                trouble = self._told(error)
                if error.code in REFUSED:
                    return {"reply": None, "version": self.model, "refused": trouble}
                if error.code not in AGAIN:
                    raise UserError(f"the judge at {self.url} refuses: {trouble}") from None
                pause = _seconds(error.headers)
            except (OSError, http.client.HTTPException, ValueError) as error:
                trouble = self._scrubbed(f"{type(error).__name__}: {getattr(error, 'reason', error)}")
        raise UserError(
            f"the judge at {self.url} failed {self.tries} times, the last with {trouble}; "
            f"start again to go on, what it said is kept in {self.file}"
        )

    def _post(self, body: dict) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with self.opener.open(request, timeout=self.timeout) as response:
            return response.read()

    def _read_reply(self, data: bytes) -> dict[str, Any]:
        try:
            whole = json.loads(data.decode())
            reply, usage = whole["choices"][0]["message"].get("content"), whole.get("usage") or {}
            counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ValueError("no chat completion") from None
        reply = self._kept_secret(reply) if isinstance(reply, str) else None
        version = self._kept_secret(str(whole.get("model") or self.model))
        return {"reply": reply, "version": version, "tokens_in": counts[0], "tokens_out": counts[1]}

    def _told(self, error: urllib.error.HTTPError) -> str:
        text = self._scrubbed(f"{error.code} {error.reason}: {error.read(1 << 16).decode(errors='replace')}")
        return " ".join(text.split())[:240]

    def _kept_secret(self, said: str) -> str:
        """What is scored and written; a short key, as "none" of a server that needs no key, may be a word of it."""
        return self._scrubbed(said) if len(self.key) >= SECRET else said

    def _scrubbed(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key goes to no other address."""

    def redirect_request(self, *_):
        return None


def _seconds(headers: email.message.Message) -> float:
    """How long the server asks to wait."""
    try:
        return min(60.0, max(0.0, float(headers.get("Retry-After", 0))))
    except ValueError:
        return 0.0


def make(where: str, model: str | None, file: Path, prices: Sequence[str] = ()) -> Judge:
    """where: none, a file of replies, or the address of a server, whose replies are kept in `file`."""
    if where.startswith(("http://", "https://")):
        if not model:
            raise UserError("--judge_model is missing; it names the model that judges")
        try:
            numbers = [float(price) for price in prices]
        except ValueError:
            numbers = [0.0]
        if len(numbers) not in (0, 2):
            raise UserError("--judge_prices takes two numbers, dollars for a million tokens of prompts and of replies")
        return OpenAIJudge(where, model, file, prices=numbers)
    if model or prices:
        raise UserError("--judge_model and --judge_prices go with the address of a server in --judge")
    return NoJudge() if where == "none" else Recorded(where)
