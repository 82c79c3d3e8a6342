"""AdamW against torch's own, and its state in and out."""

import pytest
import torch

from nanochat.adamw import AdamW, adamw_update
from nanochat.common import CheckpointError


def plain_update(p, grad, exp_avg, exp_avg_sq, step, lr, betas, eps, weight_decay) -> None:
    """adamw_update by its definition."""
    b1, b2 = betas
    torch._foreach_lerp_(exp_avg, grad, 1 - b1)
    torch._foreach_mul_(exp_avg_sq, b2)
    torch._foreach_addcmul_(exp_avg_sq, grad, grad, 1 - b2)
    denominator = torch._foreach_sqrt(exp_avg_sq)
    torch._foreach_div_(denominator, (1 - b2**step) ** 0.5)
    torch._foreach_add_(denominator, eps)
    if weight_decay:
        torch._foreach_mul_(p, 1 - lr * weight_decay)
    torch._foreach_addcdiv_(p, exp_avg, denominator, -lr / (1 - b1**step))


def parameters():
    torch.manual_seed(1)
    return {"a": torch.nn.Parameter(torch.randn(5, 3)), "b": torch.nn.Parameter(torch.randn(7))}


def set_gradients(named, step):
    generator = torch.Generator().manual_seed(step)
    for p in named.values():
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.slow
def test_equals_torch(weight_decay):
    ours, theirs = parameters(), parameters()
    options = dict(lr=0.01, betas=(0.8, 0.95), eps=1e-8, weight_decay=weight_decay)
    a = AdamW([{"params": ours}], **options)
    b = torch.optim.AdamW(theirs.values(), **options)
    for step in range(10):
        for named, optimizer in ((ours, a), (theirs, b)):
            set_gradients(named, step)
            optimizer.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


def test_state_round_trip_continues_exactly():
    straight, resumed = parameters(), parameters()
    a = AdamW([{"params": straight}], lr=0.01)
    for step in range(6):
        set_gradients(straight, step)
        a.step()
        if step == 2:
            tensors = {name: tensor.clone() for name, tensor in a.state_tensors().items()}
            for name in straight:
                resumed[name].data.copy_(straight[name])
            b = AdamW([{"params": resumed}], lr=0.01)
            b.load_state_tensors(tensors)
        elif step > 2:
            set_gradients(resumed, step)
            b.step()
    for name in straight:
        assert torch.equal(straight[name], resumed[name])


def test_state_of_another_model_is_refused():
    a = AdamW([{"params": parameters()}])
    state = a.state_tensors()
    with pytest.raises(CheckpointError, match="another architecture"):
        a.load_state_tensors({k: v for k, v in state.items() if k != "a.exp_avg"})
    with pytest.raises(CheckpointError, match=r"b.exp_avg is \(2,\), expected \(7,\)"):
        a.load_state_tensors({**state, "b.exp_avg": torch.zeros(2)})


def test_the_fused_update_is_the_plain_one():
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(37, 19, generator=generator) for _ in range(2)]
    states = [
        ([v.clone() for v in values], *([torch.zeros(37, 19) for _ in values] for _ in range(2)))
        for _ in range(2)
    ]
    for step in (1, 2, 3):
        grads = [torch.randn(37, 19, generator=generator) for _ in values]
        for update, (p, m, v) in zip((plain_update, adamw_update), states, strict=True):
            update(p, grads, m, v, step, 0.1, (0.8, 0.95), 1e-10, 0.1)
    for plain, fused in zip(*states, strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-5, atol=1e-6)
