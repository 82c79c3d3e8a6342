"""Draws the next token from logits, with noise that depends on counters alone.

The noise of a token is a hash of (seed, sample, position), and a row's token depends on its own
logits, settings and noise only: a sample is the same alone and in a crowd. Probabilities become
integers, whose sums are exact in any order. Dimensions: B rows, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nanochat.common import ConfigError

ONE = 2.0**40  # the integer weight of the likeliest token
MASK = 2**64 - 1
ALL = 2**31  # a top_k that keeps every token


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen; temperature 0 takes the likeliest, whatever the rest says.

    top_k is applied first, top_p to what is left, then min_p, which drops tokens less likely than
    min_p times the likeliest (Nguyen et al. 2024). repetition_penalty divides the positive logits
    of tokens that prompt or answer hold, and multiplies the negative ones (Keskar et al. 2019).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 42
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        t, k, p, penalty = self.temperature, self.top_k, self.top_p, self.repetition_penalty
        for name, possible, wanted in (
            ("temperature", 0 <= t < math.inf, "0 (most likely token) or more"),
            ("top_k", k is None or k >= 1, "at least 1, or None for all tokens"),
            ("top_p", p is None or 0 < p <= 1, "more than 0, at most 1, or None for all tokens"),
            ("min_p", 0 <= (self.min_p or 0) <= 1, "0 to 1, or None for all tokens"),
            ("repetition_penalty", 0 < penalty < math.inf, "more than 0; 1 is none"),
        ):
            if not possible:
                raise ConfigError(f"{name} is {getattr(self, name)}; choose {wanted}")


def splitmix64(x: int) -> int:
    """One step of the splitmix64 generator from the 64-bit state x (Steele et al. 2014).

    Example: splitmix64(0) == 0xE220A8397B1DCDAF
    """
    z = x + 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def uniform(seed: int, sample: int, position: int) -> float:
    """A number in [0, 1) for each (seed, sample, position)."""
    # subtle: plain integers, because an array of one costs ten times as much
    return (splitmix64(splitmix64(splitmix64(seed & MASK) ^ sample) ^ position) >> 11) * 2.0**-53


def sample(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    noise: Sequence[float],
    histories: Sequence[Sequence[int]] = (),
    compiled_draw: Callable[..., list[int]] | None = None,
) -> list[int]:
    """The next token of each row from logits (B, V) and its noise in [0, 1); histories: the ids
    that each row's repetition penalty counts as seen. compiled_draw: a fast twin of `draw`."""
    if any(one.repetition_penalty != 1 for one in params):
        logits = logits.clone()
        for row, one, history in zip(logits, params, histories, strict=True):
            seen = torch.tensor(sorted(set(history)), device=logits.device)
            old, penalty = row[seen], one.repetition_penalty
            row[seen] = torch.where(old > 0, old / penalty, old * penalty)
    if all(one.temperature == 0 for one in params):
        return logits.argmax(-1).tolist()  # of equal ones the first
    table = sampling_table(params, noise)
    if compiled_draw is not None:
        return compiled_draw(logits, table)
    if logits.device.type == "cuda":
        return draw(logits, table.to(logits.device)).tolist()
    logits, most = logits.cpu(), int(table[:, 1].max())
    if most >= logits.shape[-1]:
        return draw(logits, table).tolist()
    # the ids that any row may draw: sorting few takes a hundredth of the time
    ids = (logits >= logits.topk(most).values[:, -1:]).any(0).nonzero()[:, 0]
    return ids[draw(logits[:, ids], table)].tolist()


def sampling_table(params: Sequence[SamplingParams], noise: Sequence[float]) -> torch.Tensor:
    """(B, 5) float64: temperature, top_k, top_p, min_p and noise of each row. None becomes a number
    that keeps every token, temperature 0 becomes top_k 1."""
    settings = [
        (1.0, 1, 1.0, 0.0, aim)
        if one.temperature == 0
        else (one.temperature, one.top_k or ALL, one.top_p or 1.0, one.min_p or 0.0, aim)
        for one, aim in zip(params, noise, strict=True)
    ]
    return torch.tensor(settings, dtype=torch.float64)


def draw(logits: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The next token of each row: logits (B, V), a sampling_table (B, 5) -> ids (B,) int64.

    Inverse transform sampling: ids in order share [0, 1) in proportion to their probability. It
    never waits for the device, so that a CUDA graph can hold it.
    """
    temperature, top_k, top_p, min_p, noise = (column[:, None] for column in table.unbind(-1))
    # share: the probability as a part of the likeliest token's
    share = logits - logits.amax(-1, keepdim=True)
    share = share.div_(temperature.float().clamp(min=1e-30)).exp_()
    weights = (share * ONE).long()
    order = logits.sort(dim=-1, descending=True, stable=True).indices  # of equal ones low ids
    rank = torch.arange(logits.shape[-1], device=logits.device)
    kept = weights.gather(-1, order) * (rank < top_k)
    before = kept.cumsum(-1) - kept
    kept *= before < top_p * kept.sum(-1, keepdim=True)
    weights = torch.zeros_like(weights).scatter_(-1, order, kept)
    weights.masked_fill_(share < min_p.float(), 0)
    sums = weights.cumsum(-1)
    total = sums[:, -1:]
    aim = (noise * total).long().minimum(total - 1)
    return torch.searchsorted(sums, aim, right=True)[:, 0]


def logprobs(
    logits: torch.Tensor, token: int, num_top: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """(log-probability of `token`, the likeliest (id, log-probability) pairs) by logits (V,)."""
    of_all = logits.log_softmax(-1)
    values, ids = of_all.topk(min(num_top, len(logits)))
    return float(of_all[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True))
