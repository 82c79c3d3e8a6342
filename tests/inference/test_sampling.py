"""Noise by counters, and what top-k, top-p and temperature let through."""

import math

import numpy as np
import pytest
import torch

from nanochat.common import ConfigError
from nanochat.inference.sampling import (
    SamplingParams,
    draw,
    logprobs,
    sample,
    sampling_table,
    splitmix64,
    uniform,
)


def drawn(logits: torch.Tensor, noise, **params) -> list[int]:
    """What each noise draws from logits (V,)."""
    rows = logits.expand(len(noise), -1)
    return sample(rows, [SamplingParams(**params)] * len(noise), torch.as_tensor(noise).tolist())


def draws(probabilities: list[float], noise: list[float], **params) -> list[int]:
    return drawn(torch.tensor(probabilities).log(), noise, **params)


def left(probabilities: list[float], **params) -> list[int]:
    """The ids that are left to draw from: no noise of a thousand misses one."""
    return sorted(set(draws(probabilities, torch.arange(1000) / 1000, **params)))


def test_splitmix64_gives_the_published_first_outputs_of_seed_0():
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert splitmix64(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4


def test_noise_depends_on_seed_sample_and_position():
    places = [(7, 0, 5), (7, 1, 5), (7, 2, 5), (8, 1, 5), (-1, 2, 6)]
    assert len({uniform(*place) for place in places}) == 5
    assert uniform(2**64 + 8, 1, 5) == uniform(8, 1, 5)


def test_noise_is_uniform_and_uncorrelated_between_neighbours():
    grid = np.array([[uniform(1, i, j) for j in range(200)] for i in range(200)])
    noise = grid.ravel()
    assert noise.min() >= 0 and noise.max() < 1
    # 40,000 draws: standard error of the mean 1/sqrt(12 * 40,000) = 0.0014, of a correlation 0.005
    assert abs(noise.mean() - 0.5) < 0.006
    for one, other in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


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
    noise = [0.9, 0.9]
    assert sample(logits, [SamplingParams(0)] * 2, noise) == [1, 0]
    assert sample(logits, [SamplingParams(0), SamplingParams(1e-50)], noise) == [1, 2]


def test_top_k_keeps_k_and_breaks_ties_by_id():
    assert left([0.1, 0.2, 0.2, 0.2, 0.3], top_k=3) == [1, 2, 4]
    assert left([0.1, 0.2, 0.2, 0.2, 0.3], top_k=9) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    assert left([0.125, 0.5, 0.375], top_p=0.5) == [1]
    assert left([0.125, 0.5, 0.375], top_p=0.51) == [1, 2]
    assert left([0.25, 0.25, 0.5], top_p=0.51) == [0, 2]
    assert left([0.25, 0.25, 0.5], top_p=1.0) == [0, 1, 2]


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
    noise = (torch.arange(n) + 0.5) / n  # every part of [0, 1) once: shares are exact to 1/n
    shares = torch.bincount(torch.tensor(drawn(logits[0], noise, **params)), minlength=50) / n
    assert (shares - probabilities).abs().max() < 1.5 / n


def test_a_vocabulary_of_65536_flat_ids_is_drawn_evenly():
    ids = drawn(torch.zeros(65536), [0.0, 0.5, 0.9999])
    assert ids == [0, 32768, math.floor(0.9999 * 65536)]


def test_min_p_leaves_out_what_is_much_less_likely_than_the_likeliest():
    assert left([0.5, 0.26, 0.24], min_p=0.5) == [0, 1]
    assert left([0.5, 0.26, 0.24], min_p=1.0) == [0]
    assert left([0.5, 0.26, 0.24], min_p=0.0) == [0, 1, 2]
    # 0.5 and 0.26 are left: shares 0.658 and 0.342
    assert draws([0.5, 0.26, 0.24], [0.0, 0.65, 0.66, 0.99], min_p=0.5) == [0, 0, 1, 1]


def test_the_penalty_divides_what_is_positive_and_multiplies_what_is_negative():
    logits = torch.tensor([2.0, -2.0, 1.0, 0.0]).expand(2, -1)
    params = [SamplingParams(0), SamplingParams(0, repetition_penalty=3.0)]
    assert sample(logits, params, [0.0, 0.0], [[0], [0, 1, 0]]) == [0, 2]
    assert logits.tolist() == [[2.0, -2.0, 1.0, 0.0]] * 2
    below = torch.tensor([[-1.0, -2.0, -2.9]])
    assert sample(below, params[1:], [0.0], [[0]]) == [1]


def test_logprobs_by_hand():
    logits = torch.tensor([0.25, 0.5, 0.25]).log() + 7
    of_token, top = logprobs(logits, 2, 2)
    assert of_token == pytest.approx(math.log(0.25))
    assert top[0] == (1, pytest.approx(math.log(0.5))) and len(top) == 2


SETTINGS = [
    {"temperature": 0}, {}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.6}, {"min_p": 0.2},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.01}, {"top_k": 1},
    {"temperature": 0, "top_k": 3, "top_p": 0.1}, {"top_k": 10_000, "top_p": 1.0, "min_p": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("coarse", [False, True])
def test_rows_with_settings_of_their_own_equal_rows_drawn_alone(coarse):
    logits = torch.randn(len(SETTINGS) * 8, 300) * 3
    if coarse:
        logits = logits.round()  # many ties
    params = [SamplingParams(**one) for one in SETTINGS * 8]
    noise = [uniform(5, i, i) for i in range(len(params))]
    alone = [sample(logits[i : i + 1], [one], noise[i : i + 1])[0] for i, one in enumerate(params)]
    assert sample(logits, params, noise) == alone
    assert draw(logits, sampling_table(params, noise)).tolist() == alone  # as CUDA does it
    few = [i for i, one in enumerate(params) if one.temperature == 0 or one.top_k]
    found = sample(logits[few], [params[i] for i in few], [noise[i] for i in few])
    assert found == [alone[i] for i in few]


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_p": 1.5},
        {"repetition_penalty": 0},
        {"temperature": -1},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.1},
    ],
)
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SamplingParams(**wrong)
