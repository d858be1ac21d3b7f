"""How an answer is chosen among all that the model might say."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from trol_jax.errors import UserError
from trol_jax.infer.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Decoding:
    """By default each token is the most likely one; `beams` search for the most likely answer; a temperature draws."""

    beams: int = 1  # the original's evaluation takes 5
    length_penalty: float = 1.0  # answers compare by log-probability / length ** length_penalty
    temperature: float = 0.0
    top_k: int = 0  # draw from that many tokens, 0 = from all
    top_p: float = 1.0  # draw from the fewest tokens that have this probability together
    seed: int = 0  # question number i of a list draws with seed + i

    def __post_init__(self):
        ranges = {
            "beams": (self.beams >= 1, "at least 1"),
            "length_penalty": (math.isfinite(self.length_penalty), "finite"),
            "temperature": (0 <= self.temperature <= 1e6, "between 0 and 1e6"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 <= self.top_p <= 1, "between 0 and 1"),
            "seed": (0 <= self.seed < 2**32, "between 0 and 2**32 - 1"),
        }
        for name, (fits, wanted) in ranges.items():
            if not fits:
                raise UserError(f"{name} is {getattr(self, name)}, must be {wanted}")
        if self.beams > 1 and self.temperature:
            raise UserError(f"beams is {self.beams} and temperature {self.temperature}: choose a search or drawing")

    def __str__(self) -> str:
        """What is not as by default; "greedy" when nothing is."""
        changed = [
            f"{f.name} {value}" for f in dataclasses.fields(self) if (value := getattr(self, f.name)) != f.default
        ]
        return ", ".join(changed) or "greedy"


GREEDY = Decoding()


def sampling(rows: Sequence[Decoding]) -> Sampling:
    """For a batch, an entry a row."""

    def column(name, dtype):
        return np.array([getattr(row, name) for row in rows], dtype)

    return Sampling(
        column("temperature", np.float32),
        column("top_k", np.int32),
        column("top_p", np.float32),
        column("seed", np.uint32),
    )
