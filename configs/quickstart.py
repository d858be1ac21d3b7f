"""The quickstart: a TroL of 0.4 million parameters learns to answer questions about coloured shapes (easy-vqa).

    python -m launch.train --config=configs/quickstart.py:tower --workdir=runs/tower
    python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart

As the released models did, it starts from a vision tower that was trained before: three to five minutes on two CPU
cores to tell pictures' words, then about six for TroL as a whole. `:smoke` and `:tower,smoke` take the same paths in a
few steps.
"""

import ml_collections

from configs import evaluation
from configs.traversal import as_released


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    chosen = arg.split(",") if arg else []
    if unknown := [name for name in chosen if name not in ("tower", "smoke")]:
        raise ValueError(f"configs/quickstart.py takes :tower, :smoke or :tower,smoke, not {unknown[0]!r}")
    config = ml_collections.ConfigDict()
    config.objective = "answers"
    config.start_from = "runs/tower"
    config.seed = 0
    config.steps = 2000
    config.batch_size = 16  # pictures
    config.accumulation = 1
    config.dtype = "float32"
    config.attention = "xla"
    config.remat = "none"
    config.scan = False
    config.mesh = "data=-1"
    config.rules = "data"  # or a table, in a config of one's own: with config.ignore_type(): config.rules = {...}
    config.checkpoint_every = 500
    config.keep = 2
    config.log_every = 10
    config.wandb = ""
    config.z_loss = 0.0
    config.evaluation = evaluation.off()

    config.model = ml_collections.ConfigDict()
    config.model.variant = "tiny_phi3"
    config.model.shared_gate = True
    config.model.passes = 2
    config.model.traversal = as_released()

    config.data = ml_collections.ConfigDict()
    config.data.root = ""
    config.data.turns = 4
    config.data.isolate_turns = True
    config.data.max_length = 68
    config.data.augment = ("hflip", "vflip")
    config.data.system = ""
    config.data.workers = 0

    config.parameters = ((".*", "train"),)
    config.lora = ml_collections.ConfigDict()
    config.lora.rank = 0
    config.lora.alpha = 0.0

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.lr = 1e-3
    config.optimizer.lr_end = 2e-5
    config.optimizer.warmup = 100
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip = 1.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.rates = ()
    config.optimizer.skips = 0
    config.optimizer.skip_norm = 0.0

    if "tower" in chosen:
        config.objective = "words"
        config.start_from = ""
        config.steps = 4000
        config.checkpoint_every = 1000
        config.data.turns = 16  # every question of nearly every picture
        config.data.max_length = 256
        config.optimizer.weight_decay = 0.0  # the decoder, which waits, stays as it was drawn
    if "smoke" in chosen:
        config.steps = 8
        config.checkpoint_every = 4
        config.log_every = 2
        config.optimizer.warmup = 2
    return config
