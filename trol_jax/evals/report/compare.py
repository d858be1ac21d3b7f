"""Two runs on the same questions: which is better, and whether chance explains it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trol_jax.evals.report.runs import Run, Sample
from trol_jax.evals.report.tables import DASH, HOW, Line, Table

LEVEL = 0.05
RESAMPLES = 10_000
FEWEST = 10  # questions; of fewer a bootstrap says nothing
FIGURES = ("Difference", "95% interval", "p", "p, adjusted", "Better", "Test")
MCNEMAR, BOOTSTRAP = "McNemar, exact", "paired bootstrap"
NOTES = (
    "Scores are means over the questions that both runs have a score for, in percent; where a benchmark is no plain "
    "mean (MME, F1, circular accuracy), its value weighs them otherwise. The difference is what the run has more than "
    "the first one, with its 95% interval (bootstrap over questions).",
    f"Test: where all scores are 0 or 1, {MCNEMAR}, on the questions that only one of the two has right; else "
    f"{BOOTSTRAP}, {RESAMPLES:,} resamples. Two-sided; adjusted (Holm) over the benchmarks of a table. A run is called "
    f"better where that is below {LEVEL}. Questions count as independent, although some share a picture, and rows of "
    "MMBench a question, which makes p too small.",
)


@dataclass(frozen=True)
class Comparison:
    """first, second, difference, low, high: in percent. why: where nothing can be compared."""

    benchmark: str
    why: str = ""
    n: int = 0
    first: float = 0.0
    second: float = 0.0
    low: float = 0.0
    high: float = 0.0
    p: float = 1.0
    adjusted: float = 1.0
    test: str = ""

    @property
    def difference(self) -> float:
        return self.second - self.first

    @property
    def sign(self) -> int:
        """1 if the second is better, -1 if the first is, 0 if chance explains the difference."""
        return 0 if self.adjusted >= LEVEL else int(math.copysign(1, self.difference))


def compare(first: Run, second: Run) -> list[Comparison]:
    """Benchmarks that both have."""
    found = [compare_one(first, second, name) for name in first.results if name in second.results]
    adjusted = holm({each.benchmark: each.p for each in found if not each.why})
    return [replace(each, adjusted=adjusted.get(each.benchmark, 1.0)) for each in found]


def compare_one(first: Run, second: Run, name: str) -> Comparison:
    for what in ("scoring", "judge", "scorer"):
        mine, theirs = (getattr(run.results[name], what) for run in (first, second))
        if mine != theirs:
            return Comparison(name, f"different {what}: {mine} and {theirs}")
    scores = np.array(list(pairs(first.samples.get(name, {}), second.samples.get(name, {}))), float).reshape(-1, 2)
    if not len(scores):
        return Comparison(name, "no question has a score of both")
    binary = np.isin(scores, (0, 1)).all()
    if not binary and len(scores) < FEWEST:
        return Comparison(name, f"{len(scores)} questions are too few for a bootstrap")
    differences = scores[:, 1] - scores[:, 0]
    means = resampled(differences)
    p = mcnemar(int((differences < 0).sum()), int((differences > 0).sum())) if binary else bootstrap(means)
    low, high = 100 * np.quantile(means, (0.025, 0.975))
    test = MCNEMAR if binary else BOOTSTRAP
    return Comparison(name, "", len(scores), *(100 * scores.mean(0)), low, high, p, test=test)


def pairs(first: Mapping[int, Sample], second: Mapping[int, Sample]) -> Iterator[tuple[float, float]]:
    """Scores of the questions that are the same in both."""
    for index, one in first.items():
        two = second.get(index)
        same = two and (one.id, one.prompt, one.gold) == (two.id, two.prompt, two.gold)
        if same and one.score is not None and two.score is not None:
            yield one.score, two.score


# ---------------------------------------------------------------------- tests


def mcnemar(worse: int, better: int) -> float:
    """Two-sided p of the exact test: of `worse + better` fair coins, as uneven a split or more."""
    n, rare = worse + better, min(worse, better)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(rare + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def resampled(differences: np.ndarray) -> np.ndarray:
    """Means of RESAMPLES draws of as many differences, with repetition; always the same ones.

    Drawn as counts of the distinct differences, of which there are few.
    """
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(differences), counts / len(differences), RESAMPLES)
    return drawn @ values / len(differences)


def bootstrap(means: np.ndarray) -> float:
    """Two-sided p: twice the smaller share of means on one side of 0."""
    tail = min((means <= 0).sum(), (means >= 0).sum())
    return min(1.0, 2 * (tail + 1) / (len(means) + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted, so that the chance of any false finding stays below the level."""
    adjusted, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = highest
    return adjusted


# ---------------------------------------------------------------------- table


def table(first: Run, second: Run) -> Table:
    header = ("Benchmark", "n", first.name, second.name, *FIGURES, *HOW)
    lines = [line(each, first, second) for each in compare(first, second)]
    return Table(f"{second.name} against {first.name}", header, tuple(lines), NOTES)


def line(each: Comparison, first: Run, second: Run) -> Line:
    results = [run.results[each.benchmark] for run in (first, second)]
    known = [(result.scoring, result.judge, result.version) for result in results]
    how = [", ".join(dict.fromkeys(values)) for values in zip(*known, strict=True)]
    if each.why:
        return Line((each.benchmark, *[DASH] * 8, each.why, *how), ours=True)
    better = {1: second.name, -1: first.name, 0: "no difference shown"}[each.sign]
    interval = f"{each.low:+.1f} to {each.high:+.1f}"
    figures = (f"{each.n:,}", f"{each.first:.1f}", f"{each.second:.1f}", f"{each.difference:+.1f}", interval)
    return Line((each.benchmark, *figures, chance(each.p), chance(each.adjusted), better, each.test, *how), ours=True)


def chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def all_tables(runs: Sequence[Run]) -> list[Table]:
    """Every run against the first."""
    return [table(runs[0], other) for other in runs[1:] if set(other.results) & set(runs[0].results)]
