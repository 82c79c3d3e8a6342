"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum, made orthogonal.

A matrix's update is replaced by the nearest matrix whose singular values are about 1, found by
iterating a polynomial, which needs only matrix products, in bfloat16.
"""

from collections.abc import Iterator

import torch

from nanochat.adamw import NamedOptimizer

# Of the polynomial a X + b (X X^T) X + c (X X^T)^2 X. Jordan et al. chose coefficients of the
# steepest slope at 0, so that singular values end between about 0.7 and 1.2 after five iterations.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(
    matrices: torch.Tensor, dtype: torch.dtype = torch.bfloat16, iterations: int = 5
) -> torch.Tensor:
    """(..., R, C) -> the same shape in `dtype`, singular values near 1, singular vectors kept."""
    a, b, c = COEFFICIENTS
    # subtle: scaled before the cast, because small gradients vanish in float16.
    x = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    shape, x = x.shape, x.reshape(-1, *x.shape[-2:])
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.view(shape)
    return x.mT if tall else x


def muon_update(grads, momenta, momentum, dtype: torch.dtype, iterations=5) -> torch.Tensor:
    """Stacked gradients and momenta (G, R, C) -> the direction to subtract at lr 1; momenta change
    in place. Nesterov: lerp(grad, new momentum, momentum) is orthogonalised. Tall matrices step
    sqrt(R / C) further, so that outputs change alike for every shape."""
    momenta.lerp_(grads, 1 - momentum)
    direction = orthogonalize(grads.lerp(momenta, momentum), dtype, iterations)
    rows, columns = grads.shape[-2:]
    return direction.float() * max(1, rows / columns) ** 0.5


class Muon(NamedOptimizer):
    """Muon on named 2-D parameters; matrices of one shape are orthogonalised in one batch."""

    STATE = ("momentum_buffer",)

    def __init__(
        self, groups, weight_decay=0.0, dtype=torch.bfloat16, iterations=5, compiled=False
    ):
        super().__init__(groups, dict(lr=0.02, momentum=0.95, weight_decay=weight_decay))
        self.dtype, self.iterations = dtype, iterations
        self.update = torch.compile(muon_update, dynamic=False) if compiled else muon_update
        self.stacks = []  # group, params, momenta (G, R, C)
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                momenta = params[0].new_zeros(len(params), *shape)
                for p, momentum_buffer in zip(params, momenta, strict=True):
                    self.state[p]["momentum_buffer"] = momentum_buffer  # a view
                self.stacks.append((group, params, momenta))

    def directions(self) -> Iterator[tuple[dict, list, torch.Tensor]]:
        """Moves the momenta on; (group, parameters of one shape, where to move them)."""
        self.num_steps += 1
        for group, params, momenta in self.stacks:
            grads = torch.stack([p.grad for p in params])
            # a tensor, because a compiled function is compiled anew for every number
            momentum = torch.full((), group["momentum"], device=grads.device)
            yield group, params, self.update(grads, momenta, momentum, self.dtype, self.iterations)

    @torch.no_grad()
    def step(self) -> None:
        for group, params, directions in self.directions():
            descend(params, directions, group)


def descend(params: list, directions, group: dict) -> None:
    """Decays the parameters and moves them against their directions, in place."""
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(params, list(directions), alpha=-group["lr"])
