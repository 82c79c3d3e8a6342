"""A decode step's work on the CPU in bfloat16: cpu_kernels.cpp, or PyTorch.

A decode step reads every weight for a few rows. On one core of a Zen 4, PyTorch's products then
reach a third to a half of the memory bandwidth, these about 85%; its attention of single queries
took half of a step of 32 sequences.
"""

import ctypes
import os
import platform
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

from nanochat.common import ConfigError
from nanochat.cpp import Source, cpp_compiler, load

SOURCE = Source(
    "cpu_kernels",
    (Path(__file__).with_suffix(".cpp"),),
    # OpenMP, because its threads are then those that PyTorch's own products run on
    ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-mavx512f", "-mavx512bw", "-mavx512vl",
     "-mavx512bf16"),
)  # fmt: skip
INSTEAD = "PyTorch's own kernels are used: one answer then takes two and a half times as long"
# Every function takes so many addresses, so many sizes, and one thing more.
SIGNATURES = {
    "few_row_product": (3, 3, c_int),
    "single_attention": (6, 6, c_int),
    "rotate_and_keep": (8, 5, c_float),
    "rms_norm": (2, 2, c_float),
}
MOST_ROWS = 64  # beyond it PyTorch's linear layer is as fast


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (N, I) times weight (O, I): (N, O), on any device.

    Example: product(torch.ones(1, 32), torch.ones(4, 32)) is 32 everywhere, (1, 4).
    """
    (N, I), (O, _) = x.shape, weight.shape  # noqa: E741
    if I % 32 or O % 4 or (kernels := library_for(x)) is None:
        return F.linear(x, weight)
    x, out = x.contiguous(), torch.empty(N, O, dtype=x.dtype)
    addresses = x.data_ptr(), weight.data_ptr(), out.data_ptr()
    kernels.few_row_product(*addresses, N, I, O, torch.get_num_threads())
    return out


def rms_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """gpt.norm of x (N, D), on any device."""
    if x.shape[1] % 16 or not x.is_contiguous() or (kernels := library_for(x)) is None:
        return F.rms_norm(x, x.shape[-1:], eps=eps)
    out = torch.empty_like(x)
    kernels.rms_norm(x.data_ptr(), out.data_ptr(), *x.shape, eps)
    return out


def can_attend(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `attend_singles` works here."""
    fits = device.type == "cpu" and dtype == torch.bfloat16 and head_dim in (64, 128, 256, 512)
    return fits and library() is not None


def attend_singles(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """Attention of single queries q (N, H, K), each to the first lengths[n] places of slot slots[n]
    of keys and values (R, Hkv, S, K): (N, H K). Only where `can_attend`."""
    N, H, K = q.shape
    assert q.stride()[1:] == (K, 1) and keys.is_contiguous() and values.is_contiguous()
    out = torch.empty(N, H * K, dtype=q.dtype)
    tensors = q, keys, values, slots, lengths, out
    sizes = N, H, keys.shape[1], keys.shape[2], K, q.stride(0)
    threads = torch.get_num_threads()
    library().single_attention(*(t.data_ptr() for t in tensors), *sizes, threads)
    return out


def rotate_and_keep(
    qkv: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    positions: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Rotates and normalises queries and keys of qkv (N, H + 2 Hkv, K), keeps keys and values in
    their slots (R, Hkv, S, K), returns the queries (N, H, K). tables: cos and sin, (..., K) for a
    position. Only where `can_attend`."""
    (N, heads, K), (_, Hkv, room, _) = qkv.shape, keys.shape
    H = heads - 2 * Hkv
    assert qkv.is_contiguous() and keys.is_contiguous() and values.is_contiguous()
    q = torch.empty(N, H, K, dtype=qkv.dtype)
    tensors = qkv, *tables, slots, positions, q, keys, values
    library().rotate_and_keep(*(t.data_ptr() for t in tensors), N, H, Hkv, room, K, eps)
    return q


def library_for(x: torch.Tensor) -> ctypes.CDLL | None:
    """The compiled functions if they serve x (N, D), else None."""
    few = x.device.type == "cpu" and x.dtype == torch.bfloat16 and len(x) <= MOST_ROWS
    return library() if few else None


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where PyTorch does the work: by NANOCHAT_CPU_KERNELS=torch,
    on other processors, or after a line that says why not."""
    wanted = os.environ.get("NANOCHAT_CPU_KERNELS", "")
    if wanted not in ("", "torch"):
        raise ConfigError(f"NANOCHAT_CPU_KERNELS={wanted!r} is unknown; choose torch, or unset it")
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    if wanted == "torch" or platform.system() != "Linux" or not probe():
        return None  # it was asked for, or made for other processors: nothing to say
    kernels = load(SOURCE, cpp_compiler(), INSTEAD)
    if kernels is None:
        return None
    for name, (addresses, sizes, last) in SIGNATURES.items():
        function = getattr(kernels, name)
        function.argtypes = [c_void_p] * addresses + [c_int64] * sizes + [last]
        function.restype = None
    return kernels
