#!/usr/bin/env bash
# The nanochat model card's run: depth 20, 11.2e9 tokens of FineWeb-EDU, on one node of 8 GPUs under torchrun.
# Any variable of `bash speedrun.sh --help` can be put in front:  DEPTH=26 DEVICE_BATCH_SIZE=16 bash runs/gpu8.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export RECIPE=gpu NPROC="${NPROC:-8}" PRICE_PER_HOUR="${PRICE_PER_HOUR:-24}"
exec bash speedrun.sh "$@"
