"""Layers that cast or have gradients of their own (Linear, ReluSquared).

8-bit products train wide models on cards that have them (sm89 on). Each tensor is scaled so that
its largest entry is the format's largest (Micikevicius et al. 2022): e4m3 for inputs and weights,
e5m2 for gradients. The slow twin is Linear without them.
"""

import torch
import torch.nn.functional as F
from torch import nn

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def quantize(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(x / scale in `dtype`, scale), the scale a float32 scalar.

    Example: quantize([1.0, -448.0], E4M3) gives [1.0, -448.0] and 1.0.
    """
    scale = x.abs().amax().float().clamp(min=1e-12) / torch.finfo(dtype).max
    return (x.float() / scale).to(dtype), scale


def product(a: tuple, b: tuple, dtype: torch.dtype, fast: bool) -> torch.Tensor:
    """a @ b of quantized matrices in `dtype`; a row-major, b column-major, as the hardware wants.

    fast: partial sums of 8-bit accuracy, good enough forwards and not for gradients.
    """
    (x, scale_x), (y, scale_y) = a, b
    return torch._scaled_mm(x, y, scale_x, scale_y, out_dtype=dtype, use_fast_accum=fast)


def column_major(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t()


class Product8(torch.autograd.Function):
    """x (N, C) @ weight (R, C)^T -> (N, R), and both gradients, each in 8 bits."""

    @staticmethod
    def forward(ctx, x, weight):
        x8, weight8 = quantize(x, E4M3), quantize(weight, E4M3)
        ctx.save_for_backward(*x8, *weight8)
        return product(x8, (weight8[0].t(), weight8[1]), x.dtype, fast=True)

    @staticmethod
    def backward(ctx, grad):
        x8, scale_x, weight8, scale_w = ctx.saved_tensors
        grad8, scale = quantize(grad, E5M2)
        grad_x = product((grad8, scale), (column_major(weight8), scale_w), grad.dtype, fast=False)
        by_row = grad8.t().contiguous(), scale
        grad_w = product(by_row, (column_major(x8), scale_x), torch.float32, fast=False)
        return grad_x, grad_w


def linear8(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """F.linear in 8 bits, of bfloat16 x (..., C) and float32 weight (R, C); R, C and the rows of x
    must be multiples of 16."""
    return Product8.apply(x.flatten(0, -2), weight).view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """A linear map without bias whose float32 master weight is cast to the input's dtype. fp8:
    products in 8 bits where gradients are taken, not in evaluation."""

    fp8 = False

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fp8 and torch.is_grad_enabled():
            return linear8(x, self.weight)
        return F.linear(x, self.weight.to(x.dtype))

    def use_in(self, function, x: torch.Tensor, *rest):
        """function(x, weight, *rest), for a product that is not made here."""
        return function(x, self.weight, *rest)


class ReluSquared(torch.autograd.Function):
    """relu(x)^2; its gradient 2 relu(x) is 2 sqrt(y), so that only y is kept."""

    @staticmethod
    def forward(ctx, x):
        y = F.relu(x).square()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return (2 * y.float().sqrt() * grad.float()).to(grad.dtype)
