"""The model on the CPU in one compiled call a pass: decoder.cpp, fused_model.py's fast twin.

A pass over few tokens takes as long as reading the weights, so they are kept once more, packed in
the order of reading, as float32, bfloat16 or int8 (64 inputs of an output share a scale).
"""

import os
import weakref
from collections.abc import Sequence
from ctypes import c_bool, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch

from nanochat.common import ConfigError, cpu_has_fast_bfloat16
from nanochat.cpp import FLAGS, OF_PROCESSOR, Source, cpp_compiler, load, processor
from nanochat.inference.fused_model import FusedModel
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.scheduler import Chunk

INSTEAD = "PyTorch's own kernels are used, in several times the time"
MOST = 64  # tokens of a pass; for more, PyTorch's products use AMX
KINDS = ("float32", "bfloat16", "int8")
SIGNATURES = {
    "new": ([c_void_p, c_float, c_float, c_void_p, c_void_p, c_int, c_bool, c_int], c_void_p),
    "free": ([c_void_p], None),
    "keep": ([c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64, c_int], None),
    "run": ([*[c_void_p] * 4, c_int64, c_void_p, c_int, *[c_void_p] * 2, c_int64, c_int, c_void_p,
             c_int64, c_void_p], c_bool),
    "sample": ([c_void_p, c_void_p, c_void_p, c_int64, c_void_p], None),
}  # fmt: skip


@cache
def library(processor: str) -> SimpleNamespace | None:
    """The compiled functions for a kind of processor: a key of OF_PROCESSOR, or any other; None
    after a line that says why."""
    folder = Path(__file__).parent
    files = folder / "decoder.cpp", *sorted(folder.glob("*.h")), folder.parent / "vectors.h"
    flags = *FLAGS, *OF_PROCESSOR.get(processor, ())
    return load(Source("decoder", files, flags, SIGNATURES), cpp_compiler(), INSTEAD)


class CpuDecoder:
    """Computes passes as `fused` would, from weights of its own. cache_dtype: of the keys and
    values that it reads."""

    def __init__(self, fused: FusedModel, compiled: SimpleNamespace, weights: str):
        self.fused, self.compiled, self.weights, c = fused, compiled, weights, fused.config
        shape = (c.n_layer, c.n_embd, c.n_head, c.n_kv_head, c.head_dim, c.vocab_size, 4 * c.n_embd)
        self.handle = compiled.new(
            (c_int64 * 7)(*shape), c.rms_norm_eps, c.logit_softcap or 0, fused.cos.data_ptr(),
            fused.sin.data_ptr(), KINDS.index(weights),
            fused.dtype == torch.bfloat16 and weights == "bfloat16", torch.get_num_threads(),
        )  # fmt: skip
        if not self.handle:
            raise MemoryError("no memory for the packed weights")
        weakref.finalize(self, compiled.free, self.handle)
        self.cache_dtype = torch.float32 if weights == "float32" else torch.bfloat16
        self.refresh()

    def refresh(self) -> None:
        """Packs the GPT's present weights."""
        _, *matrices = self.fused.masters()
        for index, parts in enumerate(matrices):
            first = 0
            for weight in parts:
                half = weight.dtype == torch.bfloat16
                weight = (weight if half else weight.float()).contiguous()
                address, shape = weight.data_ptr(), weight.shape
                self.compiled.keep(self.handle, index, first, address, *shape, half)
                first += len(weight)

    def is_faster(self, tokens: int) -> bool:
        """Whether a pass of so many tokens is better computed here than by PyTorch."""
        return self.fused.dtype != torch.bfloat16 or tokens <= MOST or not cpu_has_fast_bfloat16()

    def logits(self, chunks: Sequence[Chunk], rows: Sequence[int], cache: KVCache) -> torch.Tensor:
        """As FusedModel.logits_of_rows."""
        ids = [id for chunk in chunks for id in chunk.tokens]
        slots = [chunk.slot for chunk in chunks for _ in chunk.tokens]
        places = [chunk.start + i for chunk in chunks for i in range(len(chunk.tokens))]
        assert max(places) < cache.room and max(slots) < cache.slots
        n, pointers = c_int64 * len(ids), c_void_p * len(cache.layers)
        logits = torch.empty(len(rows), self.fused.config.vocab_size)
        done = self.compiled.run(
            self.handle, n(*ids), n(*slots), n(*places), len(ids),
            self.fused.embedding.data_ptr(), self.fused.dtype == torch.bfloat16,
            *(pointers(*addresses) for addresses in cache.addresses),
            cache.room, cache.dtype == torch.bfloat16, (c_int64 * len(rows))(*rows), len(rows),
            logits.data_ptr(),
        )  # fmt: skip
        if not done:
            raise MemoryError(f"no memory for a pass of {len(ids):,} tokens")
        return logits

    def draw(self, logits: torch.Tensor, table: torch.Tensor) -> list[int]:
        """As sampling.draw."""
        ids = (c_int64 * len(table))()
        self.compiled.sample(self.handle, logits.data_ptr(), table.data_ptr(), len(table), ids)
        return list(ids)


def cpu_decoder(fused: FusedModel, weights: str | None) -> CpuDecoder | None:
    """A decoder for `fused`, where there can be one; weights: see Engine."""
    wanted = os.environ.get("NANOCHAT_CPU_KERNELS", "")
    if wanted not in ("", "torch"):
        raise ConfigError(f"NANOCHAT_CPU_KERNELS={wanted!r} is unknown; choose torch, or unset it")
    if weights not in (None, *KINDS):
        raise ConfigError(f"weights={weights!r} is unknown; choose {', '.join(KINDS)}, or None")
    possible = fused.device.type == "cpu" and wanted != "torch"
    if weights == "int8" and not possible:
        raise ConfigError("int8 weights need the CPU and its compiled kernels (--device-type cpu)")
    if not possible or fused.dtype == torch.float16:
        return None
    if fused.dtype == torch.bfloat16 and weights != "int8":
        weights = "bfloat16"
    compiled = library(processor())
    return None if compiled is None else CpuDecoder(fused, compiled, weights or "float32")
