"""What an answer says: a letter, yes or no, a number. Pure functions on strings; None where the rule finds nothing.

Names with `trol` are the original's rules (its crashes apart), faults included: the paper's scores were made with them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MARKS = re.compile(r"""[,.!?;:'"]""")
STATED = re.compile(r"""(?i:answer is:?\s+(?:option\s+)?)["'(*]*([A-Z])\b(?!['-]|\)?\s*(?:,|/|or|and)\s*\(?[A-Z]\b)""")
MAX_TAIL = 4  # words at the end of an answer among which a letter is taken for the choice


def lettered(choices: Sequence[str]) -> dict[str, str]:
    return dict(zip(LETTERS, choices, strict=False))


# ---------------------------------------------------------------------- letters


def trol_letter(answer: str) -> str | None:
    """ScienceQA and Q-Bench: A to E alone; or first, with a period anywhere; or in one "The answer is X" and a mark."""
    if answer and answer[0] in LETTERS[:5] and (len(answer) == 1 or "." in answer):
        return answer[0]
    found = re.findall(r"The answer is ([A-Z]).", answer)
    return found[0] if len(found) == 1 else None


def first_capital(answer: str) -> str | None:
    """AI2D in the original: of "The answer is B" that is T."""
    return next(iter(re.findall("[A-Z]", answer)), None)


def first_character(answer: str) -> str | None:
    """SEED and MMBench in the original."""
    return answer[:1] or None


def mmstar_letter(answer: str) -> str | None:
    """MMStar's own rule: first, or after "(", "option " or "the answer is "; case does not count. A capital."""
    text = answer.lower().strip().replace("\n", " ")
    start = next((len(words) for words in ("the answer is ", "option ", "(") if text.startswith(words)), 0)
    return text[start : start + 1].upper() or None


def choice(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer names.

    In turn: it begins with "B.", "B)", "B:" or "(B)"; one letter alone is a word, first among the last MAX_TAIL; one
    letter alone follows "answer is", no article and not denied; the text of one option alone is in it, and it is at
    most twice as long as all of them. All but the first and third are VLMEvalKit's.
    """
    start = re.match(r"\s*\(?([A-Z])[.):]", answer)
    if start and start[1] in options:
        return start[1]
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - MAX_TAIL:
        return named[0]
    stated = {*_stated(answer)}
    if len(stated) == 1 and stated <= {*options}:
        return stated.pop()
    text = answer.lower()
    held = [letter for letter, option in options.items() if option and option.lower() in text]
    short = len(answer) <= 2 * sum(map(len, options.values()))
    return held[0] if len(held) == 1 and short else None


def _stated(answer: str) -> Iterator[str]:
    for found in STATED.finditer(answer):
        clause = re.split(r"[.;!?]", answer[: found.start()])[-1]
        is_article = found[1] == "A" and re.match(r"\s+(?!because|since|as\b|which)[a-z]", answer[found.end() :])
        if not is_article and not re.search(r"(?i)\b(?:if|not|never|whether)\b|n't", clause):
            yield found[1]


def web_letter(answer: str, letters: str = LETTERS[:8]) -> str | None:
    """VisualWebBench's rule: the answer if it is one letter, "X." first, the last "(X)", else the last " X "."""
    if len(answer) == 1:
        return answer.upper() if answer.upper() in LETTERS else None
    if re.match(r"[A-Z]\.", answer):
        return answer[0]
    return last_letter(f" {re.sub(MARKS, '', answer)} ", letters)


def last_letter(text: str, letters: Sequence[str]) -> str | None:
    """In parentheses, or else between spaces."""
    for form in ("({})", " {} "):
        places = {letter: text.rfind(form.format(letter)) for letter in letters}
        if any(place >= 0 for place in places.values()):
            return max(places, key=places.get)
    return None


# ---------------------------------------------------------------------- yes and no


def pope_yes_no(answer: str, lower: bool) -> str | None:
    """POPE's rule: no if "No", "no" or "not" is a word of the first sentence.

    All else is yes to it; here only what has "yes" as a word: None, which scorers take for yes, can be counted.
    lower: after lower-casing, as the original does.
    """
    words = (answer.lower() if lower else answer).split(".")[0].replace(",", "").split(" ")
    if {"No", "not", "no"} & {*words}:
        return "no"
    return "yes" if "yes" in (word.lower() for word in words) else None


def mme_yes_no(answer: str) -> str | None:
    """MME's rule: yes, or else no, within the first four characters."""
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def yes_no_word(answer: str) -> str | None:
    """The one of the two that is among the words."""
    found = {"yes", "no"} & {*re.findall(r"[a-z]+", answer.lower())}
    return found.pop() if len(found) == 1 else None


# ---------------------------------------------------------------------- texts and numbers


def after_last(answer: str, *marks: str) -> str:
    """What follows the last of the marks (case does not count), all where there is none; no quotes or period around."""
    ends = [found.end() for found in re.finditer("|".join(map(re.escape, marks)), answer, re.IGNORECASE)]
    return answer[ends[-1] if ends else 0 :].strip().rstrip(".").strip('"').rstrip(".").strip()


def number(text: str, percents: float) -> float | None:
    """The text as a number. percents: what "12%" is divided by, 100 or 1."""
    try:
        return float(text.rstrip("%")) / percents if text.endswith("%") else float(text)
    except ValueError:
        return None


def numbers_in(text: str) -> list[str]:
    """All numbers in a text: with thousands separators, in scientific notation, plain (MMMU's three patterns, which
    here do not try the digits within a number again).
    """
    patterns = (
        r"-?\b\d{1,3}(?:,\d{3})+\b",
        r"-?(?<!\d)\d+(?:\.\d+)?[eE][+-]?\d+",
        r"-?(?:(?<!\d)\d+\.\d+|\.\d+|(?<!\d)\d+\b)(?![eE][+-]?\d+)(?![,\d])",
    )
    return [found for pattern in patterns for found in re.findall(pattern, text)]
