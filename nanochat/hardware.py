"""What the machine is, and what it can do: names, peak speeds, board power, memory."""

import contextlib
import re
import resource
import sys
import time
from pathlib import Path

import torch

# Dense bfloat16 FLOP/s from the makers' data sheets (float16 for cards without bfloat16).
DATASHEET_FLOPS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165.2e12,
    "3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}
# Board power in watts from the makers' data sheets; the first name found in the device's counts.
BOARD_WATTS = {
    "B200": 1000, "H200 NVL": 600, "H200": 700, "H100 PCIe": 350, "H100": 700, "A100-PCIE": 250,
    "A100 80GB PCIe": 300, "A100": 400, "L40S": 350, "L4": 72, "4090": 450, "3090": 350,
    "V100-PCIE": 250, "V100": 300, "T4": 70,
}  # fmt: skip


def device_name(device: torch.device) -> str:
    """The product's name: of the card, or of the processor and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        model = ""
        with contextlib.suppress(OSError):
            found = re.search(r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)
            model = found[1].strip() if found else ""
        return f"cpu {model} ({torch.get_num_threads()} threads)".replace("  ", " ")
    return device.type


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Peak matrix FLOP/s in `dtype`, and where the figure is from."""
    name = device_name(device)
    if dtype != torch.float32:
        for product, flops in DATASHEET_FLOPS.items():
            if device.type == "cuda" and product in name:
                return flops, f"data sheet, {product}"
    return measure_peak_flops(device, dtype), "measured: the best of repeated 2048 x 2048 products"


def measure_peak_flops(
    device: torch.device, dtype: torch.dtype, size: int = 2048, repeats: int = 12
) -> float:
    """FLOP/s of the fastest of `repeats` square matrix products."""
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        a @ a
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def synchronize(device: torch.device) -> None:
    """Waits for the device's queue to empty."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def mfu(tokens_per_second: float, flops_per_token: float, peak_flops: float) -> float:
    """Model FLOP/s as a share of the hardware's peak: recomputed work is not counted.

    Example: mfu(1000, 3e9, 6e12) == 0.5
    """
    return tokens_per_second * flops_per_token / peak_flops


def peak_rss() -> int:
    """The most main memory that this process has held, in bytes."""
    # subtle: Linux's ru_maxrss counts what the process that started this one held, too.
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
