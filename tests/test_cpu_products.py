"""The compiled products against float32 ones."""

import pytest
import torch

from nanochat import cpu_products
from nanochat.common import ConfigError
from nanochat.cpu_products import library, product


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """One compilation for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(tmp_path_factory.mktemp("products")))
        cpu_products._library.cache_clear()
        if library() is None:
            pytest.skip("needs a C++ compiler and a processor with AVX512-BF16")
        yield
    cpu_products._library.cache_clear()


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


def test_pytorch_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("NANOCHAT_CPU_PRODUCTS", "torch")
    assert library() is None
    monkeypatch.setenv("NANOCHAT_CPU_PRODUCTS", "numpy")
    with pytest.raises(ConfigError, match="'numpy' is unknown; choose torch"):
        library()


def test_a_compiler_that_fails_is_reported_and_pytorch_does_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.setattr(cpu_products, "cpp_compiler", lambda: "/bin/false")
    cpu_products._library.cache_clear()
    x, weight = torch.ones(2, 32).bfloat16(), torch.ones(4, 32).bfloat16()
    assert (product(x, weight) == 32).all()
    assert "/bin/false does not work" in capsys.readouterr().out
    cpu_products._library.cache_clear()
