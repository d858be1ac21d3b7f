"""The quickstart: a TroL of half a million parameters learns to answer questions about coloured shapes (easy-vqa).

    python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart

About ten minutes on two CPU cores. `--config=configs/quickstart.py:smoke` takes the same path in a few steps.
"""

import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    if arg not in ("", "smoke"):
        raise ValueError(f"configs/quickstart.py takes no argument or :smoke, not {arg!r}")
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.steps = 3000
    config.batch_size = 16  # pictures
    config.accumulation = 1
    config.dtype = "float32"
    config.remat = "none"
    config.scan = True
    config.checkpoint_every = 500
    config.keep = 2
    config.log_every = 10

    config.model = ml_collections.ConfigDict()
    config.model.variant = "tiny_phi3"
    config.model.shared_gate = True
    config.model.passes = 2

    config.data = ml_collections.ConfigDict()
    config.data.root = ""
    config.data.turns = 4
    config.data.isolate_turns = True
    config.data.max_length = 68
    config.data.augment = ("hflip", "vflip")
    config.data.system = ""
    config.data.workers = 0

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.lr = 2e-3
    config.optimizer.lr_end = 4e-5
    config.optimizer.warmup = 100
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip = 1.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98

    if arg == "smoke":
        config.steps = 8
        config.checkpoint_every = 4
        config.log_every = 2
        config.optimizer.warmup = 2
    return config
