#!/usr/bin/env bash
# Training under Slurm, one process a GPU; run from the repository, after `make venv EXTRAS=dev,cuda`:
#
#   sbatch --nodes=8 launch/slurm.sh --config experiments/era5_1p5deg.py --config.workdir=runs/era5
#
# is 8 nodes of 4 GPUs, as many as the mesh of that experiment has devices.
# WIND_COORDINATOR=auto has training call jax.distributed.initialize(), which reads the coordinator and each process's
# place from Slurm and gives process i of a node the GPU i of that node; so GPUs are asked for by node, not by task.
# Where each node is one process (CPU clusters): `sbatch --ntasks-per-node=1 --gpus-per-node=0 ...`. Five minutes before
# the time is up, and when the job is preempted, Slurm sends SIGTERM and the run saves and ends in order; a job that is
# requeued or submitted again goes on from its last checkpoint. The workdir must be seen by all nodes.
#SBATCH --job-name=wind_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=wind_jax-%j.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?run this with sbatch, from the repository}"
export WIND_COORDINATOR=auto WIND_LOG_EVERY="${WIND_LOG_EVERY:-60}"
# --kill-on-bad-exit: the others would wait for a lost process for ever.
exec srun --kill-on-bad-exit=1 --label .venv/bin/python -u -m wind_jax.train "$@"
