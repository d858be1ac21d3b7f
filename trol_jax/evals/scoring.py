"""Scores of answers: marks, means, and what the benchmarks make of them. Pure; values in percent."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from trol_jax.evals.items import Item, Judged, Sample, Scoring, Summary
from trol_jax.evals.parsing import number

# ---------------------------------------------------------------------- marks of one answer


def equal(item: Item, parsed: Any) -> float | None:
    """1 if what was parsed is the gold; nothing parsed is wrong."""
    return None if item.gold is None else float(parsed == item.gold)


def relaxed(text: str, gold: str, percents: float, relative_to_gold: bool) -> bool:
    """Numbers may differ by 5%, other texts by case only. percents: what "12%" is divided by.

    Source: ChartQA, end of section 5.1. The original measures the 5% on the answer, not on the gold.
    """
    mine, theirs = number(text, percents), number(gold, percents)
    base = theirs if relative_to_gold else mine
    if mine is None or theirs is None or not base:
        return text.lower() == gold.lower()
    return abs(mine - theirs) / abs(base) <= 0.05


# ---------------------------------------------------------------------- means


def mean(scores: Sequence[float]) -> tuple[float | None, float | None]:
    """100 x mean, and its standard error: sqrt(variance / n), the variance being that of the scores at hand."""
    if not scores:
        return None, None
    value = sum(scores) / len(scores)
    variance = sum((score - value) ** 2 for score in scores) / len(scores)
    return 100 * value, 100 * math.sqrt(variance / len(scores))


def part(scores: Sequence[float]) -> dict[str, float | int | None]:
    value, error = mean(scores)
    return {"value": value, "n": len(scores), "standard_error": error}


def marked(samples: Iterable[Sample]) -> list[float]:
    return [sample.score for sample in samples if sample.score is not None]


def grouped(samples: Iterable[Sample], key: str | Callable[[Sample], Hashable]) -> dict[Hashable, list[Sample]]:
    """By a function, or by a field of the items as text (None without the field); in order of appearance."""
    groups = defaultdict(list)
    for sample in samples:
        groups[_field(sample, key) if isinstance(key, str) else key(sample)].append(sample)
    return dict(groups)


def _field(sample: Sample, name: str) -> str | None:
    value = sample.item.fields.get(name)
    return value if value is None else str(value)


def by(samples: Sequence[Sample], *keys: str) -> dict[str, dict[str, dict]]:
    """{field: {its value: {"value", "n", "standard_error"}}}; items without the field are left out."""
    return {
        key: {name: part(marked(group)) for name, group in grouped(samples, key).items() if name is not None}
        for key in keys
    }


def over(groups: Iterable[Sequence[float]]) -> tuple[float | None, float | None]:
    """The mean of the groups' means, and its standard error."""
    found = [mean(scores) for scores in groups if scores]
    if not found:
        return None, None
    return sum(value for value, _ in found) / len(found), math.hypot(*(error for _, error in found)) / len(found)


def of_sums(pairs: Sequence[tuple[float, float]]) -> tuple[float | None, float | None]:
    """100 x the sum of the first by that of the second, and its standard error to first order."""
    whole = sum(second for _, second in pairs)
    if not whole:
        return None, None
    value = sum(first for first, _ in pairs) / whole
    return 100 * value, 100 * math.sqrt(sum((first - value * second) ** 2 for first, second in pairs)) / whole


# ---------------------------------------------------------------------- summaries


def accuracy(*keys: str) -> Callable[[Sequence[Sample]], Summary]:
    """The mean of all, with splits by those fields."""
    return lambda samples: Summary(*mean(marked(samples)), by(samples, *keys) if marked(samples) else {})


def first_of_each(key: Callable[[Item], Hashable]) -> Callable[[Sequence[Item]], list[Item]]:
    """The original asks everything, and then drops what has the key of an earlier item."""

    def select(items: Sequence[Item]) -> list[Item]:
        found = {}
        for item in items:
            found.setdefault(key(item), item)
        return list(found.values())

    return select


first_of_each_id = first_of_each(lambda item: item.id)


def all_right(samples: Iterable[Sample], key: Callable[[Sample], Hashable]) -> list[float]:
    """For each group, 1 if all of it is right; groups with an answer that has no score are left out."""
    groups = [[sample.score for sample in group] for group in grouped(samples, key).values()]
    return [float(all(scores)) for scores in groups if None not in scores]


def unscored(why: str, judged: Judged | None = None) -> Scoring:
    """Answers are kept; who scores them is said in the rule."""
    return Scoring(
        why, lambda item, answer: answer, lambda item, parsed: None, lambda samples: Summary(), judged=judged
    )


def confusion(pairs: Iterable[tuple[bool, bool]]) -> Mapping[str, int]:
    """Counts of (said yes, is yes)."""
    counts = {"tp": 0, "fp": 0, "tn": 0, "fn": 0}
    for said, true in pairs:
        counts[("t" if said == true else "f") + ("p" if said else "n")] += 1
    return counts


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
