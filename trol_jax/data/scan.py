"""Where the rows of JSON files of any size begin and end, found without parsing them, in fixed memory.

Rows come as (row number in the file, first byte, bytes). What a row holds is checked when it is read; what lies between
rows is checked here.
"""

import json
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from trol_jax.errors import StorageError, UserError

BLOCK = 1 << 19  # bytes read at once; the arrays made of a block this small stay in the processor's cache
MAX_ROW = 64 << 20  # a row that seems longer lacks a quote or a bracket
SPACE = b" \t\r\n"
BOM = b"\xef\xbb\xbf"
QUOTE, BACKSLASH, CURLY = ord('"'), ord("\\"), ord("{")
STEP = np.zeros(256, np.int8)  # into a bracket and out of it
STEP[list(b"{[")], STEP[list(b"}]")] = 1, -1
Row = tuple[int, int, bytes]


def rows(path: str) -> Iterator[Row]:
    """Rows of a JSON array of objects (.json) or of JSON lines (.jsonl). UserError names the byte where it breaks."""
    scan = lines if path.endswith(".jsonl") else array
    with open(path, "rb") as file:
        try:
            yield from scan(file, path)
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error


def lines(file: BinaryIO, name: str) -> Iterator[Row]:
    """Lines that are not blank; their number counts every line."""
    base = len(BOM) if file.read(len(BOM)) == BOM else 0
    file.seek(base)
    rest, number = b"", 0
    while block := file.read(BLOCK):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            if not line.isspace() and line:
                yield number, base, line
            number += 1
            base += len(line) + 1
        _check_length(rest, name, number, base)
    if rest.strip():
        try:
            json.loads(rest)
        except ValueError:
            raise UserError(f"{name} ends inside row {number}, which begins at byte {base}: copy it again") from None
        yield number, base, rest


def array(file: BinaryIO, name: str) -> Iterator[Row]:
    """Objects of an array."""
    rest, base = _opening(file, name)
    number = 0
    while True:
        starts, ends, last = _objects(rest)
        done = 0
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if rest[done:start].strip(SPACE) != (b"," if number else b"") or rest[start] != CURLY:
                raise _misplaced(rest, done, base, number, name)
            yield number, base + start, rest[start:end]
            number, done = number + 1, end
        tail = rest[done:last].strip(SPACE)
        if tail and (last is not None or not _may_go_on(tail, number)):
            raise _misplaced(rest, done, base, number, name)
        if last is not None:
            return _closing(file, rest, last, base, name)
        rest, base = rest[done:], base + done
        _check_length(rest, name, number, base + rest.find(b"{"))
        rest += _more(file, rest, name, number, base)


def _more(file: BinaryIO, rest: bytes, name: str, number: int, base: int) -> bytes:
    """At least as much as is left, so that a row of many blocks is not looked at once a block."""
    block = file.read(max(BLOCK, len(rest)))
    if block:
        return block
    start = rest.find(b"{")
    where = f"before row {number}, at byte {base + len(rest)}"
    if start >= 0:
        where = f"inside row {number}, which begins at byte {base + start}"
    raise UserError(f"{name} ends {where}: the ] of the array is missing, copy the file again")


def _objects(text: bytes) -> tuple[np.ndarray, np.ndarray, int | None]:
    """(first bytes, bytes after the last) of complete objects in text that begins between two of them, and where the
    array ends, None if not in this text.
    """
    codes = np.frombuffer(text, np.uint8)
    folded = codes | 0x20  # [ becomes {, ] becomes }, and nothing else becomes either
    marks = np.flatnonzero((codes == QUOTE) | (folded == CURLY) | (folded == ord("}")))
    found = codes[marks]
    quotes = found == QUOTE
    quotes[_escaped(codes, marks, quotes)] = False
    inside = np.bitwise_xor.accumulate(quotes.view(np.uint8))  # 1 after an odd number of quotes: in a string
    step = STEP[found] * (1 - inside).view(np.int8)
    depth = np.cumsum(step, dtype=np.int32)
    beyond = np.flatnonzero(depth < 0)[:1]
    if len(beyond):
        marks, step, depth = marks[: beyond[0] + 1], step[: beyond[0]], depth[: beyond[0]]
    starts, ends = marks[: len(step)][(step > 0) & (depth == 1)], marks[: len(step)][(step < 0) & (depth == 0)] + 1
    return starts[: len(ends)], ends, int(marks[-1]) if len(beyond) else None


def _escaped(codes: np.ndarray, marks: np.ndarray, quotes: np.ndarray) -> np.ndarray:
    """Which of the marks are quotes with an odd number of backslashes before."""
    behind = np.flatnonzero(quotes & (codes[marks - 1] == BACKSLASH) & (marks > 0))
    odd, live, distance = np.ones(len(behind), bool), np.arange(len(behind)), 1
    while len(live):
        distance += 1
        place = marks[behind[live]] - distance
        live = live[(place >= 0) & (codes[place] == BACKSLASH)]
        odd[live] ^= True
    return behind[odd]


def _opening(file: BinaryIO, name: str) -> tuple[bytes, int]:
    """What follows the [ in the first block, and the byte at which it does."""
    base = len(BOM) if file.read(len(BOM)) == BOM else 0
    file.seek(base)
    while (block := file.read(BLOCK)) and not (text := block.lstrip(SPACE)):
        base += len(block)
    if not block or not text.startswith(b"["):
        found = f"begins with {_shown(text)}" if block else "is empty"
        raise UserError(f"{name} {found}, should hold a JSON array of objects: [{{...}}, ...]")
    return text[1:], base + len(block) - len(text) + 1


def _closing(file: BinaryIO, rest: bytes, last: int, base: int, name: str) -> None:
    if rest[last : last + 1] != b"]":
        raise UserError(f"{name}, byte {base + last}: a }} that closes nothing, a row before it is damaged")
    rest, base = rest[last + 1 :], base + last + 1
    while rest:
        if text := rest.lstrip(SPACE):
            raise UserError(f"{name}, byte {base + len(rest) - len(text)}: {_shown(text)} after the end of the array")
        base += len(rest)
        rest = file.read(BLOCK)


def _may_go_on(tail: bytes, number: int) -> bool:
    """Can this, what follows the last complete row, be the beginning of the next?"""
    if number:
        tail = tail[1:].lstrip(SPACE) if tail.startswith(b",") else b"?"
    return tail[:1] in (b"", b"{")


def _misplaced(text: bytes, place: int, base: int, number: int, name: str) -> UserError:
    rest = text[place:].lstrip(SPACE)
    comma = rest.startswith(b",") and rest[1:].lstrip(SPACE)[:1]
    if comma == b"]":
        what = "a comma before the ] of the array, remove it"
    elif number and not comma:
        what = f"{_shown(rest)} where a comma or ] should follow"
    else:
        what = f"{_shown(rest[1:].lstrip(SPACE) if comma else rest)} where an object {{...}} should begin"
    after = f"after row {number - 1}" if number else "before row 0"
    return UserError(f"{name}, byte {base + len(text) - len(rest)}, {after}: {what}")


def _check_length(rest: bytes, name: str, number: int, base: int) -> None:
    if len(rest) > MAX_ROW:
        raise UserError(
            f"{name}: row {number}, which begins at byte {base}, does not end within {MAX_ROW >> 20} MB: "
            "a quote or a bracket is missing, or line breaks are"
        )


def _shown(text: bytes) -> str:
    return repr(text[:20].decode("utf-8", "replace"))
