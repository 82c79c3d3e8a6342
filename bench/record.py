"""Where a comparison's figures are kept, with what a reader needs to repeat them."""

import json
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from nanochat.checkpoint.rng import git_commit, versions
from nanochat.files import write_atomic
from nanochat.hardware import device_name

RESULTS = Path(__file__).resolve().parent / "results"


def write_record(name: str, config, device: torch.device | str, figures: dict) -> Path:
    """Writes bench/results/<name>-<machine>.json: `figures`, and machine, load, command, versions
    and the settings; prints and returns its path."""
    machine = device_name(torch.device(device))
    record = {
        "machine": machine,
        "load_average_1_min": os.getloadavg()[0],
        "command": " ".join(sys.orig_argv[1:]),
        "versions": {**versions(), "git": git_commit(), "cuda": torch.version.cuda},
        "config": asdict(config),
    }
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    path = RESULTS / f"{name}-{slug}.json"
    write_atomic(path, json.dumps(record | figures, indent=2) + "\n")
    print(f"wrote {path}")
    return path
