"""Train: python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart [--config.steps=100]"""

from absl import flags
from ml_collections import ConfigDict, config_flags

from launch import cli, processes

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File with get_config(), and :argument for it.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: checkpoints, metrics, tokeniser.")


def main(_):
    from trol_jax.train import config, loop

    processes.connect()
    raw = CONFIG.value
    loop.train(config.from_dict(raw.to_dict() if isinstance(raw, ConfigDict) else raw), WORKDIR.value)


if __name__ == "__main__":
    cli.run(main, required=["config", "workdir"])
