"""Word vectors by counting: a beginning for the embedding of a model that trains for minutes.

In minutes a model reads a small part of its text; in seconds one can count, in all of it, which
tokens stand near each other. Tokens used alike get vectors alike before the first step.
"""

import math
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from nanochat.common import ConfigError, print0, rank_and_world

MOST_IDS = 16_384  # of V * V counts
MOST_TOKENS = 20_000_000  # of the text that is counted
WINDOW = 2  # tokens to each side, the nearer the more
CONTEXT_POWER = 0.75  # of a context's frequency: rare contexts count for less
CASE_SHARE = 0.1  # weight of the same text in another letter case
NOISE = 0.1  # keeps tokens apart that the text never has
ITERATIONS, MORE = 4, 32  # of the subspace, and vectors beyond D in it


@torch.no_grad()
def begin_with_word_vectors(
    embedding: torch.nn.Embedding,
    parts: Sequence[np.ndarray],
    pieces: Sequence[str],
    std: float,
    seed: int,
) -> None:
    """Makes the weight, in place, word_vectors of this standard deviation. ConfigError where the
    vocabulary is too large, or where several ranks share the weight."""
    start, (vocab_size, dim) = time.monotonic(), embedding.weight.shape
    if vocab_size > MOST_IDS:
        raise ConfigError(
            f"--word-vectors is for a vocabulary of at most {MOST_IDS:,} tokens, and this one has "
            f"{vocab_size:,}; leave it out"
        )
    if not 0 < std < math.inf:
        raise ConfigError(f"--word-vectors is {std}; it is a standard deviation, above 0")
    if rank_and_world()[1] > 1:
        raise ConfigError("--word-vectors is for one process, here are several; leave it out")
    texts = padded(pieces, vocab_size)
    embedding.weight.copy_(word_vectors(parts, texts, dim, seed) * std)
    print0(f"word vectors: counted and factorized in {time.monotonic() - start:.1f} s")


def word_vectors(
    parts: Sequence[np.ndarray], texts: Sequence[str], dim: int, seed: int
) -> torch.Tensor:
    """(V, D) float32, each row of root mean square 1, from `parts` of token ids; texts: of each id.

    The matrix of positive mutual information, factorized with half of its weight on either side
    (Levy, Goldberg & Dagan 2015).
    """
    generator = torch.Generator().manual_seed(seed)
    counts, groups = cooccurrences(parts, len(texts)), letter_cases(texts)
    for _ in range(2):  # rows, then columns
        counts = add_letter_cases(counts, groups, CASE_SHARE).T
    vectors = factor(positive_information(counts), min(dim, len(texts)), generator)
    # turned, so that each coordinate has a part of each eigenvector
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    vectors = unit(vectors @ turn[: vectors.shape[1]])
    return unit(vectors + NOISE * torch.randn(vectors.shape, generator=generator))


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Rows of root mean square 1; a row of zeros stays."""
    return vectors / vectors.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)


def cooccurrences(parts: Sequence[np.ndarray], vocab_size: int) -> torch.Tensor:
    """(V, V) float32, symmetric: how often two ids stand d places apart, divided by d, summed over
    d = 1..WINDOW. Example: cooccurrences([np.array([0, 1, 0])], 2) is [[1, 2], [2, 0]]."""
    counts, room = np.zeros(vocab_size**2, np.float32), MOST_TOKENS
    for part in parts:
        tokens = part[:room].astype(np.uint32)
        room -= len(tokens)
        for distance in range(1, WINDOW + 1):
            pairs = tokens[:-distance] * np.uint32(vocab_size) + tokens[distance:]
            pairs, times = np.unique(pairs, return_counts=True)
            counts[pairs] += times / np.float32(distance)
    one_way = torch.from_numpy(counts).view(vocab_size, vocab_size)
    return one_way + one_way.T


def letter_cases(texts: Sequence[str]) -> torch.Tensor:
    """(V,) a number for each text, the same for texts that differ in letter case alone."""
    # parts of a character, and special ids, are texts of their own
    keys = [text.lower() if text.strip("\ufffd") else f"\ufffd{i}" for i, text in enumerate(texts)]
    return torch.from_numpy(np.unique(keys, return_inverse=True)[1])


def add_letter_cases(rows: torch.Tensor, groups: torch.Tensor, share: float) -> torch.Tensor:
    """rows (V, N), each with `share` times the sum of those of its group."""
    sums = torch.zeros(int(groups.max()) + 1, rows.shape[1]).index_add_(0, groups, rows)
    return rows.add(sums[groups], alpha=share)


def share_gradients(embedding: torch.nn.Embedding, pieces: Sequence[str]) -> None:
    """From now on each row's gradient has those of the same text in any letter case added, so that
    " EGYPT", which is seldom read, learns with " Egypt". ConfigError with several ranks."""
    if rank_and_world()[1] > 1:
        raise ConfigError("--share-letter-cases is for one process, here are several; leave it out")
    groups = letter_cases(padded(pieces, len(embedding.weight)))
    embedding.weight.register_hook(partial(add_letter_cases, groups=groups, share=1.0))


def padded(pieces: Sequence[str], vocab_size: int) -> list[str]:
    """A text for each id, of special and unused ones empty."""
    return [*pieces, *[""] * (vocab_size - len(pieces))]


def positive_information(counts: torch.Tensor) -> torch.Tensor:
    """max(0, log p(a, b) / (p(a) q(b))) from symmetric counts (V, V), with q(b) ~ p(b)^0.75; the
    mean of both directions."""
    of_token = counts.sum(1).clamp(min=1e-12)
    context = of_token**CONTEXT_POWER
    expected = torch.outer(of_token, context / context.sum())
    information = (counts / expected).clamp_(min=1.0).log_()
    return (information + information.T) / 2


def factor(matrix: torch.Tensor, dim: int, generator: torch.Generator) -> torch.Tensor:
    """(V, D): the eigenvectors of a symmetric matrix (V, V) for its D largest eigenvalues by size,
    each times the root of its eigenvalue's; by subspace iteration (Halko et al. 2011)."""
    size = min(dim + MORE, len(matrix))
    basis = torch.randn(len(matrix), size, generator=generator)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(matrix @ basis).Q
    values, vectors = torch.linalg.eigh(basis.T @ matrix @ basis)
    largest = values.abs().argsort(descending=True)[:dim]
    return basis @ vectors[:, largest] * values[largest].abs().sqrt()
