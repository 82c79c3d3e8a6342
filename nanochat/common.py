"""Errors, ranks, devices, dtypes and progress."""

import atexit
import contextlib
import ctypes
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from nanochat.hardware import device_name

T = TypeVar("T")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RANKS_WAIT = timedelta(hours=1)  # for each other: rank 0 may be saving, another compiling


class NanochatError(Exception):
    """What the user can cause, and mend: shown as its message, without a traceback."""


class ConfigError(NanochatError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(NanochatError):
    """Data that is missing, unreachable or malformed."""


class CheckpointError(NanochatError):
    """A checkpoint that is missing, damaged, or does not belong to what it is used with."""


INSTALL = "pip install -c constraints.txt -e '.[export]'"


def require_package(module: str, remedy: str = INSTALL) -> None:
    """Raises ConfigError, with what to do, unless the module can be imported."""
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"this needs the package {module}, which is not installed: {remedy}")


def rank_and_world() -> tuple[int, int]:
    """(rank, world size): (0, 1) outside torchrun."""
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def print0(*args, **kwargs) -> None:
    """print() on rank 0, at once."""
    if rank_and_world()[0] == 0:
        print(*args, **kwargs, flush=True)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sums `tensor` over all ranks, in place; returns it."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(tensor)
    return tensor


def gather(items: list) -> list:
    """All ranks' items, on every rank: the inverse of taking `items[rank::world_size]`."""
    world = rank_and_world()[1]
    if world == 1:
        return items
    parts: list = [None] * world
    dist.all_gather_object(parts, items)
    whole = [None] * sum(map(len, parts))
    for rank, part in enumerate(parts):
        whole[rank::world] = part
    return whole


def on_rank0(function: Callable[[], T]) -> T:
    """What function() returns, or raises, on rank 0, on every rank: for every decision that looks
    at the disk, because ranks that look for themselves may disagree."""
    rank, world = rank_and_world()
    if world == 1:
        return function()
    result, error, known = None, None, None
    if rank == 0:
        try:
            result = function()
        except Exception as raised:
            error = raised
            known = raised if isinstance(raised, NanochatError) else NanochatError(repr(raised))
    outcome = [result, known]
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1]:
        raise error or outcome[1]  # on rank 0 as it was, with its traceback
    return outcome[0]


def barrier() -> None:
    """Waits until every rank is here, without a time limit: others may work for hours."""
    world = rank_and_world()[1]
    if world > 1:
        store = dist.distributed_c10d._get_default_store()
        arrived = store.add("arrived", 1)
        while store.add("arrived", 0) < -(-arrived // world) * world:
            time.sleep(0.1)


def pick_device_type(wanted: str = "auto") -> str:
    """`wanted`, or the best of "cuda", "mps" and "cpu" that is there for "auto"."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    available = ["cuda"] * cuda + ["mps"] * mps + ["cpu"]
    if wanted not in ("auto", *available):
        raise ConfigError(
            f"device type {wanted!r}: PyTorch {torch.__version__} finds none here; choose auto or "
            f"{', '.join(available)}"
        )
    return available[0] if wanted == "auto" else wanted


def compute_init(
    device_type: str = "auto", seed: int = 42, deterministic: bool = False
) -> tuple[bool, int, int, int, torch.device]:
    """Joins torchrun's ranks, if any, picks the device, prints it and the compute dtype, seeds.

    Returns (ddp, ddp_rank, ddp_local_rank, ddp_world_size, device). Equal runs give equal bits on a
    CPU, and on CUDA if `deterministic`.
    """
    device_type = pick_device_type(device_type)
    ddp = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    rank, local_rank, world_size = (int(os.environ[k]) for k in names) if ddp else (0, 0, 1)
    device = torch.device(f"cuda:{local_rank}" if device_type == "cuda" else device_type)
    if device_type == "cuda":
        # subtle: read at the first allocation; rows of many lengths fragment memory
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if device_type == "cpu" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        # glibc keeps what tensors leave (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD) for the next ones:
        # in bfloat16 an eighth of a step
        for option in (-1, -3):
            libc.mallopt(option, 2**30)
    if device_type == "cpu" or deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # subtle: as use_deterministic_algorithms(True), which imports the compiler, for seconds
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
        # else nothing is kept of what was traced: ReluSquared has a gradient of its own
        os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD", "1")
        if held := os.environ.get("ATEN_CPU_CAPABILITY"):  # Inductor's cache mixes them up
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"/tmp/inductor-{os.getuid()}-{held}")
        torch.set_deterministic_debug_mode("error")
        torch.utils.deterministic.fill_uninitialized_memory = False  # 1% of a step
    if ddp and not dist.is_initialized():
        # subtle: torchrun keeps its store when it starts ranks again, with dead ones' addresses
        store, *_ = next(rendezvous("env://", timeout=RANKS_WAIT))
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        group = {"store": store, "rank": rank, "world_size": world_size, "timeout": RANKS_WAIT}
        if device_type == "cuda":
            dist.init_process_group("nccl", device_id=device, **group)
        else:
            dist.init_process_group("gloo", **group)
            # subtle: else gloo's threads, which may still hold the last work, abort at exit
            atexit.register(time.sleep, 0.5)
            atexit.register(compute_cleanup)
    torch.manual_seed(seed)
    dtype, reason = choose_dtype(device)
    print0(
        f"device: {device_name(device)} x {world_size}; compute dtype {str(dtype)[6:]} ({reason})"
    )
    return ddp, rank, local_rank, world_size, device


def compute_cleanup() -> None:
    """Leaves the group of ranks, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def cpu_has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware (AMX-BF16 or AVX512-BF16)."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in probes)


def choose_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The compute dtype and the reason; NANOCHAT_DTYPE=float32|bfloat16|float16 overrides."""
    if wanted := os.environ.get("NANOCHAT_DTYPE"):
        if wanted not in DTYPES:
            raise ConfigError(f"NANOCHAT_DTYPE={wanted!r} is unknown; choose {', '.join(DTYPES)}")
        return DTYPES[wanted], "NANOCHAT_DTYPE says so"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16, f"sm_{major}{minor} multiplies it"
        return torch.float16, f"sm_{major}{minor} has no bfloat16; gradients are scaled"
    if device.type == "cpu" and cpu_has_fast_bfloat16():
        return torch.bfloat16, "this processor multiplies it"
    return torch.float32, f"no faster type on this {device.type}"


@contextlib.contextmanager
def progress(
    description: str, total: int | None, unit: str = ""
) -> Iterator[Callable[[int], None]]:
    """Yields advance(n=1), on rank 0 a bar on a terminal, or a line every ten seconds in a log."""
    if rank_and_world()[0] != 0:
        yield lambda n=1: None
    elif sys.stdout.isatty():
        from rich.progress import Progress

        with Progress(transient=True) as bar:
            task = bar.add_task(f"{description} {unit}".strip(), total=total)
            yield lambda n=1: bar.advance(task, n)
    else:
        done, last = 0, time.monotonic()

        def advance(n: int = 1) -> None:
            nonlocal done, last
            done += n
            if time.monotonic() - last > 10:
                last = time.monotonic()
                of_total = f" of {total:,}" if total else ""
                print0(f"{description}: {done:,}{of_total} {unit}".rstrip())

        yield advance
