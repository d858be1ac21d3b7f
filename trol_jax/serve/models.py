"""The checkpoints that a process serves."""

import dataclasses
import os
from collections.abc import Sequence

from trol_jax import checkpoint
from trol_jax.errors import UserError
from trol_jax.infer.answer import Answerer
from trol_jax.infer.server import Server


@dataclasses.dataclass(frozen=True, eq=False)
class Served:
    name: str
    answerer: Answerer
    server: Server


def load(paths: Sequence[str | os.PathLike], size: int, length: int, waiting: int, **options) -> dict[str, Served]:
    """By name, which is that of the run's folder. size: answers at a time; length: tokens of a prompt with its answer;
    waiting: requests that may wait beyond those; options: of `Answerer.load`.
    """
    loaded = {}
    for path in paths:
        step_dir = checkpoint.resolve(path)
        in_run = step_dir.parent.name == checkpoint.CHECKPOINTS
        name = (step_dir.parents[1] if in_run else step_dir).absolute().name
        if name in loaded:
            raise UserError(f"two checkpoints are called {name}; rename the folder of one")
        loaded[name] = Answerer.load(step_dir, **options)
    return {name: Served(name, one, one.serve(size, length=length, waiting=waiting)) for name, one in loaded.items()}
