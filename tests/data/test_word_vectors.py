"""Word vectors: each step by its definition, and that tokens used alike are near each other."""

from math import log

import numpy as np
import pytest
import torch

from nanochat.common import ConfigError
from nanochat.data import word_vectors as module
from nanochat.data.word_vectors import (
    add_letter_cases,
    begin_with_word_vectors,
    cooccurrences,
    factor,
    letter_cases,
    positive_information,
    share_gradients,
    word_vectors,
)

IDS = [str(i) for i in range(64)]  # no two are one text in two letter cases


def draw(low: int, high: int, size) -> np.ndarray:
    return np.random.default_rng(7).integers(low, high, size).astype(np.uint16)


def test_pairs_are_counted_in_both_directions_and_by_their_distance(monkeypatch):
    monkeypatch.setattr(module, "MOST_TOKENS", 50)
    parts = [draw(0, 6, 30), draw(0, 6, 3), draw(0, 6, 40)]
    expected = torch.zeros(6, 6)
    for part in parts[0], parts[1], parts[2][:17]:  # 50 tokens in all
        for i, a in enumerate(part.tolist()):
            for distance, b in enumerate(part[i + 1 : i + 1 + module.WINDOW].tolist(), start=1):
                expected[a, b] += 1 / distance
                expected[b, a] += 1 / distance
    torch.testing.assert_close(cooccurrences(parts, 6), expected)


def test_information_of_two_tokens_by_hand():
    counts = torch.tensor([[0.0, 3.0], [3.0, 1.0]])  # the tokens' own: 3 and 4
    q = 3**0.75 / (3**0.75 + 4**0.75)
    other = (log(3 / (3 * (1 - q))) + log(3 / (4 * q))) / 2
    expected = torch.tensor([[0, other], [other, 0]])  # 1 / (4 (1 - q)) is less than 1
    torch.testing.assert_close(positive_information(counts), expected)


def test_a_token_that_never_occurs_has_no_information():
    assert positive_information(torch.tensor([[2.0, 0.0], [0.0, 0.0]])).isfinite().all()


def test_the_factors_are_those_of_the_whole_decomposition():
    generator = torch.Generator().manual_seed(1)
    turned = torch.linalg.qr(torch.randn(100, 100, generator=generator)).Q
    values = torch.tensor([9.0, -8.0, 7.0, 6.0, *[0.5] * 96])
    vectors = factor(turned * values @ turned.T, 3, generator)
    expected = turned[:, :3] * values[:3].abs().sqrt()
    torch.testing.assert_close(vectors @ vectors.T, expected @ expected.T, atol=1e-4, rtol=0)


def test_tokens_between_the_same_neighbours_are_near_each_other():
    words = draw(0, 2, 4000)  # 0 and 1 stand in the same places, 2 and 3 elsewhere
    text = np.stack([np.full(4000, 4), words, np.full(4000, 5), words * 0 + 2, words * 0 + 3], 1)
    vectors = word_vectors([text.reshape(-1)], IDS, 32, seed=1)
    near = torch.nn.functional.cosine_similarity(vectors[:1], vectors)
    assert near[1] > 0.9
    assert near[2:].abs().max() < 0.7
    torch.testing.assert_close(vectors.square().mean(-1), torch.ones(64))
    assert torch.equal(vectors, word_vectors([text.reshape(-1)], IDS, 32, seed=1))


def test_texts_in_other_letter_cases_are_one_group():
    groups = letter_cases([" Peru", " in", " PERU", "peru", "\ufffd", "\ufffd", "", ""]).tolist()
    assert groups[0] == groups[2] and len(set(groups)) == 7  # parts of characters share nothing


def test_a_text_in_another_letter_case_lends_a_tenth_of_its_counts():
    counts = torch.rand(4, 4).round(decimals=1)
    shared = torch.tensor([[1.1, 0, 0.1, 0], [0, 1.1, 0, 0], [0.1, 0, 1.1, 0], [0, 0, 0, 1.1]])
    found = add_letter_cases(counts, letter_cases([" Peru", " in", " PERU", "peru"]), 0.1)
    torch.testing.assert_close(found, shared @ counts)


def test_a_text_in_another_letter_case_learns_what_this_one_does():
    embedding = torch.nn.Embedding(64, 2)
    share_gradients(embedding, [" Peru", " in", " PERU", *IDS[3:60]])  # of 64 ids four are special
    scales = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    (embedding(torch.tensor([0, 1, 2, 63])) * scales).sum().backward()
    expected = torch.zeros(64, 2)
    expected[[0, 1, 2, 63]] = torch.tensor([[1 + 101.0], [20.0], [100 + 101.0], [2000.0]])
    torch.testing.assert_close(embedding.weight.grad, expected)


def test_a_word_that_is_rare_in_capitals_is_near_the_common_one():
    words = draw(0, 2, 4000) * 3  # 0 and 3 stand in the same places
    text = np.stack([np.full(4000, 4), words, np.full(4000, 5), words * 0 + 6], 1).reshape(-1)
    pieces = [" PERU" if i == 9 else " Peru" if i == 6 else text for i, text in enumerate(IDS)]
    alone, (near, far) = (
        torch.nn.functional.cosine_similarity(vectors[9:10], vectors[[6, 4]])
        for vectors in (word_vectors([text], texts, 32, 1) for texts in (IDS, pieces))
    )
    assert alone[0].abs() < 0.5 and near > 0.9 and abs(far) < 0.7


def test_an_embedding_begins_with_them():
    embedding = torch.nn.Embedding(64, 16)
    text = [draw(0, 64, 500)]
    begin_with_word_vectors(embedding, text, IDS[:60], 0.1, seed=3)  # of 64 ids four are special
    expected = word_vectors(text, [*IDS[:60], "", "", "", ""], 16, seed=3) * 0.1
    torch.testing.assert_close(embedding.weight.detach(), expected)


def test_a_large_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="at most 16,384 tokens, and this one has 65,536"):
        begin_with_word_vectors(torch.nn.Embedding(65_536, 1), [draw(0, 9, 9)], IDS, 0.1, seed=3)


@pytest.mark.parametrize("std", [0.0, -0.1, float("inf"), float("nan")])
def test_a_standard_deviation_is_above_zero(std):
    with pytest.raises(ConfigError, match="above 0"):
        begin_with_word_vectors(torch.nn.Embedding(64, 8), [draw(0, 64, 9)], IDS, std, seed=3)
