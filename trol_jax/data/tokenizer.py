"""Text to token ids and back: a thin layer over `tokenizers`, and the training of a small tokeniser."""

import functools
import os
import re
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from trol_jax.data.prompts import FORMATS, ChatFormat
from trol_jax.errors import UserError

FILE = "tokenizer.json"
CACHED = 200  # letters of a text whose ids are kept, as of marks and of questions that many pictures share


class Tokenizer:
    """A tokeniser whose vocabulary holds the marks of one chat format, found by looking for them.

    vocab_size: ids that the output head can name. In the internlm2 family the image token comes right after them.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        format = next((f for f in FORMATS.values() if _has_marks(backend, f)), None)
        if format is None:
            raise ValueError(f"it has the chat marks of none of {', '.join(FORMATS)}")
        total = backend.get_vocab_size(with_added_tokens=True)
        self.image_id = backend.token_to_id(format.image)
        if format.image_beyond_vocabulary and self.image_id != total - 1:
            raise ValueError(f"{format.image} has id {self.image_id}, must be the last of {total}")
        self.format = format
        self.vocab_size = total - format.image_beyond_vocabulary
        self.end_id = backend.token_to_id(format.end)
        self.eos_id = self.pad_id = backend.token_to_id(format.eos)
        self._backend = backend
        self._plain = tokenizers.Tokenizer.from_str(backend.to_str())
        self._plain.encode_special_tokens = True
        self._marks = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
        self._encode_cached = functools.lru_cache(maxsize=16384)(self._encode)

    def __reduce__(self):  # worker processes get the tokeniser without its cache
        return _from_json, (self._backend.to_str(),)

    def encode(self, text: str, specials: bool = True, after: str = "") -> list[int]:
        """Ids of the text as they are where it comes right after `after`; nothing is added.

        What comes before matters in released tokenisers: some put a space before a text but not after a mark, some
        marks swallow white space. specials=False takes the text of a mark as plain text.
        """
        return list((self._encode_cached if len(text) <= CACHED else self._encode)(text, specials, after))

    def _encode(self, text: str, specials: bool, after: str) -> tuple[int, ...]:
        plain = not specials and any(mark in text for mark in self._marks)
        backend = self._plain if plain else self._backend
        before, whole = (backend.encode(t, add_special_tokens=False).ids for t in (after, after + text))
        if whole[: len(before)] == before:
            return tuple(whole[len(before) :])
        return tuple(backend.encode(text, add_special_tokens=False).ids)  # a token of the whole would span both

    def decode(self, ids: Iterable[int], specials: bool = False) -> str:
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=not specials)

    def dump(self) -> bytes:
        """The content of a tokenizer.json."""
        return self._backend.to_str(pretty=True).encode()

    @classmethod
    def parse(cls, content: bytes, path: str | os.PathLike) -> "Tokenizer":
        """From what `dump` gave; UserError, which names the path, unless it is a tokeniser of a known family."""
        try:
            return _from_json(content.decode())
        except Exception as error:  # the library raises bare Exception for a file that it cannot parse
            raise UserError(f"{path} is not a tokeniser of this project: {error}; restore it or train again") from error


def train_tokenizer(texts: Iterable[str], format: ChatFormat, vocab_size: int = 512) -> Tokenizer:
    """A byte-level BPE with at most `vocab_size` ids, the image token among them; the same for the same set of texts.

    Any text survives encode and decode. Words of the texts become one token each, with and without a space before
    them, as long as there is room; the most frequent come first.
    """
    least = 256 + len(format.specials) + 1
    if vocab_size < least:
        raise ValueError(f"a tokeniser of {vocab_size} ids is too small: the bytes and marks alone are {least}")
    unique = sorted({*texts, format.system, format.user, format.assistant})
    words = sorted({word for text in unique for word in re.findall(r"[^\W\d_]+", text)})
    backend = tokenizers.Tokenizer(models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=[_mark(text) for text in format.specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([*unique, *words, *(f" {word}" for word in words)], trainer)
    backend.add_special_tokens([format.image])
    return Tokenizer(backend)


def _mark(text: str) -> tokenizers.AddedToken:
    """A mark of the chat; Phi-3's `<|...|>` swallow the white space after them, as in the released tokeniser."""
    return tokenizers.AddedToken(text, special=True, normalized=False, rstrip=text.startswith("<|"))


def _has_marks(backend: tokenizers.Tokenizer, format: ChatFormat) -> bool:
    return all(backend.token_to_id(mark) is not None for mark in (*format.specials, format.image))


def _from_json(text: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(text))
