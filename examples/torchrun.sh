#!/bin/bash
# One process a GPU, on one machine or several: examples/torchrun.sh DATA WEIGHTS OUT [options of torchrun]
# docs/torchrun.md
set -euo pipefail
data=$1 weights=$2 out=$3
shift 3
torchrun "$@" -m lumbar predict --data "$data" --weights "$weights" --out "$out" --resume --time-limit none
