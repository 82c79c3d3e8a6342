#!/usr/bin/env bash
# From raw text to a model that answers, by one command. `bash speedrun.sh --help` lists what can be changed.
set -euo pipefail
cd "$(dirname "$0")"
source runs/setup.sh

show_help() {
  cat <<'HELP'
Trains a chat model from raw text and measures it: tokenizer, pretraining, midtraining, fine-tuning, evaluation.

  bash speedrun.sh              set up .venv, pick the recipe by hardware, run every stage
  bash speedrun.sh --dry-run    print the commands of the recipe, run nothing
  bash speedrun.sh --help       this page

It can be stopped (Ctrl-C) and started again at any time: stages that are done are skipped, the interrupted one goes on
from its last checkpoint. Recipes: "cpu" (a small model from text that Python packages ship, about 15 minutes on
2 cores) and "gpu" (the 560-million-parameter d20 run on FineWeb-EDU; taken when PyTorch finds CUDA).

Environment variables, with the default of each recipe:

  variable            cpu         gpu           meaning
  RECIPE              by hardware               "cpu" or "gpu"
  MINUTES             15          -             time for the cpu recipe; horizons and evaluations scale with it
  DEPTH               3           20            layers; width, batch, learning rates and horizon follow from it
  WIDTH               128         64 x DEPTH    width of the model (cpu: 64 x DEPTH for another DEPTH than 3)
  DATA                packaged    fineweb-edu   pretraining text: "packaged", a folder, "fineweb-edu", "climbmix", or a
                                                hub data set "owner/name"
  NUM_SHARDS          2           240           how many files of a hub data set to use at most
  MID_MIXTURE         own texts   from the hub  conversations of midtraining: name[@source]:epochs,... (see mid_train)
  SFT_MIXTURE         own texts   from the hub  conversations of fine-tuning, likewise
  VOCAB_SIZE          8192        65536         size of the vocabulary, a multiple of 64
  SEQ_LEN             256         2048          tokens in a training row
  DEVICE_BATCH_SIZE   auto        auto          rows at once on a device; "auto" tries the largest that fits
  RL                  0           0             1: reinforcement learning after fine-tuning (cpu: spelling words longer
                                                than it was taught; gpu: GSM8K); "compare": before it,
                                                fine-tuning on the model's own right answers for as long, and both
                                                curves in the report
  NPROC               1           all GPUs      processes, one a GPU; more than 1 run under torchrun
  MODEL_TAG           d$DEPTH     d$DEPTH       name of the run's checkpoints
  SEED                42          42            of data order and initial weights
  SKIP_REHEARSAL      -           0             1: do not try two steps of every stage first
  EVAL_BUNDLE         -           -             CORE's evaluation bundle, a zip or folder; without it, downloaded
  PRICE_PER_HOUR      -           -             price of the whole machine, for the estimate and the report
  LAUNCHER            -           -             command that starts the ranks, instead of torchrun (see runs/slurm.sh)
  TORCH_ELASTIC_SHUTDOWN_TIMEOUT  300           seconds that torchrun leaves its ranks to save when stopped
  NANOCHAT_BASE_DIR   ~/.cache/nanochat         where tokens, tokenizer and checkpoints go
  NANOCHAT_DTYPE      by hardware               float32, bfloat16 or float16 to compute in
  HF_ENDPOINT         -           -             another address of the model hub (a mirror)
  TORCH_INDEX_URL     -           -             package index that PyTorch is installed from
  CXX                 -           -             the C++ compiler that compiles the model on a CPU
  PYTHON              -           -             the Python (3.11 or newer) to make .venv with
  UV                  -           -             1: install with uv, where it is there

Examples:  MINUTES=5 bash speedrun.sh        DEPTH=12 DATA=climbmix MODEL_TAG=mix bash speedrun.sh
HELP
}

# ------------------------------------------------------------------------------------------------------- recipes
# One function a recipe: the defaults of the variables, then the flags of each stage.

sft_share=0.01  # of MINUTES, that fine-tuning takes

# minutes_share 0.4: that share of MINUTES, in seconds, less 2 minutes for reading, compiling and measuring.
minutes_share() { awk -v m="$MINUTES" -v s="$1" 'BEGIN { printf "%.0f", (m - 2) * 60 * s }'; }

# Seconds that midtraining of run TAG takes, so that all is done in MINUTES: what is left, less fine-tuning's share and,
# for making conversations, compiling and measuring from here on, 1.9 + 0.1 MINUTES times what the tokenizer's stages
# took, which a slow machine lengthens alike. At most 53 s of each minute; a run that has begun keeps its own.
mid_seconds() {
  local begun
  begun=$(cat "$base_dir/mid_checkpoints/$1"/step_*/run.json 2>/dev/null |
    sed -n 's/^ *"target_seconds": \([0-9]*\).*/\1/p' | tail -n 1) || true
  awk -v begun="$begun" -v m="$MINUTES" -v sft="$(minutes_share "$sft_share")" -v spent=$((SECONDS - installed)) \
    -v tokenizer="$tokenizer_seconds" 'BEGIN {
      most = m * 53; least = (m - 2) * 30; left = m * 60 - spent - sft - (1.9 + 0.1 * m) * tokenizer
      printf "%.0f", (begun ? begun : left > most ? most : left < least ? least : left)
    }'
}

# scaled_mixture name:4,...: with epochs for MINUTES. They are for 15 of them, in which two cores with three narrow layers
# go through them once or twice: what is asked again in the same words teaches less, and making them takes time, too.
scaled_mixture() {
  awk -v m="$MINUTES" -v RS=, -F: '{ printf "%s%s:%.3f", separator, $1, $2 * m / 15; separator = "," }' <<<"$1"
}

recipe_cpu() {
  : "${MINUTES:=15}" "${DATA:=packaged}" "${VOCAB_SIZE:=8192}" "${SEQ_LEN:=256}" "${NPROC:=1}"
  if ! awk -v m="$MINUTES" 'BEGIN { exit !(m + 0 >= 3) }'; then fail "MINUTES is \"$MINUTES\"; the cpu recipe needs 3 or more"; fi
  # narrower than 64 x depth: in the same time 1.5 to 1.8 times the steps, which are worth more
  if [ "${DEPTH:=3}" = 3 ]; then : "${WIDTH:=128}"; fi
  : "${DEVICE_BATCH_SIZE:=auto}" "${MODEL_TAG:=d$DEPTH}" "${NUM_SHARDS:=2}"
  local own=facts:7,identity:31,unknown:9.5,spelling:2.5,arithmetic:6
  # the tokenizer does not depend on MINUTES, and less of the same shows it the words
  local words=facts:3.3,identity:7,unknown:3.9,spelling:1.12,arithmetic:1.55
  local numbers=(--whole-numbers)  # 990 ids, too many of a smaller vocabulary
  if [ "$VOCAB_SIZE" -lt 8192 ]; then numbers=(); fi
  tok_train=(--data="$DATA" --vocab-size="$VOCAB_SIZE" --mixture="${MID_MIXTURE:-$words}" ${numbers[@]+"${numbers[@]}"} --resume)
  : "${MID_MIXTURE:=$(scaled_mixture "$own")}"
  : "${SFT_MIXTURE:=$(scaled_mixture facts:0.2,identity:0.16,unknown:0.14,spelling:0.05,arithmetic:0.06)}"
  local rates=(--muon-iterations=3 --matrix-lr=0.03 --adamw-beta2=0.999 --unembedding-lr=0.002)
  local sampled=(--sampled-ids=1500)
  # what shares something between ids is for one process; counting pairs of them for at most 16,384
  if [ "$NPROC" = 1 ]; then rates+=(--share-letter-cases); fi
  local vectors=(--word-vectors=0.15)
  if [ "$VOCAB_SIZE" -gt 16384 ] || [ "$NPROC" != 1 ]; then vectors=(); fi
  # in every stage, so that one compiled graph serves those that compile; of long rows a mask would be slow
  local masked=(--document-mask)
  if [ "$SEQ_LEN" -gt 512 ]; then masked=(); fi
  # compiling takes longer than a short stage gains by it
  local short=()
  if awk -v m="$MINUTES" 'BEGIN { exit !(m <= 20) }'; then short=(--no-compile); fi
  warm=("${sampled[@]}" ${masked[@]+"${masked[@]}"})  # for scripts/warm_up.py
  SKIP_REHEARSAL=1
  tok_eval=()
  shape=(--depth="$DEPTH" ${WIDTH:+"--width=$WIDTH"} --head-dim=64 --sequence-len="$SEQ_LEN" --tie-word-embeddings)
  base_train=(--data="$DATA" --num-shards="$NUM_SHARDS" "${shape[@]}" ${vectors[@]+"${vectors[@]}"} "${rates[@]}"
    ${masked[@]+"${masked[@]}"} --total-batch-size=2048 "${sampled[@]}" --target-seconds="$(minutes_share 0.015)" --eval-tokens=30000
    ${short[@]+"${short[@]}"})
  base_eval=(--eval-tokens=12000)
  mid_train=(--mixture="$MID_MIXTURE" --val-mixture="spelling:0.1,arithmetic:0.1"
    --mask-loss --go-on=0.6 "${rates[@]}" --total-batch-size=4096 "${sampled[@]}"
    ${masked[@]+"${masked[@]}"} --eval-tokens=20000 --eval-every=400)
  chat_sft=(--mixture="$SFT_MIXTURE" --val-mixture="spelling:0.1,arithmetic:0.1"
    --max-tokens=64 --examples-per-step=36 "${rates[@]}" ${masked[@]+"${masked[@]}"} ${short[@]+"${short[@]}"}
    --target-seconds="$(minutes_share "$sft_share")" --eval-tokens=20000)
  chat_eval=(--tasks="arithmetic|spell|spell-long|count|facts|identity|unknown|free|talk"
    --limit="$(awk -v m="$MINUTES" 'BEGIN { printf "%d", (m < 15 ? 100 + 20 * m : 400) }')")
  chat_rl=(--task=spell-long --max-tokens=64 --target-seconds="$(minutes_share 0.27)" --lr-scale=0.1
    --momentum-warmup=0 --unembedding-lr=0 --muon-iterations=3
    --eval-every=50 --eval-problems=1000 --eval-samples=4)
}

# The run of the nanochat model card: 11.2e9 tokens of FineWeb-EDU, 524,288 a step. What is not said here is the default
# of each script.
recipe_gpu() {
  if [ -n "${MINUTES:-}" ]; then fail "MINUTES is for RECIPE=cpu; the length of the gpu recipe follows from DEPTH"; fi
  : "${DEPTH:=20}" "${DATA:=fineweb-edu}" "${VOCAB_SIZE:=65536}" "${SEQ_LEN:=2048}" "${NUM_SHARDS:=240}"
  : "${NPROC:=$gpus}" "${DEVICE_BATCH_SIZE:=auto}" "${MODEL_TAG:=d$DEPTH}"
  tok_train=(--data="$DATA" --vocab-size="$VOCAB_SIZE" --max-chars=2000000000 --resume)
  tok_eval=()
  base_train=(--data="$DATA" --num-shards="$NUM_SHARDS" --depth="$DEPTH" ${WIDTH:+"--width=$WIDTH"} --sequence-len="$SEQ_LEN")
  base_eval=(--core --max-per-task=500 ${EVAL_BUNDLE:+"--bundle=$EVAL_BUNDLE"})
  mid_train=(${MID_MIXTURE:+"--mixture=$MID_MIXTURE"})
  chat_sft=(${SFT_MIXTURE:+"--mixture=$SFT_MIXTURE"})
  chat_eval=()
  chat_rl=(--task=gsm8k)
}

# -------------------------------------------------------------------------------------------------------- stages

# torchrun gives its ranks 30 s between SIGTERM and SIGKILL, less than saving a large model takes.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"

# run one|all MODULE FLAGS...: `python -m MODULE FLAGS` in one process, or in all NPROC of them under torchrun.
run() {
  local ranks=$1 module=$2 command
  shift 2
  if [ "$ranks" = all ] && [ -n "${LAUNCHER:-}" ]; then
    command="$LAUNCHER -m $module --"
  elif [ "$ranks" = all ] && [ "$NPROC" -gt 1 ]; then
    command="torchrun --standalone --nproc_per_node=$NPROC -m $module --"
  else
    command="python -m $module"
  fi
  echo "    $command${*:+$(printf ' %q' "$@")}"
  # subtle: $command is split into words on purpose; the flags are not.
  if [ -n "$dry_run" ]; then return; fi
  # subtle: in a process group of its own, so that Ctrl-C reaches it once, through stop.
  set -m
  $command "$@" &
  child=$!
  set +m
  wait "$child"
  child=""
}

# At Ctrl-C or a termination the stage that runs is asked, once, to save its state and leave.
stop() {
  trap '' INT TERM
  if [ -n "$warming" ]; then kill -TERM "$warming" 2>/dev/null || true; fi
  if [ -n "$child" ]; then
    kill -TERM "$child" 2>/dev/null || true
    wait "$child" || true
  fi
  say "Stopped after $((SECONDS / 60)) min; the same command goes on from the last checkpoint"
  exit 130
}

stage() {
  number=$((number + 1))
  say "[$number of $num_stages, after $((SECONDS / 60)) min $((SECONDS % 60)) s] $1"
}

# train_stages TAG FLAGS...: everything between the tokenizer and the report; FLAGS go to those that train.
train_stages() {
  local tag=$1
  shift
  stage "Pretraining: the model learns language from raw text"
  run all scripts.base_train "${base_train[@]}" "${training[@]}" --model-tag="$tag" "$@"
  stage "Evaluating the base model"
  run all scripts.base_eval ${base_eval[@]+"${base_eval[@]}"} --model-tag="$tag"
  stage "Midtraining: conversations, multiple choice and tools"
  if [ "$RECIPE" = cpu ]; then mid_train+=(--target-seconds="$(mid_seconds "$tag")"); fi
  run all scripts.mid_train --base-tag="$tag" ${mid_train[@]+"${mid_train[@]}"} "${training[@]}" --model-tag="$tag" "$@"
  if [ "$RECIPE" = gpu ]; then
    run all scripts.chat_eval --source=mid ${chat_eval[@]+"${chat_eval[@]}"} --model-tag="$tag"
  fi
  stage "Fine-tuning on the assistant's answers"
  run all scripts.chat_sft --parent-tag="$tag" ${chat_sft[@]+"${chat_sft[@]}"} "${training[@]}" --model-tag="$tag" "$@"
  stage "Evaluating the chat model"
  run all scripts.chat_eval --source=sft ${chat_eval[@]+"${chat_eval[@]}"} --model-tag="$tag"
  if [ "$RL" = compare ]; then
    stage "For comparison: fine-tuning on the model's own right answers"
    run all scripts.chat_rl --parent-tag="$tag" "${chat_rl[@]}" "${training[@]}" --advantage=rejection \
      --model-tag="$tag-rejection" "$@"
  fi
  if [ "$RL" != 0 ]; then
    stage "Reinforcement learning: the model learns from its own answers"
    run all scripts.chat_rl --parent-tag="$tag" "${chat_rl[@]}" "${training[@]}" --model-tag="$tag" "$@"
    stage "Evaluating the chat model after it"
    run all scripts.chat_eval --source=rl ${chat_eval[@]+"${chat_eval[@]}"} --model-tag="$tag"
  fi
}

remove_rehearsal() {
  if [ -z "$dry_run" ]; then rm -rf "$base_dir"/{{base,mid,sft,rl}_checkpoints,report}/rehearsal{,-rejection}; fi
}

# Every stage for two steps at full size, so that what would fail after hours fails now; then memory, hours and price.
rehearse() {
  say "Rehearsal: two steps of every stage at full size, with save, load and evaluation (SKIP_REHEARSAL=1 skips it)"
  local base_eval=("${base_eval[@]/--max-per-task=500/--max-per-task=8}")
  local chat_eval=(${chat_eval[@]+"${chat_eval[@]}"} --limit=32)
  local chat_rl=("${chat_rl[@]}" --eval-problems=16 --no-gate)
  remove_rehearsal
  train_stages rehearsal --num-steps=2
  run one scripts.report --rehearsal --model-tag=rehearsal ${PRICE_PER_HOUR:+"--price-per-hour=$PRICE_PER_HOUR"}
  remove_rehearsal
  say "Rehearsal done, its checkpoints removed; now the real run"
  number=2
}

pick_recipe() {
  gpus=0
  if [ -z "${RECIPE:-}" ] || [ "$RECIPE$dry_run" = gpu ]; then
    gpus=$(python -c 'import torch; print(torch.cuda.device_count())') ||
      fail "PyTorch does not start (see above), so the hardware is unknown; before the set-up name RECIPE=cpu or gpu"
  fi
  if [ -z "${RECIPE:-}" ]; then
    RECIPE=cpu
    if [ "$gpus" -gt 0 ]; then RECIPE=gpu; fi
  fi
  case $RECIPE in
    cpu) recipe_cpu ;;
    gpu)
      if [ -z "$dry_run" ] && [ "$gpus" -eq 0 ]; then fail "RECIPE=gpu, but PyTorch finds no CUDA device here"; fi
      if [ "$gpus" -eq 0 ]; then gpus=1; fi
      recipe_gpu ;;
    *) fail "RECIPE is \"$RECIPE\"; expected cpu or gpu" ;;
  esac
  training=(--device-batch-size="$DEVICE_BATCH_SIZE" --seed="${SEED:=42}")
  case ${RL:=0} in
    0) num_stages=8 source= ;;
    1) num_stages=10 source=rl ;;
    compare) num_stages=11 source=rl ;;
    *) fail "RL is \"$RL\"; expected 0, 1 or compare" ;;
  esac
  say "Recipe \"$RECIPE\": depth $DEPTH${WIDTH:+, width $WIDTH}, data $DATA, vocabulary $VOCAB_SIZE, $NPROC" \
    "process(es)${MINUTES:+, $MINUTES minutes}, run \"$MODEL_TAG\" in $base_dir"
}

main() {
  dry_run="" number=0 child="" warming=""
  case ${1:-} in
    "") ;;
    --help | -h) show_help; return ;;
    --dry-run) dry_run=1 PATH=$PWD/.venv/bin:$PATH ;;
    *) fail "unknown argument \"$1\"; settings are environment variables: see bash speedrun.sh --help" ;;
  esac
  base_dir=${NANOCHAT_BASE_DIR:-$HOME/.cache/nanochat}
  base_dir=${base_dir/#\~/$HOME}
  if [ -z "$dry_run" ]; then set_up; fi
  trap stop INT TERM
  installed=$SECONDS
  pick_recipe
  if [ "$RECIPE$dry_run" = cpu ] && [ ! -d "$base_dir/base_checkpoints/$MODEL_TAG" ]; then
    # beside the first stages, which leave a core idle; what fails here fails in training, with its message
    python -m scripts.warm_up "${shape[@]}" --vocab-size="$VOCAB_SIZE" "${warm[@]}" &>/dev/null &
    warming=$!
  fi

  stage "Training the tokenizer"
  run one scripts.tok_train "${tok_train[@]}"
  stage "Measuring the tokenizer"
  run one scripts.tok_eval ${tok_eval[@]+"${tok_eval[@]}"}
  tokenizer_seconds=$((SECONDS - installed))
  if [ "${SKIP_REHEARSAL:-0}" != 1 ]; then
    if [ -d "$base_dir/base_checkpoints/$MODEL_TAG" ]; then
      say "Run \"$MODEL_TAG\" has begun before and is continued: no rehearsal"
    else
      rehearse
    fi
  fi
  train_stages "$MODEL_TAG" --resume
  stage "Report"
  run one scripts.report --model-tag="$MODEL_TAG" ${PRICE_PER_HOUR:+"--price-per-hour=$PRICE_PER_HOUR"}
  if [ -n "$dry_run" ]; then return; fi
  local trained=$((SECONDS - installed))
  say "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s: $installed s of set-up," \
    "$((trained / 60)) min $((trained % 60)) s of training and measuring"
  say "Talk to it:  source .venv/bin/activate; python -m scripts.chat_cli${source:+ -i $source}"
}

main "$@"
