"""What the VQA benchmarks share."""

from trol_jax.evals.evalai import leave_one_out, normalize
from trol_jax.evals.items import Item, Scoring
from trol_jax.evals.scoring import accuracy


def mark(item: Item, answer: str | None) -> float | None:
    return None if not item.gold else leave_one_out(answer or "", item.gold)


VQA = Scoring(
    "leave-one-out VQA accuracy, EvalAI normalisation",
    lambda item, answer: normalize(answer) or None,
    mark,
    accuracy("answer_type"),
)
