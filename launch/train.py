"""Train: python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart [--config.steps=100]"""

import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from launch import cli, processes

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File with get_config(), and :argument for it.", lock_config=True
)
PROFILE_STEPS = flags.DEFINE_list(
    "profile_steps", [], "First and last step whose times are recorded, into profile/ of the run, as 10,12."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: checkpoints, metrics, tokeniser.")


def main(_):
    from trol_jax.errors import STOPPED, UserError
    from trol_jax.train import config, loop

    steps = profile_steps()
    processes.connect(finish_step=True)
    raw = CONFIG.value
    settings = config.from_dict(raw.to_dict() if isinstance(raw, ConfigDict) else raw)
    require_same(settings)
    if steps and steps[1] > settings.steps:
        raise UserError(f"--profile_steps={steps[0]},{steps[1]} ends after the run, which has {settings.steps} steps")
    if not loop.train(settings, WORKDIR.value, steps):
        sys.exit(STOPPED)


def require_same(settings) -> None:
    """UserError where several processes would not train the same, or would not go on from the same step."""
    from flax.traverse_util import flatten_dict

    from trol_jax import checkpoint, typed
    from trol_jax.sharding import hosts

    workdir = pathlib.Path(WORKDIR.value).absolute()
    steps = checkpoint.steps_in(workdir / checkpoint.CHECKPOINTS)
    values = flatten_dict({"config": typed.to_dict(settings)}, sep=".")
    hosts.require_same(values | {"--workdir": str(workdir), "the newest checkpoint": max(steps, default=None)})


def profile_steps() -> tuple[int, ...]:
    from trol_jax.errors import UserError

    given = PROFILE_STEPS.value
    if given and not (
        len(given) == 2 and all(each.isdecimal() for each in given) and 0 < int(given[0]) <= int(given[1])
    ):
        raise UserError(f"--profile_steps={','.join(given)}: give the first and the last step, as 10,12")
    return tuple(map(int, given))


if __name__ == "__main__":
    cli.run(main, required=["config", "workdir"])
