#!/bin/bash
# After the array of slurm_array.sh: one submission from its parts. docs/slurm.md
#SBATCH --job-name=lumbar-merge
#SBATCH --mem=8G
set -euo pipefail
python -m lumbar merge --out "$OUT" "${OUT%.csv}".*-of-*.csv
