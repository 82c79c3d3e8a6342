#!/usr/bin/env bash
# Runs nanochat/bpe/core.cpp under AddressSanitizer and UBSan, then under ThreadSanitizer, on odd input.
#
#   bash runs/sanitize.sh            needs g++ or clang++ with its sanitizer libraries; about a minute
#   CXX=clang++ bash runs/sanitize.sh
set -euo pipefail
cd "$(dirname "$0")/.."

read -ra compiler <<<"${CXX:-c++}"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# check NAME FLAGS...: compiles with FLAGS and runs; any finding ends the script with an error.
check() {
  local name=$1
  shift
  echo "==> $name"
  "${compiler[@]}" -std=c++17 -O1 -g -Wall -Wextra -Werror -pthread -fno-omit-frame-pointer "$@" \
    tests/bpe/bpe_sanitize.cpp -o "$folder/sanitize"
  "$folder/sanitize"
}

export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
check "AddressSanitizer, leaks and UBSan" -fsanitize=address,undefined -fno-sanitize-recover=all
check "ThreadSanitizer" -fsanitize=thread
echo "==> Clean after $SECONDS s"
