"""What every part stands on: device, dtype and ranks; paths and atomic writes; errors; progress."""

import atexit
import contextlib
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel


class NanochatError(Exception):
    """Something that the user can cause, and mend: shown as its message, without a traceback."""


class ConfigError(NanochatError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(NanochatError):
    """Data that is missing, unreachable or malformed."""


class CheckpointError(NanochatError):
    """A checkpoint that is missing, damaged, or does not belong to what it is used with."""


# ---------------------------------------------------------------- ranks and devices


def rank_and_world() -> tuple[int, int]:
    """(rank, world size): (0, 1) outside torchrun."""
    if dist.is_available() and dist.is_initialized():
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


def least_of_ranks(number: int, device: torch.device) -> int:
    """The smallest of the ranks' numbers, on every rank."""
    tensor = torch.tensor(number, device=device)
    if rank_and_world()[1] > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor)


def barrier() -> None:
    """Waits until every rank is here."""
    if rank_and_world()[1] > 1:
        dist.barrier()


def pick_device_type(wanted: str = "auto") -> str:
    """ "cuda", "mps" or "cpu": what was asked for, or the best that is there."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return next(name for name, there in available.items() if there)
    if wanted not in available:
        raise ConfigError(f"device type {wanted!r} is unknown; choose one of auto, cuda, mps, cpu")
    if not available[wanted]:
        raise ConfigError(
            f"device type {wanted!r} was asked for, but PyTorch {torch.__version__} finds none here"
        )
    return wanted


def compute_init(
    device_type: str = "auto", seed: int = 42, deterministic: bool = False
) -> tuple[bool, int, int, int, torch.device]:
    """Joins the ranks that torchrun started, if it did, and picks the device.

    Returns (ddp, ddp_rank, ddp_local_rank, ddp_world_size, device) and prints which device and
    compute dtype were chosen, and why. Seeds every generator with `seed`. On a CPU always, on
    CUDA if `deterministic`, equal runs give equal bits.
    """
    device_type = pick_device_type(device_type)
    ddp = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    rank, local_rank, world_size = 0, 0, 1
    if ddp:
        rank, local_rank, world_size = (
            int(os.environ[k]) for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        )
    device = torch.device(f"cuda:{local_rank}" if device_type == "cuda" else device_type)
    if device_type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if device_type == "cpu" or deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if ddp and not dist.is_initialized():
        backend = "nccl" if device_type == "cuda" else "gloo"
        dist.init_process_group(backend, device_id=device if device_type == "cuda" else None)
        if backend == "gloo":  # subtle: its threads abort a process that ends inside the group
            atexit.register(compute_cleanup)
    torch.manual_seed(seed)
    dtype, reason = choose_dtype(device)
    print0(
        f"device: {device_name(device)} x {world_size}; compute dtype {str(dtype)[6:]} ({reason})"
    )
    return ddp, rank, local_rank, world_size, device


def compute_cleanup() -> None:
    """Leaves the group of ranks, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def attention_backends(device: torch.device, fixed_shapes: bool = True):
    """A context in which scaled_dot_product_attention prefers this device's fastest kernels.

    fixed_shapes: whether shapes repeat, as in training; cuDNN plans anew for each one.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    names = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if fixed_shapes and torch.cuda.get_device_capability(device) >= (9, 0):
        names = [SDPBackend.CUDNN_ATTENTION, *names]
    return sdpa_kernel(names, set_priority=True)


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


def cpu_has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware (AMX-BF16 or AVX512-BF16)."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in probes)


def choose_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The compute dtype and the reason; NANOCHAT_DTYPE=float32|bfloat16|float16 overrides."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted := os.environ.get("NANOCHAT_DTYPE"):
        if wanted not in names:
            raise ConfigError(
                f"NANOCHAT_DTYPE={wanted!r} is unknown; choose one of {', '.join(names)}"
            )
        return names[wanted], "NANOCHAT_DTYPE says so"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16, f"sm_{major}{minor} multiplies it"
        return torch.float16, f"sm_{major}{minor} has no bfloat16; gradients are scaled"
    if device.type == "cpu" and cpu_has_fast_bfloat16():
        return torch.bfloat16, "this processor multiplies it"
    return torch.float32, f"no faster type on this {device.type}"


def cpp_compiler() -> str | None:
    """The command, for shlex.split, of the C++ compiler that Inductor would find: $CXX (which may
    have arguments), g++, clang++ or c++; None without one."""
    for name in filter(None, (os.environ.get("CXX", "").strip(), "g++", "clang++", "c++")):
        first, *arguments = shlex.split(name)
        if path := shutil.which(first):
            return shlex.join([path, *arguments])
    return None


# ---------------------------------------------------------------- speed limits and prices

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


def peak_rss() -> int:
    """The most main memory that this process has held, in bytes."""
    # subtle: Linux's ru_maxrss counts what the process that started this one held, too.
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


# ---------------------------------------------------------------- paths and files


def base_dir() -> Path:
    """$NANOCHAT_BASE_DIR, or ~/.cache/nanochat; made if it is not there."""
    path = Path(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat").expanduser()
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomic(path: Path | str, data: str | bytes) -> None:
    """Writes beside `path`, flushes, renames: readers see the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def git_commit() -> str | None:
    """The checkout's commit, "+changes" when the tree differs from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
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


# ---------------------------------------------------------------- progress


@contextlib.contextmanager
def progress(
    description: str, total: int | None, unit: str = ""
) -> Iterator[Callable[[int], None]]:
    """Yields advance(n=1).

    A bar on a terminal, a plain line every ten seconds in a log, nothing on ranks > 0.
    """
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
                print(
                    f"{description}: {done:,}{f' of {total:,}' if total else ''} {unit}".rstrip(),
                    flush=True,
                )

        yield advance
