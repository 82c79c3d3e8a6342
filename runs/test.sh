#!/usr/bin/env bash
# Sets up .venv with the "dev" extra, then checks style and runs the whole test suite on the CPU.
#
#   bash runs/test.sh                      everything
#   bash runs/test.sh tests/test_gpt.py    arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/setup.sh
set_up dev

say "Checking style: ruff check"
ruff check .
say "Checking layout: ruff format --check"
ruff format --check .
say "Running the tests: pytest $*"
python -m pytest "$@"
say "All passed after $SECONDS s"
