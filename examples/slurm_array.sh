#!/bin/bash
# A Slurm array: each task predicts its part. docs/slurm.md
#   DATA=/data/spine WEIGHTS=/models/bundle OUT=/results/submission.csv sbatch examples/slurm_array.sh
#SBATCH --job-name=lumbar
#SBATCH --array=0-3
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --gpus-per-task=1
#SBATCH --requeue
set -euo pipefail
python -m lumbar predict --data "$DATA" --weights "$WEIGHTS" --out "$OUT" --shard auto --resume --time-limit none
