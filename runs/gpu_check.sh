#!/usr/bin/env bash
# Everything that a short lease of one GPU can prove, in under 8 minutes; each part in a process with a time limit of
# its own, so that one failure hides nothing.
#
#   bash runs/gpu_check.sh OUT              writes OUT/gpu_check.json and OUT/gpu_check.md
#   bash runs/gpu_check.sh OUT --dry-run    every part at toy size, on a CPU
#   PARTS="machine engine" bash runs/gpu_check.sh OUT
#
# Needs torch, numpy, safetensors, tokenizers and regex; pytest, hypothesis, tyro and rich for the tests. It installs
# nothing. Environment: PYTHON (the interpreter), PARTS, SECONDS_IN_ALL (default 470).
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${1:?usage: bash runs/gpu_check.sh OUT [--dry-run]}
dry=${2:-}
python=${PYTHON:-python3}
if [ -x .venv/bin/python ] && [ -z "${PYTHON:-}" ]; then python=.venv/bin/python; fi
# The most wanted first: if the time ends before the parts do, the last ones are missing, and a line says so.
first=(20:32:8 20:32:1:fp8) last=(12:32 20:16 12:16)
if [ "$dry" = --dry-run ]; then
  first=(1:2:2 2:4:1:fp8) last=(2:4)
elif "$python" -c 'import sys, torch; sys.exit(torch.cuda.get_device_properties(0).total_memory < 100e9)'; then
  last=(20:64 "${last[@]}")
fi
parts=${PARTS:-"machine ${first[*]/#/steps:} checkpoint attention deterministic tests engine float16
  ${last[*]/#/steps:} optimizers sft"}
limit=${SECONDS_IN_ALL:-470}
export PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
for part in $parts; do
  left=$((limit - SECONDS))
  if [ "$left" -lt 10 ]; then echo "==> $part: no time left"; continue; fi
  echo "==> $part ($SECONDS s)"
  timeout "$((left < 150 ? left : 150))" "$python" -m bench.gpu_check "$part" --out "$out" ${dry:+"$dry"} || echo "==> $part FAILED"
done
"$python" -m bench.gpu_check report --out "$out"
