#!/usr/bin/env bash
# Sets up .venv with the "dev" extra, then checks style and runs the tests, as many at once as there are cores.
#
#   bash runs/test.sh                      everything: 7 to 10 minutes on 2 cores
#   bash runs/test.sh --quick              without the tests marked slow: about 80 s
#   bash runs/test.sh tests/test_gpt.py    other arguments go to pytest; -n 0 runs one test after the other
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/setup.sh
quick=()
if [ "${1:-}" = --quick ]; then
  shift
  quick=(-m "not slow")
fi
set_up dev

say "Checking style: ruff check"
ruff check .
say "Checking layout: ruff format --check"
ruff format --check .
say "Running the tests: pytest ${quick[*]+"${quick[*]}"} $*"
started=$SECONDS
export PYTHONDONTWRITEBYTECODE=  # compiled once, not by each of the many processes
# A file's tests stay on one worker, so that they share what the file makes once.
python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder ${quick[@]+"${quick[@]}"} "$@"
say "All passed after $SECONDS s, $((SECONDS - started)) s of them in the tests"
