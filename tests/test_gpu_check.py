"""runs/gpu_check.sh at toy size, on a CPU, so that no time on a GPU is lost to it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PARTS = ["machine", "attention", "engine", "float16", "checkpoint"]
# An attention kernel that a device lacks is a finding of this part, no failure of it.
MAY_FAIL = {"FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"}


def errors(found: dict) -> list[str]:
    """Every "error" in the figures, at any depth."""
    here = [found["error"]] if "error" in found else []
    inner = [v for k, v in found.items() if isinstance(v, dict) and k not in MAY_FAIL]
    return here + [error for part in inner for error in errors(part)]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, run runs/gpu_check.sh itself")
def test_the_dry_run_measures_every_part(tmp_path):
    variables = {"PARTS": " ".join(PARTS), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "runs/gpu_check.sh", str(tmp_path / "out"), "--dry-run"],
        cwd=ROOT, env=os.environ | variables, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert set(found) == set(PARTS)
    assert not errors(found)
    assert found["checkpoint"]["losses"] == found["checkpoint"]["resumed"]
    assert (tmp_path / "out" / "gpu_check.md").read_text().count("\n## ") == len(PARTS)
