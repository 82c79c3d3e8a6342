"""The chunked loss against its plain twin."""

import math
from dataclasses import replace

import pytest
import torch
from instruction_sets import check, each_set

from nanochat import loss as loss_module
from nanochat.cpp import processor
from nanochat.loss import (
    LossFn,
    chunked_loss,
    fast_kernel,
    loss_and_grad,
    plain_loss,
    sample_ids,
    sampled_loss,
)


def inputs(dtype=torch.float32, N=37, D=16, V=64):
    features = torch.randn(N, D).to(dtype).requires_grad_()
    weight = torch.randn(V, D).requires_grad_()
    targets = torch.randint(0, V, (N,))
    targets[::5] = -1
    return features, weight, targets


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [64, 64 * 10, 64 * 1000])
def test_value_and_gradients_equal_the_plain_twin(softcap, chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "CPU_CHUNK_LOGITS", chunk)
    features, weight, targets = inputs()
    grads, values = [], []
    for function in (plain_loss, chunked_loss):
        value = function(features, weight, targets, softcap)
        grads.append(torch.autograd.grad(value * 0.25, (features, weight)))
        values.append(value)
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-4)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_features_stay_close_to_the_plain_twin():
    features, weight, targets = inputs(torch.bfloat16)
    plain = plain_loss(features, weight, targets, 15.0)
    chunked = chunked_loss(features, weight, targets, 15.0)
    torch.testing.assert_close(plain, chunked, rtol=1e-3, atol=1e-2)
    a, b = (torch.autograd.grad(x, features)[0].float() for x in (plain, chunked))
    assert (a - b).norm() < 0.02 * a.norm()


def test_a_16_bit_weights_gradient_is_summed_in_32(monkeypatch):
    """256 and sixteen times 1, a chunk each: a sum in bfloat16 would stay 256."""
    monkeypatch.setattr(loss_module, "CPU_CHUNK_LOGITS", 2)

    def kernel(logits, targets, softcap):
        return logits.sum().float(), torch.ones_like(logits)

    features = torch.ones(17, 1, dtype=torch.bfloat16, requires_grad=True)
    with torch.no_grad():
        features[0] = 256
    weight = torch.ones(2, 1, dtype=torch.bfloat16, requires_grad=True)
    chunked_loss(features, weight, torch.zeros(17, dtype=torch.long), None, kernel).backward()
    assert weight.grad.flatten().tolist() == [272, 272] and weight.grad.dtype == torch.bfloat16


def test_by_hand_for_two_classes():
    # logits (0, 2) without a soft-cap: loss of class 1 is ln(1 + e^-2), its gradient -/+ 1/(1+e^2).
    value, grad = loss_and_grad(torch.tensor([[0.0, 2.0]]), torch.tensor([1]), None)
    assert value.item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-6)
    p = 1 / (1 + math.exp(2))
    torch.testing.assert_close(grad, torch.tensor([[p, -p]]))


def test_no_target_gives_no_loss_and_no_gradient():
    features, weight, targets = inputs()
    value = chunked_loss(features, weight, torch.full_like(targets, -1), 15.0)
    assert value.item() == 0
    assert torch.autograd.grad(value, weight)[0].abs().max() == 0


def test_gathering_keeps_every_target_and_adds_only_rows_without_one(monkeypatch):
    monkeypatch.setattr(loss_module, "GATHER_MULTIPLE", 8)
    features, weight, targets = inputs(N=37)
    places = loss_module.rows_with_target(targets)
    chosen, kept = features[places], targets[places]
    assert len(places) == len(set(places.tolist())) == 32  # 29 of 37 have a target
    assert kept[kept >= 0].tolist() == targets[targets >= 0].tolist()
    whole = torch.autograd.grad(plain_loss(features, weight, targets, 15.0), (features, weight))
    part = torch.autograd.grad(plain_loss(chosen, weight, kept, 15.0), (features, weight))
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_factors_weigh_each_target(tiny_model, tiny_batch):
    features, weight, targets = inputs()
    factors = torch.linspace(-1, 2, len(targets))
    values = [
        f(features, weight, targets, 15.0, factors=factors) for f in (plain_loss, chunked_loss)
    ]
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-4)
    grads = [torch.autograd.grad(value, (features, weight)) for value in values]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    ones = plain_loss(features, weight, targets, 15.0, torch.ones(len(targets)))
    assert ones.item() == plain_loss(features, weight, targets, 15.0).item()


def test_sampled_ids_have_the_targets_and_stand_for_all():
    targets = torch.tensor([700, 3, -1, 3, 41])
    sums = []
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(2))
    for _ in range(400):
        ids, places, bias = sample_ids(targets, 1000, 200)
        assert len(ids) == len(ids.unique()) == 192 and not bias[:3].any()
        assert places[2] == -1
        assert torch.equal(ids[places[places >= 0]], targets[targets >= 0])
        sums.append((logits[ids] + bias).exp().sum())
    sums, whole = torch.stack(sums), logits.exp().sum()
    assert (sums.mean() - whole).abs() < 4 * sums.std() / 20
    assert 0.05 * whole < sums.std() < 0.2 * whole


def test_more_targets_than_sampled_ids_have_as_many_others():
    ids, *_ = sample_ids(torch.arange(300), 1000, 200)
    assert len(ids) == 576 and set(range(300)) <= set(ids.tolist())
    ids, places, bias = sample_ids(torch.arange(64), 64, 64)
    assert torch.equal(ids, torch.arange(64)) and torch.equal(places, ids) and not bias.any()


@pytest.mark.parametrize("weighted", [False, True])
def test_a_sample_of_all_ids_gives_the_whole_loss(tiny_model, tiny_batch, weighted):
    model, batch = tiny_model(), tiny_batch()
    targets = batch.targets.flatten()
    factors = torch.rand(targets.shape) if weighted else None
    rest = model.lm_head.weight, targets, 15.0, loss_and_grad, factors
    losses = [
        loss(model.features(batch.inputs).flatten(0, 1), *rest, *size)
        for loss, *size in ((chunked_loss,), (sampled_loss, 10_000))
    ]
    whole, sampled = (torch.autograd.grad(loss, list(model.parameters())) for loss in losses)
    torch.testing.assert_close(losses[1], losses[0])
    for a, b in zip(sampled, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_gradient_over_sampled_ids_is_nearly_right_on_average(tiny_model, tiny_batch):
    model, batch = tiny_model(vocab_size=512), tiny_batch(B=1)
    whole, sampled = (LossFn(model, False, sampled_ids=size) for size in (0, 192))
    head = model.lm_head.weight
    expected = torch.autograd.grad(whole(model, batch), head)[0]
    mean = sum(torch.autograd.grad(sampled(model, batch), head)[0] for _ in range(200)) / 200
    assert 0 < (mean - expected).norm() < 0.1 * expected.norm()
    with torch.no_grad():  # as in validation
        assert sampled(model, batch) == whole(model, batch)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_the_compiled_loss_and_its_gradients_agree(tiny_model, tiny_batch, weighted):
    model, batch = tiny_model(), tiny_batch()
    targets = batch.targets.clone()
    targets[:, ::3] = -1
    weights = torch.randn(targets.shape) if weighted else None
    batch = replace(batch, targets=targets, weights=weights)
    features = model.features(batch.inputs).flatten(0, 1)
    plain = plain_loss(
        features,
        model.lm_head.weight,
        targets.flatten(),
        model.config.logit_softcap,
        weights.flatten() if weighted else None,
    )
    losses = [plain, *(LossFn(model, compiled)(model, batch) for compiled in (False, True))]
    grads = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    for loss, grad in zip(losses[1:], grads[1:], strict=True):
        torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-4)
        for a, b in zip(grad, grads[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_compiled_loss_agrees_with_documents_apart_and_over_sampled_ids(tiny_model, tiny_batch):
    model, losses = tiny_model(), []
    model.document_start = 5
    for compiled in (False, True):
        torch.manual_seed(3)  # of the sample
        losses.append(LossFn(model, compiled, sampled_ids=64)(model, tiny_batch(B=1)))
    grads = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-4)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------ the fast kernel, in C++


def kernel_input(N=9, V=112, dtype=torch.float32, scale=10.0) -> tuple:
    """Logits, some far beyond the soft-cap; targets, one row without; factors, biases."""
    generator = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(N, V, generator=generator)).to(dtype)
    targets = torch.randint(0, V, (N,), generator=generator)
    targets[N // 2] = -1
    return logits, targets, torch.randn(N, generator=generator), torch.rand(V, generator=generator)


def assert_kernels_agree(kernel, logits, targets, softcap, *rest):
    expected = loss_and_grad(logits.double(), targets, softcap, *rest)
    loss, grad = kernel(logits.clone(), targets, softcap, *rest)
    assert grad.dtype == logits.dtype
    torch.testing.assert_close(loss.double(), expected[0].double(), rtol=2e-6, atol=1e-5)
    close = {torch.float32: (1e-4, 1e-6), torch.bfloat16: (0.01, 1e-4)}
    rtol, atol = close[logits.dtype]
    torch.testing.assert_close(grad.float(), expected[1].float(), rtol=rtol, atol=atol)


@pytest.fixture
def fast():
    return fast_kernel(processor(), 64, 15.0) or pytest.skip("needs a C++ compiler")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "size", [{}, {"N": 1}, {"V": 16}, {"N": 130, "V": 1472}, {"scale": 500.0}], ids=str
)
@pytest.mark.parametrize("softcap", [3.0, 15.0, 60.0])
def test_the_fast_kernel_is_its_slow_twin(fast, dtype, size, softcap):
    logits, targets, factors, bias = kernel_input(dtype=dtype, **size)
    for rest in ((None, None), (factors, None), (None, bias), (factors, bias)):
        assert_kernels_agree(fast, logits, targets, softcap, *rest)


@each_set
def test_every_set_of_instructions_has_the_same_loss(fast, instructions):
    check(instructions)
    logits, targets, *rest = kernel_input()
    assert_kernels_agree(fast_kernel(instructions, 64, 15.0), logits, targets, 15.0, *rest)


def test_the_gradient_is_in_place_and_does_not_depend_on_threads(fast):
    logits, targets, *rest = kernel_input(N=40)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            mine = logits.clone()
            loss, grad = fast(mine, targets, 15.0, *rest)
            assert grad.data_ptr() == mine.data_ptr()
            runs.append((loss, grad))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_nan_makes_the_loss_and_the_rows_gradient_nan(fast, dtype):
    logits, targets, *_ = kernel_input(dtype=dtype)
    logits[2, 5] = math.nan
    loss, grad = fast(logits, targets, 15.0)
    assert loss.isnan() and grad[2].isnan().all() and grad[3:].isfinite().all()


@pytest.mark.parametrize("vocab_size, softcap", [(64, None), (64, 80.0), (72, 15.0)])
def test_what_the_fast_kernel_is_not_made_for(vocab_size, softcap):
    assert fast_kernel(processor(), vocab_size, softcap) is None


def test_a_compiled_loss_on_a_cpu_has_the_fast_kernel(tiny_model, fast):
    kernel = LossFn(tiny_model(), True).kernel
    assert kernel.__qualname__ == fast.__qualname__
