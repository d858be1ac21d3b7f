"""MMMU's rules for what an answer says and whether it is right. Source: the evaluation of the benchmark's authors."""

import contextlib
import math
import re
from collections.abc import Mapping, Sequence

from trol_jax.evals.parsing import last_letter, numbers_in

KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")  # before what is answered
LONG = 5  # words, from which on the texts of the options are looked for


def choice(answer: str, options: Mapping[str, str]) -> str | None:
    """The last letter named; where there is none, of a long answer the option whose text comes last."""
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    if letter := last_letter(f" {answer} ", list(options)):
        return letter
    places = {letter: answer.lower().rfind(text.lower()) for letter, text in options.items()}
    if len(answer.split()) <= LONG or max(places.values(), default=-1) < 0:
        return None
    return max(places, key=places.get)


def open_answers(answer: str) -> list[str | float]:
    """Everything that the answer may mean: the ends of its key phrases, and the numbers in them."""
    phrases = _key_phrases(answer)
    found = phrases + [digits for phrase in phrases for digits in numbers_in(phrase)]
    return list(dict.fromkeys(value for text in found for value in normalize(text)))


def is_right(meant: Sequence[str | float], golds: str | Sequence[str]) -> bool:
    """A number must equal a gold one; a text must have a gold one in it."""
    right = [value for gold in ([golds] if isinstance(golds, str) else golds) for value in normalize(gold)]
    texts = [value for value in right if isinstance(value, str)]
    return any(any(t in value for t in texts) if isinstance(value, str) else value in right for value in meant)


def normalize(text: str) -> list[str | float]:
    """A number rounded to two digits, or lower case; a lone character with a space before and after, so that it does
    not match within words.
    """
    text = text.strip().lower()
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(text.replace(",", ""))):
            return [round(value, 2)]
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _key_phrases(answer: str) -> list[str]:
    answer = answer.strip().strip(".").lower()
    parts, found = answer.split("\n"), []  # the authors also split at ". A", which lower case never has
    for place, part in enumerate(parts):
        keys = (*KEYS, "=") if place == len(parts) - 1 else KEYS
        ends = [part.rsplit(key, 1)[-1].strip() for key in keys if key in part]
        # An empty end gives way to any other, as it does with the authors.
        shortest = ""
        for end in ends:
            shortest = end if not shortest or len(end) < len(shortest) else shortest
        if shortest and not re.fullmatch(r"[:,.!?;']", shortest):
            found.append(shortest)
    return found or [answer]
