#!/usr/bin/env bash
# The same model and the same 524,288 tokens a step on one GPU: more micro-batches a step, and 8 times the hours.
# A smaller one for a start:  DEPTH=12 bash runs/gpu1.sh      (see `bash speedrun.sh --help`)
set -euo pipefail
cd "$(dirname "$0")/.."
export RECIPE=gpu NPROC=1 PRICE_PER_HOUR="${PRICE_PER_HOUR:-3}"
exec bash speedrun.sh "$@"
