"""The energy that a run takes, from the counters that hardware keeps: NVML on NVIDIA's cards, RAPL
on processors."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch

from nanochat.common import print0, rank_and_world

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """take() gives the joules since the last take() (or since the meter was made).

    counters: functions of no argument that return joules since some moment of the past, and the
    number of joules at which each begins again at 0 (0: never).

    Example: a counter that says 10, then 25: the meter's first take() is 15.
    """

    def __init__(self, source: str, counters: list[tuple[Callable[[], float], float]]):
        self.source, self.counters = source, counters
        self.last = [read() for read, _ in counters]

    def take(self) -> float:
        joules = 0.0
        for i, (read, wraps_at) in enumerate(self.counters):
            now = read()
            joules += now - self.last[i] + (wraps_at if now < self.last[i] else 0.0)
            self.last[i] = now
        return joules


def ranks_of_this_node() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def node_count() -> int:
    """How many machines the ranks run on, each with as many as this one."""
    return max(1, rank_and_world()[1] // ranks_of_this_node())


def open_meter(device: torch.device) -> EnergyMeter | None:
    """A meter of what this node's ranks compute on, or None with a printed line that says why."""
    try:
        if device.type == "cuda":
            return nvml_meter(ranks_of_this_node())
        if device.type == "cpu":
            return rapl_meter(POWERCAP)
        reason = f"{device.type} has no counter that is read here"
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error)
    print0(f"energy is not measured: {reason}")
    return None


def rapl_meter(root: Path) -> EnergyMeter:
    """The processor packages under `root`, whatever runs on them; memory and the rest of the
    machine are not counted. Raises OSError where there are none, or where they may not be read."""
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    packages = [z for z in zones if (z / "name").read_text().startswith("package")]
    if not packages:
        raise OSError(f"no RAPL processor package under {root}")

    def counter(zone: Path) -> tuple[Callable[[], float], float]:
        wraps_at = int((zone / "max_energy_range_uj").read_text()) / 1e6
        return lambda: int((zone / "energy_uj").read_text()) / 1e6, wraps_at

    source = f"RAPL, {len(packages)} processor package{'s' * (len(packages) > 1)}"
    return EnergyMeter(source, [counter(zone) for zone in packages])


def nvml_meter(num_gpus: int) -> EnergyMeter:
    """The boards of CUDA devices 0..num_gpus-1, which are those of this node's ranks.

    NVML is the driver's own library (libnvidia-ml); boards since Volta count. Raises OSError or
    RuntimeError where it is not there or does not answer.
    """
    library = ctypes.CDLL("libnvidia-ml.so.1")

    def call(name: str, *arguments) -> None:
        if status := getattr(library, name)(*arguments):
            raise RuntimeError(f"{name} of NVML failed with status {status}")

    call("nvmlInit_v2")

    def counter(index: int) -> tuple[Callable[[], float], float]:
        handle = ctypes.c_void_p()
        # subtle: NVML numbers boards by slot, CUDA as CUDA_VISIBLE_DEVICES says; ids agree.
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        call("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(handle))

        def read() -> float:
            millijoules = ctypes.c_ulonglong()
            call("nvmlDeviceGetTotalEnergyConsumption", handle, ctypes.byref(millijoules))
            return millijoules.value / 1e3

        return read, 0.0

    source = f"NVML, {num_gpus} GPU board{'s' * (num_gpus > 1)}"
    return EnergyMeter(source, [counter(i) for i in range(num_gpus)])
