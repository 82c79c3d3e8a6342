"""AdamW (Loshchilov & Hutter 2019): the update as a pure function, and an optimizer around it."""

import torch

from nanochat.common import CheckpointError


def adamw_update(p, grad, exp_avg, exp_avg_sq, step, lr, betas, eps, weight_decay) -> None:
    """One step, in place, on lists of equal length of float32 tensors; `step` counts from 1.

    p <- p (1 - lr wd) - lr m_hat / (sqrt(v_hat) + eps), with m_hat = m / (1 - b1^step),
    v_hat = v / (1 - b2^step). PyTorch's own kernel reads and writes every number once.
    """
    steps = [torch.full((), step, dtype=torch.float32, device=x.device) for x in p]
    torch._fused_adamw_(
        p, grad, exp_avg, exp_avg_sq, [], steps, lr=lr, beta1=betas[0], beta2=betas[1],
        weight_decay=weight_decay, eps=eps, amsgrad=False, maximize=False,
    )  # fmt: skip


class NamedOptimizer:
    """An optimizer whose state, named in STATE, is full tensors by parameter name.

    groups: [{"params": {name: parameter}, "lr": ..., ...}]; each also gets "initial_lr", which
    schedules multiply.

    subtle: not a torch.optim.Optimizer, which imports torch's compiler: seconds at every start.
    """

    STATE: tuple[str, ...] = ()

    def __init__(self, groups: list[dict], defaults: dict):
        self.num_steps, self.param_groups, self.state = 0, [], {}
        for group in groups:
            group = {**defaults, **group}
            names, params = list(group["params"]), list(group["params"].values())
            group |= {"names": names, "params": params, "initial_lr": group["lr"]}
            self.param_groups.append(group)
            self.state |= {p: {key: torch.zeros_like(p) for key in self.STATE} for p in params}

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """{"parameter name.state name": tensor} and the step count."""
        tensors = {"num_steps": torch.tensor(self.num_steps)}
        for group in self.param_groups:
            for name, p in zip(group["names"], group["params"], strict=True):
                tensors |= {f"{name}.{key}": self.state[p][key] for key in self.STATE}
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """The inverse of state_tensors; raises CheckpointError when names or shapes differ."""
        own = self.state_tensors()
        if differing := sorted(own.keys() ^ tensors.keys()):
            raise CheckpointError(
                f"optimizer state and model disagree on {len(differing)} names, first "
                f"{differing[0]!r}: another architecture or optimizer was saved"
            )
        for name, tensor in own.items():
            if tensors[name].shape != tensor.shape:
                found, expected = tuple(tensors[name].shape), tuple(tensor.shape)
                raise CheckpointError(f"optimizer state {name} is {found}, expected {expected}")
            tensor.copy_(tensors[name])
        self.num_steps = int(tensors["num_steps"])


class AdamW(NamedOptimizer):
    """AdamW on named parameters: the embedding and the head."""

    STATE = ("exp_avg", "exp_avg_sq")

    def __init__(self, groups, lr=1e-3, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0):
        super().__init__(groups, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:
        self.num_steps += 1
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            averages = ([self.state[p][name] for p in params] for name in self.STATE)
            settings = (group[name] for name in ("lr", "betas", "eps", "weight_decay"))
            adamw_update(params, grads, *averages, self.num_steps, *settings)
