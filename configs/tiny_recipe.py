"""The recipe's two steps, small: `make recipe` runs them on the quickstart's data in a quarter of an hour.

    python -m launch.train --config=configs/quickstart.py:tower --workdir=runs/tower
    python -m launch.train --config=configs/tiny_recipe.py:base --workdir=runs/recipe/base
    python -m launch.train --config=configs/tiny_recipe.py:step1 --workdir=runs/recipe/step1
    python -m launch.merge --checkpoint=runs/recipe/step1 --dst=runs/recipe/step1_whole
    python -m launch.train --config=configs/tiny_recipe.py:step2 --workdir=runs/recipe/step2
    python -m launch.merge --checkpoint=runs/recipe/step2 --dst=runs/recipe/step2_whole

The base stands for the language model that a recipe starts from: it reads questions and answers about a picture one
after the other, never the picture, and passes its layers once. Then as in `recipe.py`: step 1 trains projector and
gates over a base in nf4, step 2 low-rank pairs beside its kernels too. `base,smoke` and so on take a few steps.

`:mixture` is step 1 on the miniature of the eleven sources, short rows and twenty steps, to see that the way works:

    python -m launch.prepare_data --demo --root=data
    python -m launch.train --config=configs/tiny_recipe.py:mixture --workdir=runs/mixture
"""

from configs import quickstart, recipe

STAGES = ("base", "step1", "step2", "mixture")


def get_config(arg: str = ""):
    stage, *more = arg.split(",")
    if stage not in STAGES or more not in ([], ["smoke"]) or (more and stage == "mixture"):
        raise ValueError(
            f"configs/tiny_recipe.py takes :{', :'.join(STAGES)}, or one of these with ,smoke, not {arg!r}"
        )
    if stage == "mixture":
        return mixture()
    config = quickstart.get_config(",".join(more))
    if stage == "base":
        config.objective = "text"
        config.start_from = "runs/tower"
        config.model.passes = 1
        config.data.turns = 8
        config.data.isolate_turns = False  # answers tell of the picture that the base cannot see
        config.data.max_length = 160
        config.optimizer.weight_decay = 0.0
        # The words of the tower stay what they are: what it shows are the words that the base reads.
        config.optimizer.rates = ((r"(vision|projector)/.*|decoder/embedding", 0.0),)
        config.steps = config.steps if more else 600
        return config
    before, table = {
        "step1": ("base", (recipe.HEADS, (recipe.KERNELS, "nf4"), (".*", "freeze"))),
        "step2": ("step1_whole", (recipe.HEADS, (recipe.KERNELS, "lora nf4"), (".*", "freeze"))),
    }[stage]
    config.start_from = f"runs/recipe/{before}"
    config.parameters = table
    config.lora.rank = 16
    config.lora.alpha = 16.0
    if not more:
        config.steps = {"step1": 800, "step2": 1600}[stage]
    return config


def mixture():
    config = recipe.recipe("tiny_phi3", "nf4", "step1")
    config.start_from = "runs/tower"
    config.steps = 20
    config.batch_size = 8
    config.accumulation = 2
    config.dtype = "float32"
    config.scan = False
    config.mesh = "data=-1"
    config.rules = "data"
    config.log_every = 5
    config.data.max_length = 512
    config.data.sample_length = 512
    config.data.row_tiles = 12
    config.data.max_tiles = 2
    config.data.threads = 1
    config.optimizer.warmup = 2
    return config
