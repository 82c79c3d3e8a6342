"""Cross-entropy of soft-capped logits: a plain twin, and a chunked one that never holds all logits.

Dimensions: N tokens (B * T), D model width, V vocabulary.
"""

import math
from ctypes import c_bool, c_float, c_int64, c_void_p
from functools import partial

import torch
import torch.nn.functional as F

from nanochat.attention import DTYPES, cpu_attention
from nanochat.cpp import addresses, load_openmp, processor
from nanochat.gpt import Attention, Block, soft_cap

# Logits made at a time: on a CPU 16 MiB in float32, which fit its cache; else 1 GiB.
CPU_CHUNK_LOGITS, CHUNK_LOGITS = 2**22, 2**28
GATHER_MULTIPLE = 128
SAFE_CAP = 60.0  # float32 holds the sum of 2^30 times exp(60), and exp(-60)
ROWS = (*[c_void_p] * 4, c_int64, c_int64, c_float, c_bool, c_void_p), None


def plain_loss(features, weight, targets, softcap: float | None, factors=None) -> torch.Tensor:
    """Sum of -log p(target), times its factor, over targets != -1: chunked_loss by definition, and
    what it does where no gradient is wanted."""
    logits = soft_cap(F.linear(features, weight.to(features.dtype)).float(), softcap)  # (N, V)
    losses = F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")
    return (losses if factors is None else losses * factors).sum()


def loss_and_grad(
    logits, targets, softcap: float | None, factors=None, bias=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits (N, V) before the soft-cap -> (sum of losses, its gradient by the logits, same dtype).

    With y = c tanh(x / c) = c (2 s - 1), s = sigmoid(2 x / c), p = softmax(y):
    d loss / d x = (p - onehot(target)) 4 s (1 - s).
    factors: of each target's loss, (N,) float32, or None. bias: (V,), added to y.
    """
    valid = (targets >= 0).float() * (1 if factors is None else factors)  # (N,)
    y, slope = logits.float(), 1
    if softcap is not None:  # by a sigmoid, which costs a CPU a third less than tanh
        s = torch.sigmoid(y * (2 / softcap))
        y, slope = softcap * (2 * s - 1), 4 * s * (1 - s)
    y = y if bias is None else y + bias
    if softcap is not None and softcap <= SAFE_CAP:  # then exp needs no maximum: one pass less
        lse = y.exp().sum(dim=-1, keepdim=True).log()
    else:
        lse = torch.logsumexp(y, dim=-1, keepdim=True)
    index = targets.clamp(min=0)[:, None]
    losses = (lse - y.gather(1, index))[:, 0]
    hit = torch.arange(y.shape[1], device=y.device)[None] == index
    grad = (torch.exp(y - lse) - hit.to(y.dtype)) * slope * valid[:, None]
    return (losses * valid).sum(), grad.to(logits.dtype)


def fast_kernel(processor: str, vocab_size: int, softcap: float | None):
    """loss_and_grad by loss.cpp, or None; the gradient takes the place of the logits."""
    suitable = softcap is not None and softcap <= SAFE_CAP and vocab_size % 16 == 0
    library = suitable and load_openmp("loss", processor, "PyTorch compiles it", rows=ROWS)
    if not library:
        return None

    def loss_and_grad(logits, targets, softcap: float, factors=None, bias=None):
        losses, kind = torch.empty(len(logits)), logits.dtype == torch.bfloat16
        read = addresses(logits, targets, factors, bias)
        library.rows(*read, *logits.shape, softcap, kind, *addresses(losses))
        return losses.sum(), logits

    return loss_and_grad


class ChunkedLoss(torch.autograd.Function):
    """Loss and gradients, chunk by chunk, in the forward pass; the backward pass scales them."""

    @staticmethod
    def forward(ctx, features, weight, targets, softcap, kernel, need_grad, factors):
        cast = weight.to(features.dtype)
        at_once = CPU_CHUNK_LOGITS if features.device.type == "cpu" else CHUNK_LOGITS
        rows = max(1, at_once // weight.shape[0])
        total = torch.zeros((), device=features.device)
        grad_features = torch.empty_like(features) if need_grad else None
        # subtle: sums are float32 also where ranks hold the weight in 16 bits
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_grad else None
        # subtle: CUDA's product of 16-bit matrices adds into float32 itself, in one pass
        adds = weight.is_cuda and cast.dtype != torch.float32
        for start in range(0, len(features), rows):
            part = slice(start, start + rows)
            chunk, rest = features[part], (targets[part], softcap)
            rest += () if factors is None else (factors[part],)
            if not need_grad:
                total += plain_loss(chunk, cast, *rest)
                continue
            loss, grad = kernel(chunk @ cast.t(), *rest)
            total += loss
            torch.mm(grad, cast, out=grad_features[part])
            if adds:
                dtype = torch.float32
                torch.addmm(grad_weight, grad.t(), chunk, out_dtype=dtype, out=grad_weight)
            else:
                grad_weight += grad.t() @ chunk
        ctx.save_for_backward(grad_features, grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad_output):
        grad_features, grad_weight = ctx.saved_tensors
        scaled = grad_features * grad_output.to(grad_features.dtype)
        return scaled, grad_weight * grad_output, *[None] * 5


def chunked_loss(features, weight, targets, softcap, kernel=loss_and_grad, factors=None):
    """plain_loss of features (N, D), weight (V, D), targets (N,), one chunk in memory at a time.
    kernel: loss_and_grad or a faster form."""
    rest = targets, softcap, kernel, torch.is_grad_enabled(), factors
    return ChunkedLoss.apply(features, weight, *rest)


def sample_ids(targets, vocab_size: int, size: int) -> tuple[torch.Tensor, ...]:
    """About `size` ids as the vocabulary of a micro-batch: (ids (C,), targets (N,) as places in it,
    bias (C,)). It has all targets and others at random; the sum of exp(logit + bias) over it is, on
    average, that of exp(logit) over all ids (sampled softmax, Jean et al. 2015)."""
    with targets.device:
        wanted = torch.zeros(vocab_size, dtype=torch.bool)
        wanted[targets[targets >= 0]] = True
        seen, others = wanted.nonzero()[:, 0], (~wanted).nonzero()[:, 0]
        # subtle: an odd multiple of 64, so never the number of rows; equal ones are compiled anew
        size = min(max(size, 2 * len(seen)) // 128 * 128 + 64, vocab_size)
        # subtle: by the CPU's generator, which a resumed run restores on every device
        order = torch.randperm(len(others), device="cpu")[: size - len(seen)]
        drawn = others[order.to(targets.device)]
        ids = torch.cat([seen, drawn])
        place = torch.full((vocab_size + 1,), -1)  # the last is that of no target, -1
        place[ids] = torch.arange(len(ids))
        bias = torch.zeros(len(ids))
        bias[len(seen) :] = math.log(max(1, len(others)) / max(1, len(drawn)))
    return ids, place[targets], bias


def sampled_loss(features, weight, targets, softcap, kernel, factors, size: int) -> torch.Tensor:
    """chunked_loss over sample_ids; its gradient is nearly unbiased."""
    assert torch.is_grad_enabled()
    ids, targets, bias = sample_ids(targets, len(weight), size)
    kernel = partial(kernel, bias=bias)
    return chunked_loss(features, weight[ids], targets, softcap, kernel, factors)


def rows_with_target(targets) -> torch.Tensor:
    """Places (M,) of the targets >= 0 of (N,), and of some without one, so that M is a multiple of
    GATHER_MULTIPLE where there are as many: oneDNN keeps a kernel of some MB for each size."""
    chosen, others = (targets >= 0).nonzero()[:, 0], (targets < 0).nonzero()[:, 0]
    return torch.cat([chosen, others[: -len(chosen) % GATHER_MULTIPLE]])


class LossFn:
    """loss_fn(model, batch) -> sum of losses, compiled by Inductor or not; with `by_block` the
    model's blocks are compiled already, one by one.

    On a CPU the head and most of the last block are computed only where there is a target;
    elsewhere that gather would make the host wait. sampled_ids: of a training step, see
    sample_ids; 0: all.
    """

    def __init__(self, model, compiled: bool, by_block: bool = False, sampled_ids: int = 0):
        self.gather, self.sampled_ids = model.device.type == "cpu", sampled_ids
        self.features, self.kernel = model.features, loss_and_grad
        if compiled and not by_block and self.gather:  # one graph for all blocks, shapes, stages
            compile_dynamic = partial(torch.compile, dynamic=True)
            parts = compile_dynamic(Attention.forward), cpu_attention, compile_dynamic(Block.finish)
            self.features = partial(model.features, parts=parts)
        elif compiled and not by_block:
            self.features = torch.compile(model.features, dynamic=False)
        if compiled:  # subtle: gathered rows differ in number, so dynamic, lest each be compiled
            c, dynamic = model.config, self.gather or sampled_ids > 0
            fast = self.gather and model.compute_dtype in DTYPES
            fast = fast and fast_kernel(processor(), c.vocab_size, c.logit_softcap)
            self.kernel = fast or torch.compile(loss_and_grad, dynamic=dynamic)

    def __call__(self, model, batch) -> torch.Tensor:
        targets = batch.targets.flatten()
        factors = None if batch.weights is None else batch.weights.flatten()
        if self.gather:
            chosen = rows_with_target(targets)
            x, targets = self.features(batch.inputs, chosen), targets[chosen]
            factors = None if factors is None else factors[chosen]
        else:
            x = self.features(batch.inputs).flatten(0, 1)  # (N, D)
        rest = targets, model.config.logit_softcap, self.kernel, factors
        if 0 < self.sampled_ids < model.config.vocab_size and torch.is_grad_enabled():
            return model.lm_head.use_in(sampled_loss, x, *rest, self.sampled_ids)
        return model.lm_head.use_in(chunked_loss, x, *rest)
