"""Cross-entropy of soft-capped logits: a plain twin, and a chunked one that never holds all logits.

Dimensions: N tokens (B * T), D model width, V vocabulary.
"""

import torch
import torch.nn.functional as F

from nanochat.gpt import soft_cap

# Logits made at a time: on a CPU 16 MiB in float32, which fit its cache; else 1 GiB.
CPU_CHUNK_LOGITS, CHUNK_LOGITS = 2**22, 2**28
GATHER_MULTIPLE = 128
SAFE_CAP = 60.0  # float32 holds the sum of 2^30 times exp(60), and exp(-60)


def plain_loss(features, weight, targets, softcap: float | None, factors=None) -> torch.Tensor:
    """Sum of -log p(target), times its factor where there are some, over targets != -1, by the
    definition; the twin of chunked_loss."""
    logits = soft_cap(F.linear(features, weight.to(features.dtype)).float(), softcap)  # (N, V)
    losses = F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")
    return (losses if factors is None else losses * factors).sum()


def loss_and_grad(
    logits, targets, softcap: float | None, factors=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits (N, V) before the soft-cap -> (sum of losses, its gradient by the logits, same dtype).

    With y = c tanh(x / c), p = softmax(y): d loss / d x = (p - onehot(target)) (1 - (y / c)^2).
    factors: (N,) float32, one for each target's loss, or None.
    """
    valid = (targets >= 0).float()  # (N,)
    if factors is not None:
        valid = valid * factors
    y = soft_cap(logits.float(), softcap)
    if softcap is not None and softcap <= SAFE_CAP:  # then exp needs no maximum: one pass less
        lse = y.exp().sum(dim=-1, keepdim=True).log()
    else:
        lse = torch.logsumexp(y, dim=-1, keepdim=True)
    index = targets.clamp(min=0)[:, None]
    losses = (lse - y.gather(1, index))[:, 0]
    hit = torch.arange(y.shape[1], device=y.device)[None] == index
    grad = torch.exp(y - lse) - hit.to(y.dtype)
    if softcap is not None:
        grad = grad * (1 - (y / softcap).square())
    grad = grad * valid[:, None]
    return (losses * valid).sum(), grad.to(logits.dtype)


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a @ b, in place; total float32, a and b in compute dtype.

    subtle: CUDA's product of 16-bit matrices adds into float32 itself, one pass over `total`.
    """
    if total.is_cuda and a.dtype != torch.float32:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total += a @ b


class ChunkedLoss(torch.autograd.Function):
    """Loss and gradients, chunk by chunk, in the forward pass; the backward pass scales them."""

    @staticmethod
    def forward(ctx, features, weight, targets, softcap, kernel, need_grad, factors):
        cast = weight.to(features.dtype)
        at_once = CPU_CHUNK_LOGITS if features.device.type == "cpu" else CHUNK_LOGITS
        rows = max(1, at_once // weight.shape[0])
        total = torch.zeros((), device=features.device)
        grad_features = torch.empty_like(features) if need_grad else None
        grad_weight = torch.zeros_like(weight) if need_grad else None
        for start in range(0, len(features), rows):
            part = slice(start, start + rows)
            chunk = features[part]
            given = () if factors is None else (factors[part],)
            loss, grad = kernel(chunk @ cast.t(), targets[part], softcap, *given)
            total += loss
            if need_grad:
                torch.mm(grad, cast, out=grad_features[part])
                add_product(grad_weight, grad.t(), chunk)
        ctx.save_for_backward(grad_features, grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad_output):
        grad_features, grad_weight = ctx.saved_tensors
        scaled = grad_features * grad_output.to(grad_features.dtype)
        return scaled, grad_weight * grad_output, None, None, None, None, None


def chunked_loss(
    features, weight, targets, softcap, kernel=loss_and_grad, factors=None
) -> torch.Tensor:
    """plain_loss of features (N, D), weight (V, D), targets (N,), one chunk in memory at a time.
    kernel: loss_and_grad or its compiled form."""
    need_grad = torch.is_grad_enabled()
    return ChunkedLoss.apply(features, weight, targets, softcap, kernel, need_grad, factors)


def rows_with_target(targets) -> torch.Tensor:
    """Places (M,) of the targets >= 0 of (N,), and of some without one, so that M is a multiple of
    GATHER_MULTIPLE where there are as many: oneDNN keeps a kernel of some MB for each size."""
    chosen, others = (targets >= 0).nonzero()[:, 0], (targets < 0).nonzero()[:, 0]
    return torch.cat([chosen, others[: -len(chosen) % GATHER_MULTIPLE]])


class LossFn:
    """loss_fn(model, batch) -> (sum of losses, number of targets), compiled by Inductor or not;
    with `by_block` the model's blocks are compiled already, one by one.

    On a CPU the head, a third of a small model's work, is computed only where there is a target;
    elsewhere that gather would make the host wait. `features`: the model's own, compiled;
    evaluation shares it on a GPU.
    """

    def __init__(self, model, compiled: bool, by_block: bool = False):
        self.gather, self.features = model.device.type == "cpu", model.features
        if compiled and not by_block:
            self.features = torch.compile(model.features, dynamic=False)
        # subtle: gathered rows differ in number, so dynamic, lest each be compiled
        self.kernel = loss_and_grad
        if compiled:
            self.kernel = torch.compile(loss_and_grad, dynamic=self.gather)

    def __call__(self, model, batch) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.features(batch.inputs).flatten(0, 1)  # (N, D)
        targets = batch.targets.flatten()
        factors = None if batch.weights is None else batch.weights.flatten()
        num_targets = (targets >= 0).sum()
        if self.gather:
            chosen = rows_with_target(targets)
            x, targets = x.index_select(0, chosen), targets[chosen]
            factors = None if factors is None else factors[chosen]
        rest = targets, model.config.logit_softcap, self.kernel, factors
        return model.lm_head.use_in(chunked_loss, x, *rest), num_targets
