"""Metrics of a run: a progress bar, JSON lines and TensorBoard."""

import json
import math
import os
import pathlib

from tensorboardX import SummaryWriter
from tqdm import tqdm


class Metrics:
    """Writes `metrics.jsonl` (one object a line) and TensorBoard events under `tensorboard/` of a run directory.

    start_step: steps done when the run (re)starts. Lines of later steps are what a killed run wrote after its last
    checkpoint; they are dropped, so that every step stands once.
    """

    def __init__(self, workdir: pathlib.Path, *, start_step: int, total_steps: int):
        self.path = workdir / "metrics.jsonl"
        self.last_step = start_step  # of the last line
        self._drop_lines_after(start_step)
        self.lines = open(self.path, "a", buffering=1)  # noqa: SIM115 (open for the whole run)
        self.board = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1, max_queue=1000, flush_secs=30
        )
        self.bar = tqdm(initial=start_step, total=total_steps, unit="step", mininterval=1.0, dynamic_ncols=True)
        self.bar.set_description("train")

    def write(self, step: int, values: dict[str, float]) -> None:
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        self.lines.write(json.dumps({"step": step} | rounded) + "\n")
        self.last_step = step
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        shown = {"loss": f"{values['loss']:.4f}", "examples/s": f"{values['examples_per_second']:.0f}"}
        self.bar.set_postfix(shown, refresh=False)

    def advance(self) -> None:
        self.bar.update()

    def close(self) -> None:
        self.bar.close()
        self.board.close()
        self.lines.close()

    def _drop_lines_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue  # the line that was being written when the run was killed
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, self.path)


def is_finite(values: dict[str, float]) -> bool:
    return all(math.isfinite(value) for value in values.values())
