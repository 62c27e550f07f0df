#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# Slurm: a task for each segment of the job in a folder that all nodes see, at most 20 at a time.
#   sbatch --array=0-99%20 slurm.sh JOB
#SBATCH --job-name=starsr
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --requeue
set -euo pipefail
exec starsr work --job "$1" --segment "$SLURM_ARRAY_TASK_ID" --threads "$SLURM_CPUS_PER_TASK"
