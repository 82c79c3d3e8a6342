"""The machine: its name, peak speed, board power and memory."""

import contextlib
import re
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class Card(NamedTuple):
    """What the maker's data sheet says of one card."""

    flops: float  # dense bfloat16 FLOP/s with float32 sums (float16 on cards without)
    watts: float | None  # the most that the board takes; None: not known


# By product, as it stands in the device's name. Consumer cards: NVIDIA's architecture white papers.
CARDS = {
    "GB300": Card(2.5e15, None),
    "GB200": Card(2.5e15, None),
    "B300": Card(2.25e15, None),
    "B200": Card(2.25e15, 1000),
    "GH200": Card(989e12, 1000),  # watts of the whole module, its processor included
    "H200 NVL": Card(835.5e12, 600),
    "H200": Card(989e12, 700),
    "H100 NVL": Card(835.5e12, 400),
    "H100 PCIe": Card(756e12, 350),
    "H100": Card(989e12, 700),
    "A100-PCIE": Card(312e12, 250),
    "A100 80GB PCIe": Card(312e12, 300),
    "A100": Card(312e12, 400),
    "A40": Card(149.7e12, 300),
    "A30": Card(165e12, 165),
    "A10": Card(125e12, 150),
    "L40S": Card(362e12, 350),
    "L40": Card(181e12, 300),
    "L4": Card(121e12, 72),
    "RTX 6000 Ada": Card(364.2e12, 300),
    "RTX A6000": Card(154.8e12, 300),
    "RTX 5090": Card(209.5e12, 575),
    "RTX 4090": Card(165.2e12, 450),
    "RTX 4080": Card(97.5e12, 320),
    "RTX 3090": Card(71e12, 350),
    "V100S-PCIE": Card(130e12, 250),
    "V100-PCIE": Card(112e12, 250),
    "V100": Card(125e12, 300),
    "T4": Card(65e12, 70),
}
# A name with one of these words is another card than the one it begins with.
OTHER_CARDS = {"Laptop", "Max-Q", "Ti", "SUPER", "D", "MIG"}


def find_card(name: str) -> tuple[str, Card] | None:
    """(product, its card) for a device's name: the longest product in it, as whole words.

    Example: find_card("NVIDIA H100 NVL")[0] == "H100 NVL"; find_card("NVIDIA L40")[0] == "L40".
    """
    if OTHER_CARDS & set(name.split()):
        return None
    for product in sorted(CARDS, key=len, reverse=True):
        if re.search(rf"(?<!\w){re.escape(product)}(?!\w)", name):
            return product, CARDS[product]
    return None


def attention_backends(device: torch.device, fixed_shapes: bool = True):
    """A context in which scaled_dot_product_attention prefers this device's fastest kernels.
    fixed_shapes: shapes repeat, as in training; cuDNN plans anew for each."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    names = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if fixed_shapes and torch.cuda.get_device_capability(device) >= (9, 0):
        names = [SDPBackend.CUDNN_ATTENTION, *names]
    return sdpa_kernel(names, set_priority=True)


def device_name(device: torch.device) -> str:
    """The card's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        info = Path("/proc/cpuinfo")
        found = re.search(r"^model name\s*:(.*)", info.read_text() if info.exists() else "", re.M)
        name = f"cpu {found[1].strip()}" if found else "cpu"
        return f"{name} ({torch.get_num_threads()} threads)"
    return device.type


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Peak matrix FLOP/s in `dtype`, and where the figure is from."""
    found = find_card(device_name(device)) if device.type == "cuda" else None
    if found and dtype != torch.float32:
        product, card = found
        return card.flops, f"data sheet, {product}"
    return measure_peak_flops(device, dtype), "measured: the best of repeated matrix products"


def measure_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of many square matrix products, for a second: on a busy machine few
    show what its cores can do."""
    size = 1024 if device.type == "cpu" else 2048
    a, seconds = torch.randn(size, size, device=device).to(dtype), []
    while len(seconds) < 3 or (len(seconds) < 50 and sum(seconds) < 1):
        synchronize(device)
        start = time.perf_counter()
        a @ a
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def synchronize(device: torch.device) -> None:
    """Waits for the device's queue to empty."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_rss() -> int:
    """The most main memory that this process has held, in bytes."""
    # subtle: Linux's ru_maxrss also counts the parent process's memory.
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
