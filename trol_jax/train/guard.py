"""What stands between a bad step and the rest of a run."""

import math
from collections.abc import Callable

import jax

from trol_jax.checkpoint import Checkpoints
from trol_jax.errors import Diverged
from trol_jax.train.metrics import flat, is_finite


class Guard:
    """Looks at every step's metrics: steps that were left out are counted, of all others they must be finite.

    limit: steps in a row that may be skipped. tell: prints a line.
    """

    def __init__(self, limit: int, checkpoints: Checkpoints, tell: Callable[[str], None]):
        self.limit, self.checkpoints, self.tell = limit, checkpoints, tell
        self.row = self.total = 0  # steps left out: one after the other until now; since this start
        self._pending, self._values = None, {}

    def next(self, step: int, values: dict[str, jax.Array]) -> None:
        """Takes a step's metrics and looks at those of the step before, so that the device never waits for the host."""
        self.now()
        self._pending = step, values

    def now(self) -> dict:
        """The last metrics that were taken, on the host, each a number or a list; of a step that is left out those that
        are finite. Diverged if the run has come to nothing.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._values = self._look(*pending)
        return self._values

    def _look(self, step: int, values: dict[str, jax.Array]) -> dict:
        values = {name: value.tolist() for name, value in jax.device_get(values).items()}
        what = ", ".join(f"{name} {values[name]}" for name in ("loss", "grad_norm", "lr"))
        if not values.pop("skipped", 0.0):
            self.row = 0
            if bad := [name for name, value in flat(values).items() if not math.isfinite(value)]:
                raise Diverged(f"not finite at step {step}: {', '.join(bad)} ({what}); {self._advice()}")
            return values | self._count()
        self.row, self.total = self.row + 1, self.total + 1
        if self.row > self.limit:
            raise Diverged(
                f"bad steps in a row: {self.row}, and config.optimizer.skips is {self.limit}; the last is step {step} "
                f"({what}); {self._advice()}"
            )
        self.tell(f"step {step} is left out: {what}")
        return {name: value for name, value in values.items() if is_finite({name: value})} | self._count()

    def _count(self) -> dict[str, int]:
        return {"skipped": self.total} if self.limit else {}

    def _advice(self) -> str:
        self.checkpoints.wait()
        last = self.checkpoints.latest_step()
        good = f"the last good checkpoint is {self.checkpoints.directory / str(last)}"
        return (
            f"{'none was saved yet' if last is None else good}; lower optimizer.lr or optimizer.clip, then start again"
        )
