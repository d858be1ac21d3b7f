#!/bin/bash
# Train on a TPU slice, a process a host:
#
#   launch/cluster/tpu.sh NAME ZONE --config=configs/FILE.py --workdir=/mnt/shared/runs/NAME --config.mesh=fsdp=-1
#
# The project with its .venv lies under ~/trol on every host of the slice, and the run's folder on a file system that all
# of them see. `gcloud compute tpus tpu-vm create NAME --zone=ZONE --accelerator-type=v5litepod-64 --version=...` makes one.
set -euo pipefail

name=${1:?the name of the slice} zone=${2:?its zone}
shift 2
printf -v flags ' %q' "$@"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
    --command="cd ~/trol && exec .venv/bin/python -m launch.train --distributed$flags"
