"""Answers on disk: one JSON object a line, appended batch by batch, so that a measurement can be stopped and go on."""

import errno
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

from trol_jax.errors import UserError


class Answers:
    """The answers of one `source`, a checkpoint and a way to ask it. Lines from another are of no use here."""

    def __init__(self, path: Path, source: str):
        self.path, self.source = path, source

    def read(self, rows: Iterable[Mapping]) -> dict[int, dict]:
        """The answers to the rows, by id; a line that was being written, or asks something else, leaves the file.

        UserError for a file of another source, whose answers may have taken long.
        """
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return {}
        expected = {row["id"]: (row["question"], row["answer"], os.path.basename(row["image"])) for row in rows}
        with explained(self.path):
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        known = {}
        for text in lines:
            try:
                old = json.loads(text) if text.endswith("\n") else None
                asked = old["question"], old["answer"], old["image"]
                if old["source"] != self.source:
                    raise UserError(
                        f"{self.path} holds answers of another measurement ({old['source']}; this one is "
                        f"{self.source}); name another --output, or remove that file"
                    )
                if expected.get(old["id"]) == asked:
                    known[old["id"]] = old
            except UserError:
                raise
            except (ValueError, KeyError, TypeError):
                continue
        if len(known) < len(lines):
            self.write(known.values())
        return known

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
            f"cannot write {path}: {error.strerror or error}; make room or name another --output, then start again"
        ) from error
