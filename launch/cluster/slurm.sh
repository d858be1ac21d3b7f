#!/bin/bash
# Train on GPUs under SLURM, a process a GPU:
#
#   sbatch --nodes=4 launch/cluster/slurm.sh --config=configs/FILE.py --workdir=/shared/runs/NAME --config.mesh=data=4,fsdp=8
#
# from the root of the project, which with its .venv and the run's folder lies on a file system that all nodes see. Five
# minutes before the time is up the job is told, saves, ends and goes back into the queue, to go on from there.
#SBATCH --job-name=trol
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# srun does not take --cpus-per-task from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-12}
# One that ends in error is missed by the others, which end too; started again, they go on from the last checkpoint.
# 75: stopped, all is saved. SLURM must not kill those that end a moment later: their status would hide it.
status=0
srun --kill-on-bad-exit=0 .venv/bin/python -m launch.train --distributed "$@" || status=$?
[ "$status" != 75 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
