"""runs/gpu_check.sh at toy size, on a CPU, so that no time on a GPU is lost to it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import gpu_check

ROOT = Path(__file__).resolve().parents[1]
PARTS = ["machine", "attention", "engine", "float16", "checkpoint"]
# An attention kernel that a device lacks is a finding of this part, no failure of it.
MAY_FAIL = {"FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, run runs/gpu_check.sh"),
]


def errors(found: dict) -> list[str]:
    """Every "error" in the figures, at any depth."""
    here = [found["error"]] if "error" in found else []
    inner = [v for k, v in found.items() if isinstance(v, dict) and k not in MAY_FAIL]
    return here + [error for part in inner for error in errors(part)]


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments])
    gpu_check.main()


def test_the_dry_run_measures_every_part(tmp_path, monkeypatch):
    precision = torch.get_float32_matmul_precision()
    for part in PARTS:
        run(monkeypatch, part, f"--out={tmp_path}", "--dry-run")
    run(monkeypatch, "report", f"--out={tmp_path}")
    torch.set_float32_matmul_precision(precision)
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert set(found) == set(PARTS)
    assert not errors(found)
    assert found["checkpoint"]["losses"] == found["checkpoint"]["resumed"]
    assert (tmp_path / "gpu_check.md").read_text().count("\n## ") == len(PARTS)


def test_the_script_runs_a_part_and_reports(tmp_path, forked_python):
    variables = {"PARTS": "machine", "PYTHON": str(forked_python)}
    done = subprocess.run(
        ["bash", "runs/gpu_check.sh", str(tmp_path / "out"), "--dry-run"],
        cwd=ROOT, env=os.environ | variables, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert set(found) == {"machine"} and not errors(found)
