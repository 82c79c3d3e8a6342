"""Drawing the next token: pure functions of logits (B, V) and of noise that depends on nothing but
counters.

The noise of a token is a hash of (seed, sample, position), so a sample is the same alone and in a
crowd, and can be drawn again. Probabilities become integer weights of 2^-40, so that their running
sums are exact, deterministic and equal in any order of summation, on every device. Dimensions: B
rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from nanochat.common import ConfigError

ONE = 2.0**40  # the integer weight of probability 1
SPARE = 64  # logits looked at beyond the k largest, for those equal to the k-th


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen; temperature 0 takes the most likely, whatever top_k, top_p and
    min_p say.

    min_p leaves out tokens less likely than min_p times the likeliest (Nguyen et al. 2024).
    repetition_penalty divides the logit of every token that prompt or answer holds already, and
    multiplies it where it is negative (Keskar et al. 2019); 1 is none.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 42
    min_p: float | None = None
    repetition_penalty: float = 1.0

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
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p is {self.min_p}; choose 0 to 1, or None for all tokens")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(
                f"repetition_penalty is {self.repetition_penalty}; choose more than 0, 1 for none"
            )


# ---------------------------------------------------------------- noise


def splitmix64(x: np.ndarray) -> np.ndarray:
    """One step of the splitmix64 generator from state x, uint64 -> uint64, element by element
    (Steele et al. 2014).

    Example: splitmix64(np.zeros(1, np.uint64))[0] == 0xE220A8397B1DCDAF
    """
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(
    seed: int | Sequence[int], samples: Sequence[int], positions: Sequence[int]
) -> np.ndarray:
    """One number in [0, 1), float64, for every pair of samples[i] and positions[i]; a seed for all,
    or one for each."""
    seeds = [seed] * len(samples) if isinstance(seed, int) else seed
    state = splitmix64(np.array([one % 2**64 for one in seeds], dtype=np.uint64))
    state = splitmix64(state ^ np.asarray(samples, dtype=np.uint64))
    state = splitmix64(state ^ np.asarray(positions, dtype=np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


# ---------------------------------------------------------------- what may be drawn


def penalize(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits (V,) with those of the ids in `seen` (N,) made less likely; a new tensor.

    Example: penalize([2.0, -2.0, 1.0], [0, 1], 2.0) gives [1.0, -4.0, 1.0].
    """
    old = logits[seen]
    return logits.index_copy(0, seen, torch.where(old > 0, old / penalty, old * penalty))


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


def keep_min_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """(B, V) bool: tokens at least p times as likely as the likeliest, by logits / temperature."""
    return (logits - logits.amax(-1, keepdim=True)).exp() >= p


# ---------------------------------------------------------------- drawing


def sample(logits: torch.Tensor, params: SamplingParams, noise: np.ndarray) -> torch.Tensor:
    """The next token of each row: logits (B, V) float32, noise (B,) in [0, 1) -> ids (B,) int64.

    Inverse transform sampling: ids in order share [0, 1) in proportion to their probability. Top-k
    is applied first, top-p to what is left of it, then min-p, as in most libraries. The repetition
    penalty is not: it needs to know what came before (see `penalize`).
    """
    if params.temperature == 0:
        return logits.argmax(-1)  # of equal ones the first
    ids = None
    if params.top_k is not None:
        logits, ids = candidates(logits, params.top_k)
        logits = logits.masked_fill(~keep_top_k(logits, params.top_k), float("-inf"))
    logits = logits / params.temperature
    weights = (logits.softmax(-1) * ONE).round().to(torch.int64)
    if params.top_p is not None:
        weights = weights * keep_top_p(weights, params.top_p)
    if params.min_p is not None:
        weights = weights * keep_min_p(logits, params.min_p)
    places = draw(weights, noise)
    return places if ids is None else ids.gather(-1, places[:, None])[:, 0]


def candidates(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(logits (B, C), ids (B, C) or None for all of them), in order of ids, with the k largest of
    each row among them, and all that equal the k-th."""
    if logits.shape[-1] <= k + SPARE:
        return logits, None
    values, ids = logits.topk(k + SPARE)
    if bool((values[:, -1] == values[:, k - 1]).any()):  # more are equal than were looked at
        return logits, None
    ids = ids.sort(-1).values
    return logits.gather(-1, ids), ids


def draw(weights: torch.Tensor, noise: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(B,) int64: the place in each row of weights (B, C), int64, that noise (B,) points at."""
    sums = weights.cumsum(-1)
    total = sums[:, -1:]
    if isinstance(noise, np.ndarray):
        float_type = torch.float32 if weights.device.type == "mps" else torch.float64
        noise = torch.from_numpy(noise).to(float_type).to(weights.device)
    aim = (noise[:, None] * total).to(torch.int64).minimum(total - 1)
    return torch.searchsorted(sums, aim, right=True)[:, 0]


def sample_each(
    logits: torch.Tensor, params: Sequence[SamplingParams], noise: np.ndarray
) -> torch.Tensor:
    """As `sample`, each row with its own settings: rows with equal ones are drawn together."""
    groups: dict[SamplingParams, list[int]] = {}
    for row, one in enumerate(params):
        groups.setdefault(replace(one, seed=0, repetition_penalty=1.0), []).append(row)
    if len(groups) == 1:
        return sample(logits, next(iter(groups)), noise)
    ids = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    for one, rows in groups.items():
        where = torch.tensor(rows, device=logits.device)
        ids[where] = sample(logits[where], one, noise[rows])
    return ids


def settings_table(params: Sequence[SamplingParams]) -> torch.Tensor:
    """(B, 4) float64: temperature, top_k, top_p, min_p of each row, as `sample_table` reads them;
    what is None becomes a number that keeps every token."""
    rows = [(p.temperature, p.top_k or 2**31, p.top_p or 1.0, p.min_p or 0.0) for p in params]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def sample_table(logits: torch.Tensor, settings: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """As `sample_each`, in one fixed sequence of kernels that never waits for the device, so that a
    CUDA graph can hold it: logits (B, V), settings (B, 4) and noise (B,) float64 -> ids (B,)."""
    temperature, top_k, top_p, min_p = (column[:, None] for column in settings.unbind(-1))
    greedy = temperature == 0
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)  # of equal ones low ids
    places = torch.arange(logits.shape[-1], device=logits.device)
    ordered = ordered.masked_fill(places >= top_k, float("-inf"))
    ordered = ordered / torch.where(greedy, 1.0, temperature).float()
    weights = (ordered.softmax(-1) * ONE).round().to(torch.int64)
    sums = weights.cumsum(-1)
    weights = weights * (sums - weights < top_p * sums[:, -1:])
    weights = weights * ((ordered - ordered[:, :1]).exp() >= min_p)
    by_id = torch.zeros_like(weights).scatter_(-1, order, weights)
    return torch.where(greedy[:, 0], order[:, 0], draw(by_id, noise))


def choose(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    noise: np.ndarray,
    histories: Sequence[Sequence[int]],
) -> list[int]:
    """The next token of each row: logits (B, V), which stay as they are; histories: the ids that
    each row's penalty counts as seen."""
    penalized = [row for row, one in enumerate(params) if one.repetition_penalty != 1]
    if penalized:
        logits = logits.clone()
    for row in penalized:
        seen = torch.tensor(sorted(set(histories[row])), device=logits.device)
        logits[row] = penalize(logits[row], seen, params[row].repetition_penalty)
    if logits.device.type != "cuda":
        return sample_each(logits, params, noise).tolist()
    table, noise = settings_table(params), torch.from_numpy(noise)
    return sample_table(logits, table.to(logits.device), noise.to(logits.device)).tolist()


def logprobs(
    logits: torch.Tensor, token: int, num_top: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """(log-probability of `token`, the likeliest (id, log-probability) pairs) by logits (V,)."""
    of_all = logits.log_softmax(-1)
    values, ids = of_all.topk(min(num_top, len(logits)))
    return float(of_all[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True))
