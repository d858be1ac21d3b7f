"""What the multiple-choice benchmarks share."""

from collections.abc import Sequence

from trol_jax.evals.items import Scoring
from trol_jax.evals.parsing import LETTERS, choice, lettered
from trol_jax.evals.scoring import accuracy, equal


def lines(choices: Sequence[str], between: str = "\n") -> str:
    """ "A. first" and so on."""
    return between.join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))


def named(item, answer: str) -> str | None:
    """The letter, of an item with its "choices" among the fields."""
    return choice(answer, lettered(item.fields["choices"]))


def standard(*splits: str) -> Scoring:
    return Scoring("letter or text of one choice; accuracy", named, equal, accuracy(*splits))
