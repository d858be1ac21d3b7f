"""Answers on disk: one JSON object a line, appended as they come, so that long work can be stopped and go on."""

import errno
import json
import os
import secrets
from collections.abc import Collection, Hashable, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

from trol_jax.errors import UserError


class Journal:
    """The answers of one `source`, a checkpoint and a way to ask it. Lines from another are of no use here.

    Every line has a `key` of its own, which comes first, and its "source". added: fields that an answer has and its
    question has not.
    """

    def __init__(self, path: Path, source: str, added: Collection[str], key: str = "id"):
        self.path, self.source, self.key, self.added = path, source, key, {key, "source", *added}

    def read(self, asked: Mapping[Hashable, Mapping] | None, strict: bool = False) -> dict[Hashable, dict]:
        """Lines by key, of those whose question is what is `asked` under it; others leave the file, as does one that
        was being written.

        UserError for a file of another source, whose answers may have taken long, and for one that holds no answers.
        strict: also for a line with the answer to another question; the file stays as it is in any case. None is asked:
        all lines, as they are.
        """
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return {}
        with explained(self.path):
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        known = {}
        for number, text in enumerate(lines, start=1):
            if number == len(lines) and self._torn(text):
                continue
            try:
                old = json.loads(text)
                source, key = old["source"], old[self.key]
                wanted = old if asked is None else asked.get(key)
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{self.path}, line {number} is no answer; write to another file") from None
            if source != self.source:
                raise UserError(
                    f"{self.path} holds answers of another measurement ({source}; this one is {self.source}); "
                    f"write to another, or remove it"
                )
            if wanted is not None and self._question(wanted) == self._question(old):
                known[key] = old
            elif strict and "error" not in old:
                raise UserError(
                    f"{self.path}, line {number} answers another question, or one with another picture, than has the "
                    f"{self.key} {key} here; write to another file, or remove the line to ask anew"
                )
        if not strict and len(known) < len(lines):
            self.write(known.values())
        return known

    def _torn(self, text: str) -> bool:
        """Whether the last line of the file was being written; one that is whole but for its end may be of another."""
        begin = f'{{"{self.key}": '
        if text.endswith("\n") or not (text.startswith(begin) or begin.startswith(text)):
            return False
        try:
            return json.loads(text).get("source") == self.source
        except ValueError:
            return True

    def _question(self, line: Mapping) -> dict:
        return {name: value for name, value in line.items() if name not in self.added}

    def append(self, lines: Iterable[dict]) -> None:
        """All of the lines, or none when the disk is full."""
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                try:
                    data = encode(lines)
                    if file.write(data) < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    file.truncate(size)
                    raise

    def write(self, lines: Iterable[dict]) -> None:
        write(self.path, encode(lines))


def encode(lines: Iterable[dict]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in lines).encode()


def write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def explained(path: Path):
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; make room or write elsewhere, then start again"
        ) from error
