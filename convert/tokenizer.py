"""Tokenisers of the released folders -> `Tokenizer`, with the same ids. Nothing in a folder is executed.

phi3: a tokenizer.json, read as it is. internlm2: a sentencepiece model, whose BPE is written as one of `tokenizers`.
Source of the second: `bpe_model.cc` and `normalizer.cc` of sentencepiece; the slow tokenisers of transformers 4.41,
which cut a text at their added tokens before sentencepiece sees it; tokenization_internlm2.py of the original code.
"""

import collections
import itertools
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers

from convert.files import read_json, some
from trol_jax.data.prompts import FORMATS
from trol_jax.data.tokenizer import FILE, Tokenizer
from trol_jax.errors import UserError

MODEL, CONFIG, ADDED = "tokenizer.model", "tokenizer_config.json", "added_tokens.json"
SLOW = ("InternLM2Tokenizer", "InternLMXComposer2Tokenizer")  # these read tokenizer.model
FAST = ("LlamaTokenizer", "LlamaTokenizerFast")  # these read tokenizer.json

SPACE = "\u2581"  # sentencepiece writes a space so
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # sentencepiece_model.proto; 5, UNUSED, is not supported


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokeniser of a released folder, or of one that `Tokenizer.dump` filled.

    Ids are those of the original for every text. Decoded text is too, but for answers that are cut off inside a letter
    of several byte tokens: the byte tokens before the cut may be lost with it in the internlm2 family.
    In sentencepiece models that put a space before each text, which the released ones do not, a chat mark alone is its
    id alone, and decoding keeps that space.

    UserError for a file that is missing, damaged or not understood.
    """
    config = read_json(directory / CONFIG) if (directory / CONFIG).exists() else {}
    kind = config.get("tokenizer_class")
    if kind not in (None, *SLOW, *FAST):
        raise UserError(f"{directory / CONFIG}: tokenizer_class is {kind!r}, known are {', '.join(SLOW + FAST)}")
    slow = kind in SLOW or (kind is None and (directory / MODEL).exists() and not (directory / FILE).exists())
    path = directory / (MODEL if slow else FILE)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; download the whole repository") from error
    try:
        backend = _from_sentencepiece(content) if slow else _from_json(content)
        _add(backend, _declared(directory, config, slow))
        if slow:
            backend.add_special_tokens([FORMATS["internlm2"].image])  # the bases of TroL lack it; TroL adds it last
        return Tokenizer(backend)
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exception for a file that it cannot parse
        raise UserError(f"{path} is not a tokeniser of this project: {error}; download it again") from error


def _from_json(content: bytes) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_str(content.decode())
    backend.no_truncation()
    backend.no_padding()
    return backend


def _declared(directory: Path, config: Mapping, slow: bool) -> dict[int, AddedToken]:
    """Added tokens by id, from both files that may name them."""
    declared, ids = {}, {}
    try:
        for key, entry in config.get("added_tokens_decoder", {}).items():
            # The slow tokenisers look for their added tokens in the text as it was written.
            declared[int(key)] = AddedToken(**(entry | {"normalized": False} if slow else entry))
            ids[entry["content"]] = int(key)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{directory / CONFIG}: added_tokens_decoder cannot be read: {error!r}") from error
    extra = read_json(directory / ADDED) if (directory / ADDED).exists() else {}
    for content, number in extra.items():
        place = f"{directory / ADDED}: {content!r} has id {number!r}"
        if not isinstance(number, int) or isinstance(number, bool):
            raise UserError(f"{place}, which is no number; download it again")
        if ids.get(content, number) != number:
            raise UserError(f"{place}, in {CONFIG} it has {ids[content]}; download both again")
        if number in declared and declared[number].content != content:
            raise UserError(f"{place}, which {CONFIG} gives to {declared[number].content!r}; download both again")
        declared.setdefault(number, AddedToken(content, special=True, normalized=False))
    return declared


def _add(backend: tokenizers.Tokenizer, declared: Mapping[int, AddedToken]) -> None:
    """Each token under its own id; ids behind the vocabulary must follow it without a hole."""
    for number, token in sorted(declared.items()):
        total = backend.get_vocab_size(with_added_tokens=True)
        have, other = backend.token_to_id(token.content), backend.id_to_token(number)
        if have not in (None, number) or other not in (None, token.content):
            raise ValueError(f"added token {token.content!r} has id {number}, but {other or token.content!r} "
                             f"has id {number if other else have} in the vocabulary")  # fmt: skip
        if have is None and number != total:
            raise ValueError(f"added token {token.content!r} has id {number}, but the next free id is {total}")
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])


# ---------------------------------------------------------------------------------------------- sentencepiece


def _from_sentencepiece(content: bytes) -> tokenizers.Tokenizer:
    pieces, dummy_prefix = _read_model(content)
    vocab = {piece.text: i for i, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise ValueError("some of its pieces are equal")
    if lacking := [text for text in _BYTES if text not in vocab]:
        raise ValueError(f"it has no pieces for the bytes {some(lacking)}")
    marks = FORMATS["internlm2"].specials
    frozen = [p.text for p in pieces if p.kind == USER_DEFINED]
    model = models.BPE(vocab, _merges(pieces), unk_token=pieces[0].text, byte_fallback=True, fuse_unk=False)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = _normalizer(frozen, dummy_prefix)
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    # Looked for after the normaliser, so that one of them does not start a new text, as an added token does.
    backend.add_tokens([AddedToken(text, normalized=True, special=text in marks) for text in frozen])
    controls = [p.text for p in pieces if p.kind in (UNKNOWN, CONTROL) and p.text in marks]
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in controls])
    return backend


def _normalizer(frozen: list[str], dummy_prefix: bool) -> normalizers.Normalizer:
    steps = [normalizers.Replace(" ", SPACE)]
    if dummy_prefix:
        # Not before a frozen piece that is all of the text: `tokenizers` normalises the pieces it looks for as well.
        alone = "|".join(map(re.escape, frozen)) or r"\z"
        steps.insert(0, normalizers.Replace(Regex(rf"\A(?!(?:{alone})\z)(?=[\s\S])"), SPACE))
    return normalizers.Sequence(steps)


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, in the order in which sentencepiece prefers them.

    It takes the highest score first and of equal ones the leftmost; here equal ones are ranked as well. Among the ways
    to make one piece the one with the longer left part may be the further left: 'er' 'e' 're' becomes 'ere' 're'.
    """
    score = {piece.text: piece.score for piece in pieces if piece.kind == NORMAL}
    letters = {piece.text for piece in pieces if piece.kind in (NORMAL, USER_DEFINED)}
    if lacking := [text for text in score if not letters.issuperset(text)]:
        raise ValueError(f"its pieces {some(lacking)} have letters that are no pieces")
    ways = [
        (-score[text], -i, text[:i], text[i:])
        for text in score
        for i in range(1, len(text))
        if text[:i] in score and text[i:] in score
    ]
    merges = []
    for _, group in itertools.groupby(sorted(ways), key=lambda way: way[0]):
        tied = [way[2:] for way in group]
        with_left = collections.defaultdict(set)
        for left, right in tied:
            with_left[left].add(left + right)
        for left, right in tied:
            if others := with_left.get(right, set()) - {left + right}:
                raise ValueError(f"its pieces {left + right!r} and {min(others)!r} have one score and may overlap")
        merges += tied
    return merges


_BYTES = [f"<0x{value:02X}>" for value in range(256)]
_REQUIRED = {  # message -> number, {field -> (number, default, the one value that is supported)}
    "trainer_spec": (
        2, {"model_type": (3, 1, 2), "treat_whitespace_as_suffix": (24, 0, 0), "byte_fallback": (35, 0, 1)}
    ),
    "normalizer_spec": (3, {
        "precompiled_charsmap": (2, b"", b""), "remove_extra_whitespaces": (4, 1, 0), "escape_whitespaces": (5, 1, 1),
    }),
    "denormalizer_spec": (5, {"precompiled_charsmap": (2, b"", b"")}),
}  # fmt: skip


def _read_model(content: bytes) -> tuple[list[Piece], bool]:
    """Pieces, and whether a space is put before each text; ValueError for a model of another kind."""
    try:
        top = list(_fields(content))
        pieces = [_piece(dict(_fields(value))) for number, value in top if number == 1]
        specs = {name: dict(_fields(dict(top).get(number, b""))) for name, (number, _) in _REQUIRED.items()}
    except (LookupError, TypeError, AttributeError, struct.error, UnicodeDecodeError) as error:
        raise ValueError("it is damaged") from error
    if not pieces:
        raise ValueError("it has no pieces")
    for name, (_, fields) in _REQUIRED.items():
        for field, (number, default, supported) in fields.items():
            if (value := specs[name].get(number, default)) != supported:
                shown = value if isinstance(value, int) else f"a table of {len(value)} bytes"
                raise ValueError(f"its {name}.{field} is {shown}, only {supported or 0} is supported")
    if odd := [p.text for p in pieces if p.kind not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE) or not p.text]:
        raise ValueError(f"its pieces {some(map(repr, odd))} are of a kind that is not supported")
    if pieces[0].kind != UNKNOWN:
        raise ValueError(f"its first piece is {pieces[0].text!r}, must be the unknown one")
    return pieces, bool(specs["normalizer_spec"].get(3, 1))


def _piece(fields: Mapping[int, int | bytes]) -> Piece:
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return Piece(fields[1].decode(), score, fields.get(3, NORMAL))


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a protocol buffer; IndexError where it is cut off."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        if key & 7 == 0:
            value, at = _varint(message, at)
        else:
            size, at = _varint(message, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            value, at = message[at : at + size], at + size
        if at > end:
            raise IndexError(at)
        yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise IndexError(at)
