"""The energy that a run takes, by counters: NVML on NVIDIA's cards, RAPL on processors."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from nanochat.common import print0, rank_and_world
from nanochat.training.log import ranks_of_this_node

SECONDS_BETWEEN_READINGS = 1  # the counters themselves move only some ten times a second
POWERCAP = Path("/sys/class/powercap")
Counter = tuple[Callable[[], float], float]  # reads joules since some moment; where it wraps


class EnergyMeter:
    """record() is asked after every training step, and gives joules when a reading is due."""

    def __init__(self, source: str, counters: list[Counter]):
        self.source, self.counters = source, counters
        self.last, self.when = [read() for read, _ in counters], time.monotonic()

    def record(self, at_end: bool) -> dict:
        """{"joules": since the last reading}, or {} before a second has passed; {"joules": None}
        once, and no more readings, where a counter fails."""
        now = time.monotonic()
        if not self.counters or not (at_end or now - self.when >= SECONDS_BETWEEN_READINGS):
            return {}
        self.when = now
        try:
            return {"joules": round(self.take(), 3)}
        except Exception as error:  # whatever a driver raises, the training goes on
            print0(f"energy is no longer measured: {error}")
            self.counters = []
            return {"joules": None}

    def take(self) -> float:
        """The joules since the last take(), or since the meter was made."""
        before, self.last = self.last, [read() for read, _ in self.counters]
        spent = zip(before, self.last, self.counters, strict=True)
        return sum((now - last) % wrap for last, now, (_, wrap) in spent)


def open_meter(device: torch.device) -> EnergyMeter | None:
    """Rank 0's meter of what its node's ranks compute on; elsewhere, and without one, None."""
    if rank_and_world()[0] != 0:
        return None
    try:
        if device.type == "cuda":
            return nvml_meter(ranks_of_this_node())
        if device.type == "cpu":
            return rapl_meter(POWERCAP)
        reason = f"{device.type} has no counter that is read here"
    except ImportError:
        reason = "install the package nvidia-ml-py: pip install -c constraints.txt -e '.[gpu]'"
    except Exception as error:  # whatever a driver raises, the training goes on
        reason = str(error)
    print0(f"energy is not measured: {reason}")
    return None


def rapl_meter(root: Path) -> EnergyMeter:
    """The processor packages under `root`, with all that runs on them; OSError if none is read."""
    zones = sorted(root.glob("intel-rapl:*"))
    packages = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
    if not packages:
        raise OSError(f"no RAPL processor package under {root}")

    def joules(file: Path) -> float:
        return int(file.read_text()) / 1e6

    source = f"RAPL, {len(packages)} processor package{'s' * (len(packages) > 1)}"
    counters = [
        (partial(joules, zone / "energy_uj"), joules(zone / "max_energy_range_uj"))
        for zone in packages
    ]
    return EnergyMeter(source, counters)


def nvml_meter(num_gpus: int) -> EnergyMeter:
    """The boards of CUDA devices 0..num_gpus-1, those of this node's ranks; Volta or newer."""
    import pynvml

    def joules(handle) -> float:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3

    pynvml.nvmlInit()
    # subtle: NVML numbers boards by slot, CUDA as CUDA_VISIBLE_DEVICES says; ids agree.
    ids = [torch.cuda.get_device_properties(index).uuid for index in range(num_gpus)]
    handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode()) for uuid in ids]
    source = f"NVML, {num_gpus} GPU board{'s' * (num_gpus > 1)}"
    return EnergyMeter(source, [(partial(joules, handle), math.inf) for handle in handles])
