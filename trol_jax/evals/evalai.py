"""Answers to VQA questions, made comparable as the servers of VQAv2, TextVQA and VizWiz do, and the accuracy there.

Source: the answer processor of mmf, quirks included, which the original takes from there.
"""

import functools
import re
from collections.abc import Sequence

ARTICLES = ("a", "an", "the")
COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(COUNTED)}
MARKS = ';/[]"{}()=+\\_-><@`,?!'
DIGITS_WITH_COMMA = re.compile(r"(?<=\d),+(?=\d)")
PERIOD = re.compile(r"\.(?!\d)")
PERIODS = 32  # at most so many are removed: upstream passes a flag, whose number this is, as the count

# Each is also known with one of its apostrophes missing.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905 - a list of literals is three times as long
WITH_APOSTROPHES = {
    whole[:place] + whole[place + 1 :]: whole
    for whole in CONTRACTIONS
    for place, letter in enumerate(whole)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the wrong way round upstream too


@functools.lru_cache(1 << 16)
def normalize(answer: str) -> str:
    """Lower case, no punctuation, articles or written numbers; contractions with their apostrophes."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _without_marks(text.replace("\n", " ").replace("\t", " ").strip())
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(WITH_APOSTROPHES.get(word, word) for word in words if word not in ARTICLES)


def _without_marks(text: str) -> str:
    everywhere, plain = DIGITS_WITH_COMMA.search(text) is not None, text
    for mark in MARKS:
        if mark in text:
            beside_space = f"{mark} " in text or f" {mark}" in text
            plain = plain.replace(mark, "" if everywhere or beside_space else " ")
    return PERIOD.sub("", plain, count=PERIODS)


def leave_one_out(answer: str, golds: Sequence[str]) -> float:
    """Mean over the people asked of min(1, how many of the others said so / 3); both sides normalised. 0 to 1."""
    same = sum(normalize(gold) == normalize(answer) for gold in golds)
    hits = same * min(1, (same - 1) / 3) + (len(golds) - same) * min(1, same / 3)
    return hits / len(golds)
