"""Attention within documents: PyTorch's against its definition, and attention.cpp against that."""

import pytest
import torch
from instruction_sets import check, each_set

from nanochat import attention as module
from nanochat.attention import CpuAttention, attention, cpu_attention, document_numbers
from nanochat.cpp import load_openmp, processor

START = 0
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 0.02}  # of the largest entry


def library(instructions):
    return load_openmp("attention", instructions, module.INSTEAD, **module.SIGNATURES)


def random_input(B=2, T=37, H=4, Hkv=4, K=16, dtype=torch.float32, starts=0.2) -> tuple:
    """q, k, v, and documents that begin at each place by a chance of `starts`."""
    generator = torch.Generator().manual_seed(0)
    ids = (torch.rand(B, T, generator=generator) >= starts).long()
    shapes = [(B, T, heads, K) for heads in (H, Hkv, Hkv)]
    qkv = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return *(x.requires_grad_() for x in qkv), document_numbers(ids, START)


def in_float64(x):
    return x.detach().double().requires_grad_()


def by_definition(q, k, v, documents):
    """In float64, one head and place at a time."""
    (B, T, H, K), group = q.shape, q.shape[2] // k.shape[2]
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            seen = list(range(t + 1))
            if documents is not None:
                seen = [s for s in seen if documents[b, s] == documents[b, t]]
            for h in range(H):
                weights = (k[b, seen, h // group] @ q[b, t, h] / K**0.5).softmax(0)
                out[b, t, h] = weights @ v[b, seen, h // group]
    return out


def results(function, q, k, v, *rest) -> list[torch.Tensor]:
    """The output, and its gradients for one that differs at every place."""
    y = function(q, k, v, *rest)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, (q, k, v), grad)]


def assert_close(found, expected, dtype):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert float((a.double() - b).abs().max()) <= CLOSE[dtype] * max(1, float(b.abs().max()))


@pytest.fixture
def compiled():
    """The functions for this processor."""
    return library(processor()) or pytest.skip("needs a C++ compiler")


def test_numbers_of_documents_by_hand():
    numbers = document_numbers(torch.tensor([[5, 9, 5, 5, 9]]), 9)
    assert numbers.tolist() == [[0, 1, 1, 1, 2]]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("Hkv", [4, 2, 1])
@pytest.mark.parametrize("apart", [True, False])
def test_pytorchs_attention_is_the_definition(dtype, Hkv, apart):
    q, k, v, documents = random_input(T=9, Hkv=Hkv, dtype=dtype)
    documents = documents if apart else None
    expected = results(by_definition, *map(in_float64, (q, k, v)), documents)
    assert_close(results(attention, q, k, v, documents), expected, dtype)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(
    "shape",
    [{}, {"T": 1}, {"Hkv": 2}, {"Hkv": 1}, {"H": 1, "Hkv": 1, "K": 64, "T": 130, "starts": 0.02},
     {"K": 6}, {"K": 128, "H": 2, "Hkv": 1}, {"B": 5, "starts": 1}, {"starts": 0}],
    ids=str,
)  # fmt: skip
def test_the_compiled_attention_is_pytorchs(compiled, dtype, shape):
    q, k, v, documents = random_input(dtype=dtype, **shape)
    expected = results(attention, *map(in_float64, (q, k, v)), documents)
    found = results(CpuAttention.apply, q, k, v, documents, compiled)
    assert_close(found, expected, dtype)
    if shape.get("starts") == 0:  # one document a row
        alone = results(CpuAttention.apply, q, k, v, None, compiled)
        assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


@each_set
def test_every_set_of_instructions_computes_the_same(compiled, instructions):
    check(instructions)
    q, k, v, documents = random_input(K=24, Hkv=2)
    expected = results(attention, q, k, v, documents)
    found = results(CpuAttention.apply, q, k, v, documents, library(instructions))
    assert_close(found, expected, q.dtype)


def test_large_scores_do_not_overflow(compiled):
    """Up to 2,000, as of keys that are not normalised; float32 holds them to 1e-4."""
    q, k, v, documents = random_input()
    q = (100 * q).detach().requires_grad_()
    y, *gradients = results(CpuAttention.apply, q, k, v, documents, compiled)
    expected = attention(*map(in_float64, (q, k, v)), documents)
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-3)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_bits_do_not_depend_on_threads_or_other_rows(compiled):
    q, k, v, documents = random_input(B=7, Hkv=2)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 3):
            torch.set_num_threads(threads)
            runs.append(results(CpuAttention.apply, q, k, v, documents, compiled))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
    first = CpuAttention.apply(q[:1], k[:1], v[:1], documents[:1], compiled)
    assert torch.equal(first[0], runs[0][0][0])


def test_tensors_that_are_not_contiguous(compiled):
    q, k, v, documents = random_input()
    turned = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    turned = [x.requires_grad_() for x in turned]
    found = results(CpuAttention.apply, *turned, documents, compiled)
    expected = results(CpuAttention.apply, q, k, v, documents, compiled)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", [{"T": module.MOST + 1, "B": 1}, {"dtype": torch.float16}])
def test_what_it_is_not_made_for_is_pytorchs(shape):
    q, k, v, documents = random_input(**shape)
    assert torch.equal(cpu_attention(q, k, v, documents), attention(q, k, v, documents))


def test_without_a_compiler_pytorchs_is_used_and_a_line_says_so(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    load_openmp.cache_clear()
    try:
        q, k, v, documents = random_input()
        assert torch.equal(cpu_attention(q, k, v, documents), attention(q, k, v, documents))
    finally:
        load_openmp.cache_clear()
    assert "attention: no C++ compiler" in capsys.readouterr().out
