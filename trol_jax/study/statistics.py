"""What the numbers of several seeds say, pure: means, their errors, paired tests."""

import dataclasses
import math
from collections.abc import Sequence

import jax


@dataclasses.dataclass(frozen=True)
class Mean:
    """error: the standard error; NaN for one value."""

    mean: float
    error: float
    count: int


@dataclasses.dataclass(frozen=True)
class Difference(Mean):
    """p: of the paired t-test, two-sided; NaN for one pair. No correction for many comparisons."""

    p: float


def mean(values: Sequence[float]) -> Mean:
    n = len(values)
    middle = math.fsum(values) / n
    error = math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (n - 1) / n) if n > 1 else math.nan
    return Mean(middle, error, n)


def difference(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Of values from others, seed by seed."""
    found = mean([a - b for a, b in zip(values, others, strict=True)])
    return Difference(found.mean, found.error, found.count, _p(found))


def _p(found: Mean) -> float:
    if math.isnan(found.error):
        return math.nan
    if found.error == 0:
        return 1.0 if found.mean == 0 else 0.0
    freedom = found.count - 1
    return float(jax.scipy.special.betainc(freedom / 2, 0.5, freedom / (freedom + (found.mean / found.error) ** 2)))
