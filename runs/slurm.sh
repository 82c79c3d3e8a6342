#!/usr/bin/env bash
#SBATCH --job-name=nanochat
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --output=nanochat-%j.log
#SBATCH --open-mode=append
# Use: NANOCHAT_BASE_DIR=/shared/nanochat sbatch --nodes=4 runs/slurm.sh      (checkout and folder where all nodes see them)
# Set up once on the login node (source runs/setup.sh; set_up). Before its time limit a job saves; queued again, it goes on.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run this with sbatch from the root of the checkout}"
: "${NANOCHAT_BASE_DIR:?name a folder that all nodes see}"

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
gpus_per_node=${SLURM_GPUS_ON_NODE:-8}
rendezvous="--rdzv_backend=c10d --rdzv_id=$SLURM_JOB_ID --rdzv_endpoint=$head_node:29500"
export RECIPE=gpu NPROC="$gpus_per_node" NANOCHAT_BASE_DIR
export LAUNCHER="srun --kill-on-bad-exit=1 torchrun --max_restarts=3 --nnodes=$SLURM_NNODES --nproc_per_node=$gpus_per_node $rendezvous"
exec bash speedrun.sh "$@"
