"""Muon: what the orthogonalisation promises, against the singular value decomposition."""

import pytest
import torch

from nanochat.muon import Muon, muon_update, orthogonalize


@pytest.mark.parametrize("shape", [(32, 32), (64, 16), (16, 64), (3, 24, 48)])
def test_singular_values_end_near_one(shape):
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), torch.float32))
    assert values.min() > 0.3 and values.max() < 1.3


def test_singular_vectors_are_kept():
    x = torch.randn(24, 40)
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    core = u.T @ orthogonalize(x, torch.float32) @ vt.T  # diagonal, if the vectors are the same
    off_diagonal = core - torch.diag(core.diagonal())
    assert off_diagonal.abs().max() < 1e-3


def test_bfloat16_is_close_to_float32():
    x = torch.randn(48, 32)
    exact = orthogonalize(x, torch.float32)
    assert (orthogonalize(x).float() - exact).norm() < 0.05 * exact.norm()


def test_scale_of_the_gradient_does_not_matter():
    x = torch.randn(16, 16)
    a, b = orthogonalize(x, torch.float32), orthogonalize(x * 1e4, torch.float32)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_momentum_is_nesterov_and_in_place():
    grad, momentum = torch.randn(1, 8, 4), torch.randn(1, 8, 4)
    new = 0.9 * momentum + 0.1 * grad
    expected = orthogonalize(0.1 * grad + 0.9 * new, torch.float32) * (8 / 4) ** 0.5
    torch.testing.assert_close(muon_update(grad, momentum, 0.9, torch.float32), expected)
    torch.testing.assert_close(momentum, new)


def test_batching_by_shape_equals_one_by_one():
    shapes = {"a": (8, 8), "b": (8, 8), "c": (16, 8)}
    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    grads = {name: torch.randn(shape) for name, shape in shapes.items()}
    together = {name: torch.nn.Parameter(v.clone()) for name, v in values.items()}
    alone = {name: torch.nn.Parameter(v.clone()) for name, v in values.items()}
    optimizers = [Muon([{"params": together}], dtype=torch.float32)]
    optimizers += [Muon([{"params": {n: p}}], dtype=torch.float32) for n, p in alone.items()]
    for name in shapes:
        together[name].grad, alone[name].grad = grads[name].clone(), grads[name].clone()
    for optimizer in optimizers:
        optimizer.step()
    for name in shapes:
        torch.testing.assert_close(together[name], alone[name])
        assert not torch.equal(together[name], values[name])
