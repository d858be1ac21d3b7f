r"""TroL-1.8B: projector and gates (step 1), then the language model by QLoRA over a base in nf4 (step 2).

    python -m launch.convert --to=jax --src=internlm-xcomposer2-vl-1_8b --dst=runs/trol_1_8b_base
    python -m launch.train --config=configs/trol_1_8b.py:step1 --workdir=runs/trol_1_8b_step1
    python -m launch.merge --checkpoint=runs/trol_1_8b_step1 --dst=runs/trol_1_8b_step1_whole
    python -m launch.train --config=configs/trol_1_8b.py:step2 --workdir=runs/trol_1_8b_step2
    python -m launch.merge --checkpoint=runs/trol_1_8b_step2 --dst=runs/trol_1_8b

on one host of 8 devices. On a pod of 64 chips, each host starts the two trainings so (`launch/cluster/`):

    python -m launch.train --config=configs/trol_1_8b.py:step1 --workdir=runs/trol_1_8b_step1 \
        --config.accumulation=3 --distributed
    python -m launch.train --config=configs/trol_1_8b.py:step2 --workdir=runs/trol_1_8b_step2 \
        --config.accumulation=3 --distributed

192 / accumulation, the rows of a micro-batch, must be a multiple of the devices. The data lies in `data`.
`:step2,lora` keeps the base in bfloat16, `:step2,full` trains the language model itself. For what is decided here and
why, see `recipe.py`.

Memory of a device and the least time of 2,961 steps, as `launch.plan` predicts them for step 2 (`--batch=192
--accumulation=6 --length=4096 --pictures=3 --task=qlora`, or train for full), with plain attention; flash attention,
which is set here, takes less memory (bench/RESULTS.md), and so does step 1:

    8 H100, mesh fsdp=8                     QLoRA 36 GiB, 3.0 hours    full 45 GiB, 3.2 hours
    64 v5p chips, fsdp=64, accumulation=3   QLoRA 10 GiB, 40 minutes   full 12 GiB, 51 minutes
"""

from configs.recipe import recipe


def get_config(arg: str = ""):
    return recipe("trol_1_8b", "nf4", arg)
