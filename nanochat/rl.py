"""Reinforcement learning from a reward: rollouts, advantages, and batches of the policy gradient.

One step samples G answers to each of its prompts, with the weights of that step, and follows

    gradient of  sum A (-log p(token)) / (tokens of the step)

over the tokens that the model chose itself, its stop token included, the prompt and the results
of tools not. A is an answer's reward less its group's mean: REINFORCE (Williams 1992) with the
baseline of GRPO (Shao et al. 2024). Sampling with the weights of the step needs neither ratio nor
clipping; dividing by the group's deviation would favour questions that are nearly always or nearly
never answered (Liu et al. 2025). So it is supervised training with a weight for every token.
"""

import math
import numbers
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from nanochat.common import print0
from nanochat.data.packing import pad_widths, shuffled
from nanochat.dataloader import NO_LOSS, Batch
from nanochat.inference.request import Request
from nanochat.inference.sampling import SamplingParams

SECONDS_OF_A_REWARD = 10.0


@dataclass
class Rollout:
    """One sampled answer. `tokens` are its ids, with the stop token that ended it; `chosen` says
    which of them the model chose (a tool's result it did not); `finish` is "stop" or "length"."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)  # None: not asked for, or not chosen
    finish: str = ""


def rollouts(
    engine,
    prompts: Sequence[Sequence[int]],
    num_samples: int,
    *,
    seeds: Sequence[int],
    max_tokens: int,
    temperature: float = 1.0,
    max_batch: int = 256,
    logprobs: bool = False,
) -> list[list[Rollout]]:
    """`num_samples` answers to every prompt, all in one continuous batch of the engine, each prompt
    read once. seeds: one for each prompt; an answer depends on (seed, its sample's number) and the
    weights alone. logprobs: also log p of each chosen token, at temperature 1."""
    groups = [[Rollout(list(prompt)) for _ in range(num_samples)] for prompt in prompts]
    flat = [rollout for group in groups for rollout in group]
    requests = (
        Request(
            rollout.prompt,
            max_tokens,
            SamplingParams(temperature, seed=seeds[i]),
            sample_index=s,
            logprobs=0 if logprobs else None,
        )
        for i, group in enumerate(groups)
        for s, rollout in enumerate(group)
    )
    for index, output in engine.run(requests, max_batch=min(max_batch, len(flat))):
        rollout = flat[index]
        token = output.stop_token if output.token is None else output.token
        if token is not None:
            rollout.tokens.append(token)
            rollout.chosen.append(not output.forced)
            rollout.logprobs.append(output.logprob)
        rollout.finish = output.finish or ""
    return groups


# ---------------------------------------------------------------- rewards


class RewardTimeout(Exception):
    """A reward took longer than it may."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises RewardTimeout in the body after `seconds`.

    subtle: by a signal, which only the main thread gets, and which waits for a call into C to
    return; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number, frame):
        raise RewardTimeout(f"it took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Rewards:
    """reward(conversation, completion) -> float, called so that a fault in it ends no run: one that
    raises, hangs or returns no finite number counts as 0. `faults` counts them by kind; the first
    three are printed."""

    def __init__(self, reward: Callable[[dict, str], float], seconds: float = SECONDS_OF_A_REWARD):
        self.reward, self.seconds = reward, seconds
        self.faults: Counter[str] = Counter()

    def __call__(self, conversation: dict, completion: str) -> float:
        try:
            with time_limit(self.seconds):
                value = self.reward(conversation, completion)
            if isinstance(value, numbers.Real) and math.isfinite(value):
                return float(value)
            kind, why = "no number", f"it returned {value!r}"
        except RewardTimeout as error:
            kind, why = "too slow", str(error)
        except Exception as error:
            kind, why = "raised", repr(error)
        self.faults[kind] += 1
        if self.faults.total() <= 3:
            print0(f"the reward of {completion[:80]!r} counts as 0: {why}")
        return 0.0


def advantages(rewards: np.ndarray) -> np.ndarray:
    """rewards (prompts, G) -> each less its group's mean, the same shape; all zero for a group of
    equal rewards, which has nothing to teach.

    Example: advantages([[1, 0, 0, 1], [1, 1, 1, 1]]) == [[.5, -.5, -.5, .5], [0, 0, 0, 0]]
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    # subtle: the mean of equal numbers may differ from them in the last bit
    mixed = rewards.max(axis=1, keepdims=True) > rewards.min(axis=1, keepdims=True)
    return np.where(mixed, rewards - rewards.mean(axis=1, keepdims=True), 0.0)


# ---------------------------------------------------------------- batches


def policy_row(rollout: Rollout, weights: Sequence[float]) -> tuple[np.ndarray, ...]:
    """(inputs, targets, weights), each (T,), of prompt and answer; targets are the chosen tokens.

    weights: one for each token of the answer.
    Example: prompt [1, 2], tokens [3, 4], all chosen, weights [.5, .5] ->
    inputs [1, 2, 3], targets [-1, 3, 4], weights [0, .5, .5]
    """
    ids = np.array(rollout.prompt + rollout.tokens, dtype=np.int64)
    targets, of_token = np.full(len(ids), NO_LOSS), np.zeros(len(ids), dtype=np.float32)
    answer = slice(len(rollout.prompt), None)
    targets[answer] = np.where(rollout.chosen, rollout.tokens, NO_LOSS)
    of_token[answer] = np.where(rollout.chosen, weights, 0)
    return ids[:-1], targets[1:], of_token[1:]


def policy_batches(
    kept: Sequence[tuple[Rollout, Sequence[float]]],
    *,
    device_batch_size: int,
    max_length: int,
    device: torch.device | str,
    pad_id: int,
) -> list[Batch]:
    """The micro-batches of one step: (rollout, weight of each of its tokens) as rows, the longest
    first, `device_batch_size` at a time, padded to one of pad_widths(max_length).

    No row is dropped: what the last one lacks is rows without targets, and without any row there is
    one micro-batch of them, so that every rank computes.
    """
    rows = sorted((policy_row(*one) for one in kept), key=lambda row: -len(row[0]))
    batches = []
    for start in range(0, max(1, len(rows)), device_batch_size):
        part = rows[start : start + device_batch_size]
        longest = max((len(inputs) for inputs, *_ in part), default=1)
        width = next(width for width in pad_widths(max_length) if width >= longest)
        shape = device_batch_size, width
        inputs, targets = np.full(shape, pad_id, np.int64), np.full(shape, NO_LOSS, np.int64)
        weights = np.zeros(shape, np.float32)
        for i, row in enumerate(part):
            for full, values in zip((inputs, targets, weights), row, strict=True):
                full[i, : len(values)] = values
        tensors = (torch.from_numpy(array).to(device) for array in (inputs, targets, weights))
        inputs, targets, weights = tensors
        batches.append(Batch(inputs, targets, int((targets >= 0).sum()), weights))
    return batches


@torch.no_grad()
def token_logprobs(model, batches: Sequence[Batch]) -> list[np.ndarray]:
    """log p of every target of each micro-batch, (B, T) float32, 0 where there is none, as the
    training model has it."""
    found = []
    for batch in batches:
        logprobs = model(batch.inputs).log_softmax(-1)
        chosen = logprobs.gather(-1, batch.targets.clamp(min=0)[..., None])[..., 0]
        found.append(torch.where(batch.targets >= 0, chosen, 0).cpu().numpy())
    return found


# ---------------------------------------------------------------- the problems of a step


def problems_of_step(num_problems: int, prompts_per_step: int, step: int, seed: int) -> list[int]:
    """The problems that step 0, 1, ... asks: the next `prompts_per_step` of the shuffled epochs."""
    indices = range(step * prompts_per_step, (step + 1) * prompts_per_step)
    orders = {e: shuffled(num_problems, seed, e, 0) for e in {i // num_problems for i in indices}}
    return [int(orders[i // num_problems][i % num_problems]) for i in indices]
