"""Causal attention within documents: by PyTorch, and by attention.cpp, its fast twin on a CPU.

PyTorch computes whole rows under a mask. The twin reads a document's own keys alone, so that rows
of short documents take a fifth of the time.
"""

from ctypes import c_bool, c_int64, c_void_p

import torch
import torch.nn.functional as F

from nanochat.cpp import addresses, load_openmp, processor

SIGNATURES = {
    "forward": ((*[c_void_p] * 5, c_bool, *[c_void_p] * 2), None),
    "backward": ((*[c_void_p] * 8, c_bool, *[c_void_p] * 3), None),
}
INSTEAD = "PyTorch's attention is used, in several times the time"
DTYPES = torch.float32, torch.bfloat16
MOST = 512  # places of a row; longer ones fit the caches worse than PyTorch's blocks


def document_numbers(inputs: torch.Tensor, start: int) -> torch.Tensor:
    """inputs (B, T), documents that each begin with the id `start` -> their numbers (B, T)."""
    return (inputs == start).cumsum(1)


def attention(q, k, v, documents: torch.Tensor | None) -> torch.Tensor:
    """softmax(q k^T / sqrt(K)) v (B, T, H, K) over the places up to each, with `documents` (B, T)
    those of the same number alone (Zhao et al. 2024); q (B, T, H, K), k and v (B, T, Hkv, K)."""
    mask = None
    if documents is not None:
        mask = (documents[:, None, :, None] == documents[:, None, None, :]).tril()  # (B, 1, T, T)
    kinds = {"is_causal": mask is None, "enable_gqa": q.shape[2] != k.shape[2]}
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H or Hkv, T, K)
    return F.scaled_dot_product_attention(q, k, v, mask, **kinds).transpose(1, 2)


def cpu_attention(q, k, v, documents: torch.Tensor | None) -> torch.Tensor:
    """As attention; in rows of at most MOST by attention.cpp, where there is a C++ compiler."""
    compiled = load_openmp("attention", processor(), INSTEAD, **SIGNATURES)
    if compiled is None or q.dtype not in DTYPES or q.shape[1] > MOST:
        return attention(q, k, v, documents)
    return CpuAttention.apply(q, k, v, documents, compiled)


class CpuAttention(torch.autograd.Function):
    """attention, and its gradients by q, k and v, by the functions of a compiled library."""

    @staticmethod
    def forward(ctx, q, k, v, documents, compiled):
        q, k, v = (x.contiguous() for x in (q, k, v))
        (B, T, H, K), Hkv = q.shape, k.shape[2]
        out, lse = torch.empty_like(q), torch.empty(B, H, T)
        kind = (c_int64 * 5)(B, T, H, Hkv, K), q.dtype == torch.bfloat16
        ctx.compiled, ctx.kind = compiled, kind
        compiled.forward(*addresses(q, k, v, documents), *ctx.kind, *addresses(out, lse))
        ctx.save_for_backward(q, k, v, out, lse, documents)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse, documents = ctx.saved_tensors
        read = q, k, v, out, grad.contiguous(), lse, documents
        gradients = [torch.empty_like(x) for x in (q, k, v)]
        ctx.compiled.backward(*addresses(*read), *ctx.kind, *addresses(*gradients))
        return *gradients, None, None
