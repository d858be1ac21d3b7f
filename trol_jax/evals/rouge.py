"""ROUGE F1 of two texts, as the Python package `rouge` computes it: over sets of words, sentences end with a period.

Source: rouge 1.0.1, which VisualWebBench scores with.
"""

from collections.abc import Sequence

TINY = 1e-8


def rouge_n(answer: str, gold: str, n: int) -> float:
    """0 to 1; 0 also where a text has no sentence, which the package refuses."""
    mine, theirs = (_ngrams(_words(text), n) for text in (answer, gold))
    return _f1(len(mine & theirs), len(mine), len(theirs))


def rouge_l(answer: str, gold: str) -> float:
    """By the longest common subsequences of the sentences."""
    mine, theirs = _sentences(answer), _sentences(gold)
    found = {word for reference in theirs for sentence in mine for word in _common(reference, sentence)}
    return _f1(len(found), len(set(_words(answer))), len(set(_words(gold))))


def _sentences(text: str) -> list[list[str]]:
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _words(text: str) -> list[str]:
    return [word for sentence in _sentences(text) for word in sentence]


def _ngrams(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + n]) for start in range(len(words) - n + 1)}


def _common(a: Sequence[str], b: Sequence[str]) -> set[str]:
    """Words of a longest common subsequence; of several, the one found from the end with `b` shortened first."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, word in enumerate(a):
        for j, other in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if word == other else max(table[i][j + 1], table[i + 1][j])
    found, i, j = set(), len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            found.add(a[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found


def _f1(common: int, mine: int, theirs: int) -> float:
    precision, recall = common / mine if mine else 0.0, common / theirs if theirs else 0.0
    return 2 * precision * recall / (precision + recall + TINY)
