"""Drawing the next token: pure functions of logits (B, V) and of noise that depends on nothing but
counters.

The noise of a token is a hash of (seed, sample, position), so a sample is the same alone and in a
crowd, and can be drawn again. Probabilities become integer weights of 2^-40, so that their running
sums are exact, deterministic and equal in any order of summation, on every device. Dimensions: B
rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nanochat.common import ConfigError

ONE = 2.0**40  # the integer weight of probability 1


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen; temperature 0 takes the most likely, whatever the rest says."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 42

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(
                f"temperature is {self.temperature}; choose 0 (most likely token) or more"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}; choose at least 1, or None for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top_p is {self.top_p}; choose more than 0 and at most 1, or None for all tokens"
            )


def splitmix64(x: np.ndarray) -> np.ndarray:
    """One step of the splitmix64 generator from state x, uint64 -> uint64, element by element
    (Steele et al. 2014).

    Example: splitmix64(np.zeros(1, np.uint64))[0] == 0xE220A8397B1DCDAF
    """
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(seed: int, samples: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """One number in [0, 1), float64, for every pair of samples[i] and positions[i]."""
    state = splitmix64(np.full(len(samples), seed % 2**64, dtype=np.uint64))
    state = splitmix64(state ^ np.asarray(samples, dtype=np.uint64))
    state = splitmix64(state ^ np.asarray(positions, dtype=np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """(B, V) bool: the k largest of each row; of equal ones at the edge, the lowest ids."""
    edge = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    above, at_edge = logits > edge, logits == edge
    places_left = k - above.sum(-1, keepdim=True)
    return above | (at_edge & (at_edge.cumsum(-1) <= places_left))


def keep_top_p(weights: torch.Tensor, p: float) -> torch.Tensor:
    """(B, V) bool: the fewest of the heaviest whose weights make up at least p of the row's; ties
    go to low ids."""
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(weights, dtype=torch.bool).scatter_(
        -1, order, before < p * ordered.sum(-1, keepdim=True)
    )


def sample(logits: torch.Tensor, params: SamplingParams, noise: np.ndarray) -> torch.Tensor:
    """The next token of each row: logits (B, V) float32, noise (B,) in [0, 1) -> ids (B,) int64.

    Inverse transform sampling: ids in order share [0, 1) in proportion to their probability. Top-k
    is applied first, top-p to what is left of it, as in most libraries.
    """
    if params.temperature == 0:
        return logits.argmax(-1)  # of equal ones the first
    if params.top_k is not None:
        logits = logits.masked_fill(~keep_top_k(logits, params.top_k), float("-inf"))
    probabilities = (logits / params.temperature).softmax(-1)
    weights = (probabilities * ONE).round().to(torch.int64)
    if params.top_p is not None:
        weights = weights * keep_top_p(weights, params.top_p)
    sums = weights.cumsum(-1)  # (B, V)
    total = sums[:, -1:]
    float_type = torch.float32 if logits.device.type == "mps" else torch.float64
    noise_on_device = torch.from_numpy(noise).to(float_type).to(logits.device)[:, None]
    aim = (noise_on_device * total).to(torch.int64).minimum(total - 1)
    return torch.searchsorted(sums, aim, right=True)[:, 0]
