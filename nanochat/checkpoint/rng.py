"""What a resumed run needs besides tensors: every rank's random generators; where it ran before."""

import base64
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import numpy as np
import safetensors
import torch
import torch.distributed as dist

from nanochat.common import print0, rank_and_world
from nanochat.hardware import device_name


def to_text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def from_text(text: str) -> torch.Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)


def capture_rng() -> dict[str, list]:
    """Torch's generators as text, one a rank: {"cpu": [...], "cuda": [... or None]}.

    All ranks call it.
    """
    cuda = to_text(torch.cuda.get_rng_state()) if torch.cuda.is_initialized() else None
    mine = (to_text(torch.get_rng_state()), cuda)
    every = [mine]
    if rank_and_world()[1] > 1:
        every = [None] * rank_and_world()[1]
        dist.all_gather_object(every, mine)
    return {"cpu": [cpu for cpu, _ in every], "cuda": [cuda for _, cuda in every]}


def restore_rng(saved: dict[str, list]) -> None:
    """Sets this rank's generators as captured; a rank that the saved run did not have gets a seed
    drawn from those."""
    rank, known = rank_and_world()[0], len(saved["cpu"])
    torch.set_rng_state(from_text(saved["cpu"][rank % known]))
    cuda = saved["cuda"][rank % known]
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(from_text(cuda))
    if rank >= known:
        torch.manual_seed(int(torch.randint(2**62, ())) + rank)


def environment(device: torch.device) -> dict:
    """What the bits of a run depend on beside its settings."""
    return {
        "torch": torch.__version__,
        "processor": device_name(device).split(" (")[0]
        if device.type == "cpu"
        else device_name(device),
        "threads": torch.get_num_threads(),
        "ranks": rank_and_world()[1],
    }


def print_differences(saved: dict, device: torch.device) -> list[str]:
    """Prints, and returns, a line for each part of the environment that is not as it was saved."""
    now = environment(device)
    lines = [
        f"resumed with other {name}: saved with {saved.get(name)}, now {now[name]}; "
        f"results agree to rounding, not bit for bit"
        for name in now
        if saved.get(name) != now[name]
    ]
    for line in lines:
        print0(line)
    return lines


def versions() -> dict[str, str]:
    """Versions of what wrote a checkpoint."""
    try:
        own = importlib.metadata.version("nanochat")
    except importlib.metadata.PackageNotFoundError:
        own = "a checkout that is not installed"
    return {
        "nanochat": own,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
    }


def git_commit() -> str | None:
    """The checkout's commit, "+changes" when the tree differs from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
