"""TroL-7B: projector and gates (step 1), then the language model by QLoRA over a base in nf4 (step 2).

    python -m launch.convert --to=jax --src=internlm-xcomposer2-vl-7b --dst=runs/trol_7b_base
    python -m launch.train --config=configs/trol_7b.py:step1 --workdir=runs/trol_7b_step1
    python -m launch.merge --checkpoint=runs/trol_7b_step1 --dst=runs/trol_7b_step1_whole
    python -m launch.train --config=configs/trol_7b.py:step2 --workdir=runs/trol_7b_step2
    python -m launch.merge --checkpoint=runs/trol_7b_step2 --dst=runs/trol_7b

on one host; on several, `launch/cluster/` starts the same commands. The data lies in `data`. `:step2,lora` keeps the
base in bfloat16, `:step2,full` trains the language model itself. For what is decided here and why, see `recipe.py`.
"""

from configs.recipe import recipe


def get_config(arg: str = ""):
    return recipe("trol_7b", "nf4", arg)
