"""Who says whether a free answer is right, where rules cannot."""

from typing import Protocol


class Judge(Protocol):
    """name: stands in every result, with the version, as scores of different judges cannot be compared."""

    name: str

    def reply(self, prompt: str) -> str | None:
        """What the judge says; None if it says nothing, which is counted and never averaged."""
        ...


class NoJudge:
    """Rules only."""

    name = "none"

    def reply(self, prompt: str) -> None:
        return None
