"""Noise by counters, and what top-k, top-p and temperature let through."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import ConfigError
from nanochat.sampling import (
    SamplingParams,
    keep_top_k,
    keep_top_p,
    sample,
    splitmix64,
    uniform,
)


def slow_splitmix64(x: int) -> int:
    """The same in Python's unbounded integers."""
    z = (x + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def draws(probabilities: list[float], noise: list[float], **params) -> list[int]:
    """What each noise draws from one distribution."""
    logits = torch.tensor(probabilities).log().expand(len(noise), -1)
    return sample(logits, SamplingParams(**params), np.array(noise)).tolist()


def test_splitmix64_gives_the_published_first_outputs_of_seed_0():
    states = np.array([0, 0x9E3779B97F4A7C15], dtype=np.uint64)
    assert splitmix64(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@given(st.integers(0, 2**64 - 1))
def test_splitmix64_equals_its_slow_twin(x):
    assert splitmix64(np.array([x], dtype=np.uint64))[0] == slow_splitmix64(x)


def test_noise_of_a_row_does_not_depend_on_the_other_rows():
    crowd = uniform(7, [0, 1, 2, 1], [5, 5, 5, 6])
    assert crowd[1] == uniform(7, [1], [5])[0]
    assert len({*crowd, *uniform(8, [0, 1, 2, 1], [5, 5, 5, 6])}) == 8


def test_noise_is_uniform_and_uncorrelated_between_neighbours():
    noise = uniform(1, np.repeat(np.arange(200), 200), np.tile(np.arange(200), 200))
    grid = noise.reshape(200, 200)
    assert noise.min() >= 0 and noise.max() < 1
    # 40,000 draws: standard error of the mean 1/sqrt(12 * 40,000) = 0.0014, of a correlation 0.005
    assert abs(noise.mean() - 0.5) < 0.006
    for one, other in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


def test_a_negative_seed_is_a_seed_too():
    assert 0 <= uniform(-1, [0], [0])[0] < 1 and uniform(-1, [0], [0]) != uniform(1, [0], [0])


def test_ids_share_the_unit_interval_in_order():
    noise = [0.0, 0.19, 0.21, 0.49, 0.51, 1 - 2**-53]
    assert draws([0.2, 0.3, 0.5], noise) == [0, 0, 1, 1, 2, 2]


def test_an_impossible_id_is_never_drawn():
    assert draws([0.0, 1.0, 0.0, 0.0], [0.0, 0.5, 1 - 2**-53]) == [1, 1, 1]


def test_temperature_sharpens():
    # probabilities 0.2, 0.8 at temperature 1/2 become 0.04/0.68 = 0.0588, 0.9412
    assert draws([0.2, 0.8], [0.058, 0.06], temperature=0.5) == [0, 1]


def test_temperature_0_takes_the_first_of_the_largest():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    assert sample(logits, SamplingParams(temperature=0), np.array([0.9, 0.9])).tolist() == [1, 0]


def test_top_k_keeps_k_and_breaks_ties_by_id():
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    assert keep_top_k(logits, 2).tolist() == [
        [False, True, True, False, False],
        [True, True, False, False, False],
    ]
    assert keep_top_k(logits, 9).all()


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    weights = torch.tensor([[10, 50, 40], [25, 25, 50]])
    assert keep_top_p(weights, 0.5).tolist() == [[False, True, False], [False, False, True]]
    assert keep_top_p(weights, 0.51).tolist() == [[False, True, True], [True, False, True]]
    assert keep_top_p(weights, 1.0).all()


def test_top_k_1_and_a_tiny_top_p_are_greedy():
    noise = [0.01, 0.5, 0.99]
    assert draws([0.3, 0.4, 0.3], noise, top_k=1) == [1, 1, 1]
    assert draws([0.3, 0.4, 0.3], noise, top_p=1e-9) == [1, 1, 1]


def test_top_p_counts_within_what_top_k_left():
    # top 2 of (0.1, 0.4, 0.5) are 0.444, 0.556; 0.5 of that mass is reached by the larger alone
    assert draws([0.1, 0.4, 0.5], [0.01, 0.99], top_k=2, top_p=0.5) == [2, 2]


@pytest.mark.parametrize("params", [{}, {"top_k": 20}, {"top_p": 0.7}, {"temperature": 1.7}])
def test_shares_of_many_draws_are_the_probabilities(params):
    logits = torch.randn(1, 50) * 2
    probabilities = (logits[0] / params.get("temperature", 1)).softmax(-1)
    order = probabilities.sort(descending=True)
    if k := params.get("top_k"):
        probabilities[order.indices[k:]] = 0
    if p := params.get("top_p"):
        probabilities[order.indices[order.values.cumsum(-1) - order.values >= p]] = 0
    probabilities /= probabilities.sum()
    n = 20_000
    noise = (np.arange(n) + 0.5) / n  # every part of [0, 1) once: shares are exact to 1/n
    ids = sample(logits.expand(n, -1), SamplingParams(**params), noise)
    shares = torch.bincount(ids, minlength=50) / n
    assert (shares - probabilities).abs().max() < 1.5 / n


def test_a_vocabulary_of_65536_flat_ids_is_drawn_evenly():
    ids = sample(
        torch.zeros(1, 65536).expand(3, -1), SamplingParams(), np.array([0.0, 0.5, 0.9999])
    )
    assert ids.tolist() == [0, 32768, math.floor(0.9999 * 65536)]


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}])
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SamplingParams(**wrong)
