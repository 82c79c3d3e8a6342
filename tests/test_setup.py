"""The shell commands: they parse, explain themselves, install once, and use flags that exist."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.configurator import parse

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    "speedrun.sh",
    ".ci/run",
    *(f"runs/{p.name}" for p in sorted((ROOT / "runs").glob("*.sh"))),
]
# One is sourced; the other goes on after a part that failed.
GO_ON = ("runs/setup.sh", "runs/gpu_check.sh")


def bash(*arguments, cwd=ROOT, **variables) -> subprocess.CompletedProcess:
    """Runs bash with an environment that holds PATH, HOME and `variables` alone."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **variables}
    return subprocess.run(
        ["bash", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_parses(script):
    result = bash("-n", script)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s not in GO_ON])
def test_script_stops_at_the_first_error(script):
    text = (ROOT / script).read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text


def test_help_names_every_variable_that_is_read():
    result = bash("speedrun.sh", "--help")
    assert result.returncode == 0 and not result.stderr
    text = (ROOT / "speedrun.sh").read_text() + (ROOT / "runs/setup.sh").read_text()
    read = set(re.findall(r"\$\{([A-Z][A-Z_]+):[-=+]", text))
    assert {"MINUTES", "DEPTH", "DATA", "TORCH_INDEX_URL", "SKIP_REHEARSAL"} <= read
    missing = {name for name in read if not re.search(rf"^  {name} ", result.stdout, re.M)}
    assert not missing


def test_unknown_argument_is_refused():
    result = bash("speedrun.sh", "--depth=4")
    assert result.returncode == 1
    assert '"--depth=4"' in result.stderr and "--help" in result.stderr


def recipe_commands(**variables) -> list[list[str]]:
    """The words of each command that a dry run prints."""
    result = bash("speedrun.sh", "--dry-run", **variables)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("    ")]
    return [shlex.split(line) for line in lines]


def module_and_flags(command: list[str]) -> tuple[str, list[str]]:
    at = command.index("-m")
    return command[at + 1], command[at + 2 :]


STAGES = ["tok_train", "tok_eval", "base_train", "base_eval", "mid_train", "chat_sft", "chat_eval"]
CUSTOM = {
    "MID_MIXTURE": "identity:1",
    "SFT_MIXTURE": "identity:2",
    "NUM_SHARDS": "3",
    "PRICE_PER_HOUR": "2.5",
}


@pytest.mark.parametrize(
    "variables",
    [
        {"RECIPE": "cpu"},
        {"RECIPE": "gpu"},
        {"RECIPE": "cpu", **CUSTOM},
        {"RECIPE": "gpu", **CUSTOM},
        {"RECIPE": "cpu", "RL": "compare"},
        {"RECIPE": "gpu", "RL": "compare"},
    ],
    ids=["cpu", "gpu", "cpu-custom", "gpu-custom", "cpu-rl", "gpu-rl"],
)
def test_every_command_of_a_recipe_is_one_that_its_script_accepts(variables):
    for command in recipe_commands(**variables):
        module, flags = module_and_flags(command)
        parse(importlib.import_module(module).Config, flags)


def test_a_seed_and_a_mixture_reach_the_stages():
    commands = recipe_commands(RECIPE="cpu", SEED="7", MID_MIXTURE="identity:1", SEQ_LEN="1024")
    flags = dict(map(module_and_flags, commands))
    for stage in ("base_train", "mid_train", "chat_sft"):
        assert "--seed=7" in flags[f"scripts.{stage}"]
        assert "--document-mask" not in flags[f"scripts.{stage}"]  # its rows are long
    assert "--mixture=identity:1" in flags["scripts.tok_train"]
    own = dict(map(module_and_flags, recipe_commands(RECIPE="cpu", MINUTES="5")))
    assert {"--depth=3", "--width=128"} <= set(own["scripts.base_train"])
    assert {"--go-on=0.6", "--document-mask"} <= set(own["scripts.mid_train"])
    assert "--mixture=facts:3.3" in " ".join(own["scripts.tok_train"])  # whatever MINUTES are
    assert "--whole-numbers" in own["scripts.tok_train"]
    small = dict(map(module_and_flags, recipe_commands(RECIPE="cpu", VOCAB_SIZE="4096")))
    assert "--whole-numbers" not in small["scripts.tok_train"]  # a quarter of it


def test_cpu_recipe_runs_every_stage_once_and_ends_with_the_report():
    modules = [module_and_flags(c)[0] for c in recipe_commands(RECIPE="cpu")]
    assert modules == [f"scripts.{stage}" for stage in [*STAGES, "report"]]


def test_gpu_recipe_rehearses_all_training_stages_first():
    commands = [module_and_flags(c) for c in recipe_commands(RECIPE="gpu")]
    rehearsed = [module for module, flags in commands if "--model-tag=rehearsal" in flags]
    stages = [*STAGES[2:5], "chat_eval", *STAGES[5:], "report"]  # mid is measured, too
    assert rehearsed == [f"scripts.{stage}" for stage in stages]
    short = [module for module, flags in commands if "--num-steps=2" in flags]
    assert short == ["scripts.base_train", "scripts.mid_train", "scripts.chat_sft"]
    skipped = recipe_commands(RECIPE="gpu", SKIP_REHEARSAL="1")
    assert len(skipped) == len(commands) - len(rehearsed)


def test_reinforcement_learning_comes_before_the_report():
    commands = [module_and_flags(c) for c in recipe_commands(RECIPE="cpu", RL="1", MODEL_TAG="me")]
    modules = [module.removeprefix("scripts.") for module, _ in commands]
    assert modules == [*STAGES, "chat_rl", "chat_eval", "report"]
    assert {"--parent-tag=me", "--model-tag=me", "--resume"} <= set(commands[-3][1])
    assert "--source=rl" in commands[-2][1]


def test_the_comparison_comes_first_so_that_the_report_has_it():
    commands = recipe_commands(RECIPE="cpu", RL="compare", MODEL_TAG="me")
    control, learned = (module_and_flags(c)[1] for c in commands if "scripts.chat_rl" in c)
    added = {"--advantage=rejection", "--model-tag=me-rejection"}
    assert set(control) ^ set(learned) == added | {"--model-tag=me"}


def test_gpu_recipe_s_reinforcement_learning_is_the_model_card_s():
    commands = recipe_commands(RECIPE="gpu", RL="1", SKIP_REHEARSAL="1")
    (flags,) = (module_and_flags(c)[1] for c in commands if "scripts.chat_rl" in c)
    config = parse(importlib.import_module("scripts.chat_rl").Config, flags)
    policy = config.policy
    assert (config.task, config.num_steps) == ("gsm8k", None)
    assert (policy.prompts_per_step, policy.num_samples, policy.max_tokens) == (16, 16, 256)
    assert (config.lr_scale, config.warmdown, config.final_lr) == (0.05, 1.0, 0.0)
    assert (config.eval_problems, config.eval_samples, config.eval_every) == (400, 8, 60)


def test_another_word_for_rl_is_refused():
    result = bash("speedrun.sh", "--dry-run", RECIPE="cpu", RL="yes")
    assert result.returncode == 1 and "RL is" in result.stderr


def test_variables_reach_the_commands():
    commands = recipe_commands(RECIPE="cpu", DEPTH="6", DATA="/my/texts", MODEL_TAG="mine")
    flags = dict(module_and_flags(c) for c in commands)
    base = flags["scripts.base_train"]
    assert {"--depth=6", "--data=/my/texts", "--model-tag=mine"} <= set(base)
    assert "--width" not in " ".join(base)  # follows from a depth that is given
    assert "--model-tag=mine" in flags["scripts.chat_sft"]


@pytest.mark.parametrize("recipe", ["cpu", "gpu"])
def test_a_width_reaches_the_base_stage(recipe):
    commands = recipe_commands(RECIPE=recipe, DEPTH="4", WIDTH="320", SKIP_REHEARSAL="1")
    assert {"--depth=4", "--width=320"} <= set(
        dict(map(module_and_flags, commands))["scripts.base_train"]
    )


def test_minutes_are_refused_where_they_would_do_nothing():
    result = bash("speedrun.sh", "--dry-run", RECIPE="gpu", MINUTES="5")
    assert result.returncode == 1 and "MINUTES" in result.stderr


def test_minutes_scale_the_horizons():
    def seconds(minutes):
        flags = [f for c in recipe_commands(RECIPE="cpu", MINUTES=minutes) for f in c]
        return [int(f.split("=")[1]) for f in flags if f.startswith("--target-seconds=")]

    (base, mid, sft), (long_base, long_mid, long_sft) = seconds("5"), seconds("20")
    assert abs(long_base - 6 * base) <= 6 and abs(long_sft - 6 * sft) <= 6  # (20 - 2) / (5 - 2)
    assert mid == 5 * 53 and long_mid == 20 * 53  # in a dry run no time has passed


@pytest.mark.parametrize(("minutes", "short"), [("15", True), ("20", True), ("21", False)])
def test_short_stages_do_without_the_compiler(minutes, short):
    commands = recipe_commands(RECIPE="cpu", MINUTES=minutes)
    uncompiled = {module_and_flags(c)[0] for c in commands if "--no-compile" in c}
    assert uncompiled == ({"scripts.base_train", "scripts.chat_sft"} if short else set())


@pytest.mark.parametrize(
    ("spent", "tokenizer", "expected"),
    [(100, 20, 900 - 100 - 8 - 3.4 * 20), (20, 5, 795), (500, 40, 390), (999, 40, 390)],
)
def test_midtraining_takes_the_time_that_is_left(spent, tokenizer, expected, tmp_path):
    code = (
        r'eval "$(sed -n "/^sft_share/p; /^minutes_share()/p; /^mid_seconds()/,/^}/p" '
        f'speedrun.sh)"; installed=9; MINUTES=15; SECONDS={spent + 9}; '
        f"tokenizer_seconds={tokenizer}; mid_seconds d3"
    )
    done = bash("-c", code, base_dir=str(tmp_path))
    assert abs(int(done.stdout) - expected) <= 1, done.stderr
    step = tmp_path / "mid_checkpoints" / "d3" / "step_000100"
    step.mkdir(parents=True)
    (step / "run.json").write_text(json.dumps({"config": {"target_seconds": 123.0}}, indent=2))
    assert bash("-c", code, base_dir=str(tmp_path)).stdout == "123"


def test_too_few_minutes_are_refused():
    done = bash("speedrun.sh", "--dry-run", RECIPE="cpu", MINUTES="2")
    assert done.returncode == 1 and "needs 3 or more" in done.stderr


def test_several_processes_go_through_torchrun():
    commands = recipe_commands(RECIPE="gpu", NPROC="8", SKIP_REHEARSAL="1")
    launched = {module_and_flags(c)[0]: c[0] for c in commands}
    assert launched["scripts.base_train"] == "torchrun"
    assert launched["scripts.tok_train"] == "python"


# ------------------------------------------------------------------------------------ installing


def setup(command: str, folder: Path, **variables) -> subprocess.CompletedProcess:
    return bash(
        "-c", f"set -euo pipefail; source runs/setup.sh; {command}", cwd=folder, **variables
    )


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder with what set-up reads, and a .venv without pip: an attempt to install shows."""
    (tmp_path / "runs").mkdir()
    for name in ("runs/setup.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    return tmp_path


def test_an_old_python_is_told(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\necho Python 3.9.2\nexit 1\n")
    old.chmod(0o755)
    (tmp_path / "runs").mkdir()
    shutil.copy(ROOT / "runs/setup.sh", tmp_path / "runs")
    result = setup("set_up", tmp_path, PYTHON=str(old))
    assert result.returncode == 1
    assert "Python 3.11 or newer" in result.stderr and "Python 3.9.2" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_python_that_makes_no_environment_says_what_to_install(clone):
    shutil.rmtree(clone / ".venv")
    python = clone / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$2" = venv ] && mkdir .venv && exit 1\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    result = setup("set_up", clone, PYTHON=str(python))
    assert result.returncode == 1 and "apt install python3." in result.stderr
    assert not (clone / ".venv").exists()


def test_a_second_run_skips_what_is_installed(clone):
    setup("installation_hash >.venv/installed-base", clone)
    result = setup("set_up; command -v python", clone)
    assert result.returncode == 0, result.stderr
    assert "Already installed" in result.stdout
    assert result.stdout.splitlines()[-1] == str(clone / ".venv/bin/python")


def test_a_changed_pin_or_another_extra_installs_again(clone):
    setup("installation_hash >.venv/installed-base", clone)
    assert "Installing" in setup("set_up dev", clone).stdout
    (clone / "constraints.txt").write_text("torch==2.13.0\nnumpy==2.4.0\n")
    assert "Installing" in setup("set_up", clone).stdout


def test_an_installation_that_failed_is_not_taken_for_done(clone):
    assert setup("set_up", clone).returncode != 0  # there is no pip in this .venv
    assert "Already installed" not in setup("set_up", clone).stdout


STOPPABLE = """
import pathlib, signal, sys, time
asked = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: asked.append(number))
print("training", flush=True)
while not asked:
    time.sleep(0.05)
print(f"saved after {len(asked)} signal", flush=True)
sys.exit(130)
"""


def test_a_stopped_speedrun_lets_the_stage_save_and_starts_no_other(clone):
    setup("installation_hash >.venv/installed-base", clone)
    shutil.copy(ROOT / "speedrun.sh", clone)
    (clone / "scripts").mkdir()
    for stage in [*STAGES, "report"]:
        (clone / f"scripts/{stage}.py").write_text(f"print('ran {stage}')")
    (clone / "scripts/base_train.py").write_text(STOPPABLE)
    environment = {"PATH": os.environ["PATH"], "HOME": str(clone), "RECIPE": "cpu"}
    process = subprocess.Popen(
        ["bash", "speedrun.sh"], cwd=clone, env=environment, stdout=subprocess.PIPE, text=True
    )
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if lines[-1] == "training":
            process.terminate()
    assert process.wait() == 130
    assert "ran tok_eval" in lines and "saved after 1 signal" in lines
    assert not {"ran base_eval", "ran mid_train"} & set(lines)


def test_constraints_pin_every_dependency_and_nothing_local():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", pin) for pin in pins)
    assert "torch==2.13.0" in pins
    names = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins}
    wanted = re.findall(r'^    "([A-Za-z0-9_]+)[>=]', (ROOT / "pyproject.toml").read_text(), re.M)
    assert len(wanted) > 10
    assert not {re.sub(r"[-_.]+", "-", w).lower() for w in wanted} - names
