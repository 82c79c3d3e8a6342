"""The compiled kernels against float32 arithmetic."""

import pytest
import torch

from nanochat.common import ConfigError
from nanochat.gpt import norm, rotary_tables, rotate
from nanochat.inference import cpu_kernels
from nanochat.inference.cpu_kernels import (
    attend_singles,
    can_attend,
    library,
    product,
    rms_norm,
    rotate_and_keep,
)


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """One compilation for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(tmp_path_factory.mktemp("products")))
        library.cache_clear()
        if library() is None:
            pytest.skip("needs a C++ compiler and a processor with AVX512-BF16")
        yield
    library.cache_clear()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 13, 64, 65])
@pytest.mark.parametrize("inputs, outputs", [(32, 4), (160, 12), (768, 36), (256, 6)])
def test_products_are_the_float32_ones_rounded_once(rows, inputs, outputs):
    x, weight = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
    exact = x.double() @ weight.double().T
    got = product(x, weight)
    assert got.dtype == torch.bfloat16 and got.shape == (rows, outputs)
    # half a unit in the last of 8 bits, and the float32 sum's own error
    assert ((got - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


def test_a_row_is_the_same_whatever_the_number_of_threads():
    x, weight = torch.randn(3, 128).bfloat16(), torch.randn(40, 128).bfloat16()
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2):
        torch.set_num_threads(n)
        results.append([product(x, weight), product(x[:1], weight)])
    torch.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_rows_that_do_not_lie_together_are_taken_together_first():
    x, weight = torch.randn(64, 5).bfloat16().T, torch.randn(4, 64).bfloat16()
    assert torch.equal(product(x, weight), product(x.contiguous(), weight))


def test_numbers_that_are_exact_come_out_exactly():
    x = torch.tensor([[1.0, -2.0] * 16, [0.5, 0.25] * 16]).bfloat16()
    weight = torch.stack([torch.full((32,), float(n)) for n in range(1, 5)]).bfloat16()
    assert product(x, weight).tolist() == [[-16.0 * n for n in range(1, 5)],
                                           [12.0 * n for n in range(1, 5)]]  # fmt: skip
    assert product(x[:1], weight).tolist() == [[-16.0 * n for n in range(1, 5)]]


@pytest.mark.parametrize("H, Hkv, K", [(2, 2, 64), (6, 2, 128), (4, 1, 64)])
def test_attention_of_single_queries_is_that_of_each_alone(H, Hkv, K):
    assert can_attend(torch.device("cpu"), torch.bfloat16, K)
    keys, values = torch.randn(2, 5, Hkv, 33, K).bfloat16()
    slots, lengths = torch.tensor([3, 0, 4]), torch.tensor([33, 1, 17])
    q = torch.randn(3, H + 2, K).bfloat16()[:, :H]  # rows do not follow each other directly
    got = attend_singles(q, keys, values, slots, lengths).view(3, H, K)
    for n in range(3):
        for h in range(H):
            seen = slots[n], h // (H // Hkv), slice(lengths[n])
            weights = (keys[seen].double() @ q[n, h].double() / K**0.5).softmax(-1)
            exact = weights @ values[seen].double()
            assert ((got[n, h] - exact).abs() <= exact.abs() * 2**-8 + 1e-3).all()


@pytest.mark.parametrize("H, Hkv, K", [(2, 2, 64), (4, 1, 128)])
def test_rotation_is_the_models_and_keys_and_values_are_kept(H, Hkv, K):
    keys, values = torch.zeros(2, 3, Hkv, 40, K).bfloat16()
    slots, positions = torch.tensor([2, 0]), torch.tensor([37, 5])
    qkv = torch.randn(2, H + 2 * Hkv, K).bfloat16()
    cos, sin = rotary_tables(torch.arange(40), K, 10_000.0)
    tables = torch.cat([cos, cos], -1), torch.cat([sin, -sin], -1)
    q = rotate_and_keep(qkv, tables, slots, positions, keys, values, 1e-6)
    own = cos[positions][:, None, None], sin[positions][:, None, None]
    exact = norm(rotate(qkv[:, None].float(), *own), 1e-6)[:, 0]
    kept_keys, kept_values = keys[slots, :, positions], values[slots, :, positions]
    assert torch.allclose(q.float(), exact[:, :H], rtol=2**-7, atol=1e-5)
    assert torch.allclose(kept_keys.float(), exact[:, H : H + Hkv], rtol=2**-7, atol=1e-5)
    assert torch.equal(kept_values, qkv[:, H + Hkv :])
    assert keys.count_nonzero() == kept_keys.count_nonzero()  # and nothing elsewhere


@pytest.mark.parametrize("rows, width", [(1, 16), (3, 768), (64, 64), (65, 64), (2, 24)])
def test_the_norm_is_the_models(rows, width):
    x = (torch.randn(rows, width) * 3).bfloat16()
    assert torch.allclose(rms_norm(x, 1e-6), norm(x, 1e-6), rtol=2**-7, atol=0)


def test_attention_is_refused_where_it_would_not_work():
    assert not can_attend(torch.device("cpu"), torch.float32, 64)
    assert not can_attend(torch.device("cpu"), torch.bfloat16, 32)


def test_pytorch_can_be_asked_for(monkeypatch):
    library.cache_clear()
    monkeypatch.setenv("NANOCHAT_CPU_KERNELS", "torch")
    assert library() is None
    library.cache_clear()
    monkeypatch.setenv("NANOCHAT_CPU_KERNELS", "numpy")
    with pytest.raises(ConfigError, match="'numpy' is unknown; choose torch"):
        library()


def test_a_compiler_that_fails_is_reported_and_pytorch_does_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.setattr(cpu_kernels, "cpp_compiler", lambda: "/bin/false")
    library.cache_clear()
    x, weight = torch.ones(2, 32).bfloat16(), torch.ones(4, 32).bfloat16()
    assert (product(x, weight) == 32).all()
    assert "/bin/false does not work" in capsys.readouterr().out
    library.cache_clear()
