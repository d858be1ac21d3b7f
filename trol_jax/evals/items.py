"""The words that readers, parsers and scorers share."""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trol_jax.evals.files import BadRow, Root


@dataclass(frozen=True, slots=True)
class Item:
    """A question of a benchmark.

    question: without what `instructions.instruct` adds. images: each a path below the root, or the bytes of a file.
    gold: what is right, None where that is not published. fields: what scores are split by, and what scorers need.
    """

    id: str | int
    question: str
    images: tuple[str | bytes, ...] = ()
    gold: Any = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    index: int = -1  # place in the reader's order; bad rows count
    row: str = ""  # its file and its place there, for messages


@dataclass(frozen=True, slots=True)
class Sample:
    """An answered item. parsed: None where the rule found nothing. score: None where there is no gold. lacking: of
    `Scoring.groups`, the names of those in which not all are answered.
    """

    item: Item
    answer: str
    parsed: Any
    score: float | None
    lacking: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Summary:
    """value and its standard error: of the whole benchmark, None where nothing could be scored.

    n: over how many the mean is; by default all that have a score.
    """

    value: float | None = None
    error: float | None = None
    splits: Mapping[str, Any] = field(default_factory=dict)
    n: int | None = None


class Unreadable(Exception):
    """A judge's reply that is not in the form it was asked for."""


@dataclass(frozen=True)
class Judged:
    """How a judge scores a benchmark. talk: of an item and its answer, yields prompts, is sent the replies ("" for
    none) and returns (parsed, score), or raises Unreadable.
    """

    rule: str
    talk: Callable[[Item, str], Generator[str, str, tuple[Any, float | None]]]
    summarise: Callable[[Sequence[Sample]], Summary]


@dataclass(frozen=True)
class Scoring:
    """One way to score a benchmark; `rule` names it in results."""

    rule: str
    parse: Callable[[Item, str], Any]
    mark: Callable[[Item, Any], float | None]
    summarise: Callable[[Sequence[Sample]], Summary]
    select: Callable[[Sequence[Item]], Sequence[Item]] = lambda items: items  # those that count
    judged: Judged | None = None  # in place of these rules, where there is a judge
    # What questions have in common that are scored together: of an item's fields, or of a row that cannot be used.
    groups: Mapping[str, Callable[[Mapping], Any]] = field(default_factory=dict)
    # What the whole benchmark has: {field of items: its values}. One that no question has changes what is measured.
    parts: Mapping[str, Collection[str]] = field(default_factory=dict)

    def absent(self, items: Iterable[Item]) -> list[str]:
        """Values of `parts` that none of all the items has."""
        found = {(name, item.fields[name]) for item in items for name in self.parts}
        return [value for name, values in self.parts.items() for value in values if (name, value) not in found]


@dataclass(frozen=True)
class Benchmark:
    """read: yields every row in the order of the files, as an Item or as what is wrong with it."""

    name: str
    read: Callable[["Root"], Iterator["Item | BadRow"]]
    scorings: Mapping[str, Scoring]  # "trol": what the original computes; "standard": the benchmark's own definition
    unit: str = "percent"
    instruction: str = ""  # the entry of `instructions.INSTRUCTIONS`; by default that of the name
    published: bool = True  # one of those that "all" means

    def asks_as(self) -> str:
        return self.instruction or self.name
