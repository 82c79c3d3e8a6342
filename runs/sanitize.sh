#!/usr/bin/env bash
# Runs the C++ (nanochat/bpe/core.cpp on odd input, nanochat/inference/decoder.cpp and, by one thread,
# nanochat/attention.cpp and nanochat/loss.cpp on odd shapes) under AddressSanitizer and UBSan, then under ThreadSanitizer.
#
#   bash runs/sanitize.sh            needs g++ or clang++ with its sanitizer libraries; about two minutes
#   CXX=clang++ bash runs/sanitize.sh
set -euo pipefail
cd "$(dirname "$0")/.."

read -ra compiler <<<"${CXX:-c++}"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# check NAME FLAGS...: compiles with FLAGS and runs; any finding ends the script with an error.
check() {
  local name=$1 source
  shift
  for source in tests/bpe/bpe_sanitize.cpp tests/inference/decoder_sanitize.cpp \
    tests/attention_sanitize.cpp tests/loss_sanitize.cpp; do
    echo "==> $name: $source"
    "${compiler[@]}" -std=c++17 -O1 -g -Wall -Wextra -Werror -Wno-unknown-pragmas -pthread -fno-omit-frame-pointer \
      -ffp-contract=fast -fno-strict-aliasing "$@" "$source" -o "$folder/sanitize"
    "$folder/sanitize"
  done
}

export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
check "AddressSanitizer, leaks and UBSan" -fsanitize=address,undefined -fno-sanitize-recover=all
check "ThreadSanitizer" -fsanitize=thread
echo "==> Clean after $SECONDS s"
