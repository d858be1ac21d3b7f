"""The two steps of TroL's training, for `trol_1_8b.py`, `trol_3_8b.py` and `trol_7b.py` beside it.

From the paper (arXiv 2406.12246, section 4): what each step trains, nf4 with double quantisation or int8, rank and
alpha 64, AdamW, a cosine from 1e-4 to 1e-6 in each step, 768 samples a step with 6 micro-batches, one epoch of
2,273,830 samples, bfloat16, recomputation. Not in the paper, decided here: betas, weight decay and a hundredth of the
steps as warm-up are those of InternLM-XComposer2's own fine-tuning script, the nearest there is; gradients are
clipped at 1; the pairs are beside all five kernels of a layer; the partial LoRA of InternLM2 stays as it is.

A step is 192 rows of 4,096 tokens, which is 768 samples where four share a row. How many do depends on the texts:
drawn lengths (medians of 60 to 400 tokens, pictures in 69% of the samples) gave 2.4 to 4.5, and 1 to 13% padding. So
2,961 steps may be less or more than one epoch: `data/epochs` in the metrics counts them, `data/padding` tells.
"""

import ml_collections

from configs import evaluation
from configs.traversal import as_released

HEADS = (r"projector/.*|decoder/gate_.*", "train")
KERNELS = r"decoder/layers/block/.*/kernel"
LANGUAGE_MODEL = r"decoder/(?!.*lora_[ab]$).*"
WAYS = ("lora", "full")


def recipe(variant: str, quantised: str, arg: str) -> ml_collections.ConfigDict:
    """arg: step1 or step2; step2,lora keeps the base in bfloat16, step2,full trains the language model itself."""
    step, *way = arg.split(",") if arg else [""]
    if step not in ("step1", "step2") or len(way) > 1 or (way and (step == "step1" or way[0] not in WAYS)):
        raise ValueError(f"configs/{variant}.py takes :step1, :step2, :step2,lora or :step2,full, not {arg!r}")
    config = ml_collections.ConfigDict()
    config.objective = "answers"
    config.start_from = f"runs/{variant}_base" if step == "step1" else f"runs/{variant}_step1_whole"
    config.seed = 0
    config.steps = 2961  # 2,273,830 / 768
    config.batch_size = 192  # rows
    config.accumulation = 6
    config.dtype = "bfloat16"
    config.attention = "flash"
    config.remat = "layer"
    config.scan = True
    config.mesh = "fsdp=-1"
    config.rules = "fsdp"
    config.checkpoint_every = 100
    config.keep = 3
    config.log_every = 10
    config.wandb = ""
    config.z_loss = 0.0
    config.evaluation = evaluation.off()

    config.model = ml_collections.ConfigDict()
    config.model.variant = variant
    config.model.shared_gate = True  # as released; the paper has one a layer
    config.model.passes = 2
    config.model.traversal = as_released()

    config.data = ml_collections.ConfigDict()
    config.data.type = "MixtureOptions"
    config.data.root = "data"
    config.data.parts = ()
    config.data.max_length = 4096
    config.data.sample_length = 4096
    config.data.row_tiles = 3 if variant != "trol_3_8b" else 14
    config.data.max_tiles = 6
    config.data.system = (
        "You are AI model created by Byung-Kwan Lee, Ph.D. candidate, KAIST EE, of which AI model name is TroL "
        "(Traversal of Layers). You must give helpful, detailed, and polite answers to the user's questions"
    )
    config.data.held_out = 0
    config.data.bad = "skip"
    config.data.threads = 8

    config.lora = ml_collections.ConfigDict()
    config.lora.rank = 64
    config.lora.alpha = 64.0
    if step == "step1":
        config.parameters = (HEADS, (KERNELS, quantised), (".*", "freeze"))
    elif way == ["full"]:
        config.parameters = (HEADS, (LANGUAGE_MODEL, "train"), (".*", "freeze"))
    else:
        config.parameters = (HEADS, (KERNELS, "lora" if way else f"lora {quantised}"), (".*", "freeze"))

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.lr = 1e-4
    config.optimizer.lr_end = 1e-6
    config.optimizer.warmup = 30
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip = 1.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.rates = ()
    config.optimizer.skips = 10
    config.optimizer.skip_norm = 0.0
    return config
