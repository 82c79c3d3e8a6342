"""8-bit products against float64."""

import pytest
import torch

from nanochat import layers
from nanochat.gpt import GPT, GPTConfig
from nanochat.layers import ReluSquared


def relative_error(found, expected) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def test_the_largest_entry_becomes_the_formats_largest():
    x, scale = layers.quantize(torch.tensor([1.0, -896.0, 0.0]), layers.E4M3)
    assert float(scale) == 2.0 and x.float().tolist() == [0.5, -448.0, 0.0]
    zeros, _ = layers.quantize(torch.zeros(3), layers.E5M2)
    assert zeros.float().tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("rows, columns", [(64, 128), (256, 64)])
def test_values_and_gradients(rows, columns):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, columns, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(rows, columns, generator=generator).requires_grad_()
    grad = torch.randn(2, 32, rows, generator=generator)
    y = layers.linear8(x, weight)
    y.backward(grad.bfloat16())
    a, w = x.detach().double(), weight.detach().double()
    assert y.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
    assert relative_error(y, a @ w.t()) < 0.06
    assert relative_error(x.grad, grad.double() @ w) < 0.1
    exact = grad.double().flatten(0, 1).t() @ a.flatten(0, 1)
    assert relative_error(weight.grad, exact) < 0.1


def test_only_blocks_and_only_training_use_it():
    model = GPT(GPTConfig.from_depth(2, 320, sequence_len=32))
    model.compute_dtype = torch.bfloat16
    torch.nn.init.normal_(model.model.layers[0].mlp.fc2.weight, std=0.05)
    ids = torch.randint(0, 320, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.features(ids)
        model.use_fp8()
        assert torch.equal(model.features(ids), before)
    trained = model.features(ids)
    assert not torch.equal(trained, before)
    assert relative_error(trained.detach(), before.double()) < 0.1
    assert not model.lm_head.fp8


def test_relu_squared_is_its_definition():
    x = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    assert torch.equal(ReluSquared.apply(x), x.relu().square())
    assert torch.autograd.gradcheck(ReluSquared.apply, (x.detach().abs() + 0.1).requires_grad_())
    ReluSquared.apply(x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach().relu(), rtol=1e-6, atol=0)
