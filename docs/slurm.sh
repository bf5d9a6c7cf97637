#!/usr/bin/env bash
# Trains on several nodes under SLURM, and goes on by itself after preemption or the time limit:
#
#     sbatch docs/slurm.sh --config configs/deepspeech2_librispeech.yaml --output_dir runs/deepspeech2_librispeech
#
# from the repository's folder. What follows the script's name is train.py's; change the numbers below for the cluster.
#SBATCH --job-name=speech
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120

set -u
trap : TERM USR1  # the tasks answer the signal with a checkpoint; this shell waits for them
srun "${PYTHON:-.venv/bin/python}" train.py -g "$SLURM_NTASKS_PER_NODE" --nodes "$SLURM_NNODES" \
    --checkpoint_path auto "$@"
status=$?
if ((status == 128 + 10 || status == 128 + 15)); then  # USR1 or TERM ended it
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
