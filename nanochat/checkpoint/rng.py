"""What a resumed run needs besides its tensors: random generators, where it ran, with what code."""

import importlib.metadata
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

from nanochat.common import gather, print0, rank_and_world
from nanochat.hardware import device_name


def capture_rng() -> dict[str, torch.Tensor]:
    """The states of torch's generators, (ranks, bytes): "cpu" and, if used, "cuda". All ranks call
    it."""
    mine = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        mine["cuda"] = torch.cuda.get_rng_state()
    every = gather([mine])
    return {name: torch.stack([states[name] for states in every]) for name in mine}


def restore_rng(saved: dict[str, torch.Tensor]) -> None:
    """Sets this rank's generators as captured; a rank that the saved run did not have gets a seed
    drawn from them."""
    rank, known = rank_and_world()[0], len(saved["cpu"])
    # subtle: clones, because set_rng_state reads from the beginning of a view's storage
    torch.set_rng_state(saved["cpu"][rank % known].clone())
    if "cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda"][rank % known].clone())
    if rank >= known:
        torch.manual_seed(int(torch.randint(2**62, ())) + rank)


def environment(device: torch.device) -> dict:
    """What the bits of a run depend on beside its settings."""
    return {
        "torch": torch.__version__,
        "device": device_name(device),  # a processor's with the number of threads
        "ranks": rank_and_world()[1],
    }


def print_differences(saved: dict, device: torch.device) -> None:
    """Prints a line for each part of the environment that has changed."""
    for name, now in environment(device).items():
        if saved.get(name) != now:
            print0(
                f"resumed with other {name}: saved with {saved.get(name)}, now {now}; "
                f"results agree to rounding, not bit for bit"
            )


def versions() -> dict[str, str]:
    """Versions of what wrote a checkpoint; a checkout that is not installed has none."""
    found = {"python": platform.python_version()}
    for name in ("nanochat", "torch", "numpy", "safetensors"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_commit() -> str | None:
    """The checkout's commit, "+changes" when its files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    with suppress(OSError, subprocess.CalledProcessError):
        if (root / ".git").exists():
            ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
            return ran.stdout.strip()
    return None
