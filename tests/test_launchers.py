"""Launchers for clusters, as far as that goes without one."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nanochat.configurator import parse

ROOT = Path(__file__).resolve().parents[1]
SLURM, SKY = ROOT / "runs" / "slurm.sh", ROOT / "runs" / "skypilot.yaml"
# sbatch's own names (slurm.schedmd.com/sbatch.html), and what may follow.
DIRECTIVES = {
    "job-name": r"[\w-]+",
    "nodes": r"\d+(-\d+)?",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"(\w+:)?\d+",
    "cpus-per-task": r"\d+",
    "time": r"(\d+-)?\d+(:\d\d){0,2}",
    "signal": r"([BR]+:)?\w+(@\d+)?",
    "requeue": "",
    "output": r"[\w%.-]+",
    "open-mode": "append|truncate",
}
# docs.skypilot.co/en/latest/reference/yaml-spec.html
SKY_FIELDS = {
    "name": str,
    "resources": dict,
    "num_nodes": int,
    "workdir": str,
    "envs": dict,
    "file_mounts": dict,
    "setup": str,
    "run": str,
}


def test_slurms_directives_exist_and_have_values():
    lines = SLURM.read_text().splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert lines.index(directives[-1]) < first_command  # sbatch reads no further
    found = {}
    for line in directives:
        name, _, value = line.removeprefix("#SBATCH --").partition("=")
        assert re.fullmatch(DIRECTIVES[name], value), line
        found[name] = value
    assert {"requeue", "signal", "nodes", "time"} <= found.keys()
    assert found["ntasks-per-node"] == "1"  # torchrun starts the ranks of a node


def test_a_slurm_job_starts_torchrun_on_all_its_nodes(tmp_path):
    """scontrol, which only a cluster has, is played by a script."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\nprintf 'node7\\nnode8\\n'\n")
    scontrol.chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "41"}
    job |= {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "NANOCHAT_BASE_DIR": str(tmp_path)}
    places = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", SLURM, "--dry-run"], env=places | job, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines() if " srun " in f" {line}"]
    (base,) = [c for c in commands if "scripts.base_train" in c and "--resume" in c]
    assert {"--nnodes=2", "--nproc_per_node=8", "--rdzv_id=41"} <= set(base)
    assert "--rdzv_endpoint=node7:29500" in base


def test_the_skypilot_task_has_fields_that_there_are_and_flags_that_exist():
    task = yaml.safe_load(SKY.read_text())
    for name, value in task.items():
        assert isinstance(value, SKY_FIELDS[name]), name
    assert re.fullmatch(r"\w+:\d+", task["resources"]["accelerators"])
    assert task["resources"]["use_spot"] is True
    assert {mount["mode"] for mount in task["file_mounts"].values()} == {"MOUNT"}
    assert all(isinstance(value, str) for value in task["envs"].values())
    run = task["run"].replace("\\\n", " ")
    for module, flags in re.findall(r"-m (scripts\.\w+)(?: --)? (--.*)", run):
        values = {f"${name}": value for name, value in task["envs"].items()}
        flags = shlex.split(flags)
        for name, value in values.items():
            flags = [flag.replace(name, value) for flag in flags]
        parse(importlib.import_module(module).Config, flags)
    assert "--mirror=/bucket" in run and "--resume" in run and "--max_restarts" in run


def test_the_recipe_for_another_language_has_flags_that_exist(tmp_path):
    """python is played by a script that writes down its arguments, a line each."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" end >>"$CALLS"\n')
    python.chmod(0o755)
    places = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path)}
    places |= {"NANOCHAT_BASE_DIR": str(tmp_path), "CALLS": str(tmp_path / "calls")}
    own = {"DATA": "my texts", "TABLE": "a, b.csv", "MINUTES": "10"}
    script = ROOT / "runs" / "own_language.sh"
    done = subprocess.run(["bash", script], env=places | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    configs = {}
    for call in (tmp_path / "calls").read_text().split("end\n")[:-1]:
        _, module, *flags = call.splitlines()
        configs[module] = parse(importlib.import_module(module).Config, flags)
    stages = [
        "data_check",
        "tok_train",
        "tok_eval",
        "base_train",
        "mid_train",
        "chat_sft",
        "chat_eval",
    ]
    assert list(configs) == [f"scripts.{stage}" for stage in stages]
    assert {configs[f"scripts.{s}"].data for s in ("data_check", "tok_train")} == {"my texts"}
    assert configs["scripts.mid_train"].mixture.startswith("facts@'a, b.csv':4,identity@'runs/")
    assert configs["scripts.mid_train"].target_seconds == 390


def test_each_says_in_two_lines_how_it_is_used():
    assert all(line.startswith("# sky ") for line in SKY.read_text().splitlines()[:2])
    for name, words in (("slurm.sh", "# Use: "), ("gpu8.sh", "bash speedrun.sh --help")):
        comments = re.findall(r"^# .*$", (ROOT / "runs" / name).read_text(), re.M)
        assert len(comments) >= 2 and any(words in line for line in comments)


SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
SCRIPTS = [ROOT / "speedrun.sh", *sorted((ROOT / "runs").glob("*.sh"))]


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    command = [SHELLCHECK, "--external-sources", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
