"""Scores of easy-vqa: exact match, overall and by kind of question."""

import math
from collections.abc import Iterable, Mapping

from trol_jax.data.easy_vqa import KINDS


def is_right(prediction: str, answer: str) -> bool:
    """Exact match; case and surrounding space do not count."""
    return prediction.strip().lower() == answer.strip().lower()


def score(rows: Iterable[Mapping]) -> dict:
    """rows: with "prediction", "answer" and "kind".

    Returns {"n", "right", "accuracy", "standard_error"} over all rows, with the same by kind under "by_kind".
    Accuracies are shares of 1; a kind without rows is left out.
    """
    rows = [(row["kind"], is_right(row["prediction"], row["answer"])) for row in rows]
    kinds = dict.fromkeys([*KINDS, *(kind for kind, _ in rows)])  # those of easy-vqa first
    by_kind = {kind: [right for k, right in rows if k == kind] for kind in kinds}
    return _summary([right for _, right in rows]) | {
        "by_kind": {kind: _summary(marks) for kind, marks in by_kind.items() if marks}
    }


def _summary(marks: list[bool]) -> dict:
    n, right = len(marks), sum(marks)
    accuracy = right / n if n else math.nan
    error = math.sqrt(accuracy * (1 - accuracy) / n) if n else math.nan
    return {"n": n, "right": right, "accuracy": accuracy, "standard_error": error}
