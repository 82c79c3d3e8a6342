"""Reinforcement learning from a reward: rollouts, advantages, and batches of the policy gradient.

One step samples G answers to each of its prompts, with the weights of that step, and follows

    gradient of  sum A (-log p(token)) / (tokens of the step)

over the tokens that the model chose itself, its stop token included, but not the prompt or the
results of tools. A is an answer's reward less its group's mean: REINFORCE (Williams 1992) with the
baseline of GRPO (Shao et al. 2024). Sampling with the weights of the step needs neither ratio nor
clipping; dividing by the group's deviation would favour questions that are nearly always or nearly
never answered (Liu et al. 2025). So it is supervised training with a weight for every token.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal

import numpy as np
import torch

from nanochat.common import gather, rank_and_world
from nanochat.conversation import render_for_completion
from nanochat.data.packing import of_epochs, pad_widths
from nanochat.dataloader import NO_LOSS, Batch, collate, move
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.inference.request import Request
from nanochat.inference.sampling import SamplingParams


@dataclass
class Rollout:
    """One sampled answer."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)  # with the stop token that ended it
    chosen: list[bool] = field(default_factory=list)  # by the model; a tool's result is not
    logprobs: list[float | None] = field(default_factory=list)  # None: not asked for, or not chosen
    finish: str = ""  # "stop" or "length"


def rollouts(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    num_samples: int,
    *,
    seeds: Sequence[int],
    max_tokens: int,
    temperature: float = 1.0,
    logprobs: bool = False,
) -> list[list[Rollout]]:
    """`num_samples` answers to every prompt, all in one continuous batch of the engine, each prompt
    read once. seeds: one for each prompt; an answer depends on (seed, its sample's number) and the
    weights alone. logprobs: also log p of each chosen token, at temperature 1."""
    groups = [[Rollout(list(prompt)) for _ in range(num_samples)] for prompt in prompts]
    flat = [rollout for group in groups for rollout in group]
    top = 0 if logprobs else None  # alternatives to name
    requests = [
        Request(prompt, max_tokens, SamplingParams(temperature, seed=seed), s, logprobs=top)
        for prompt, seed in zip(prompts, seeds, strict=True)
        for s in range(num_samples)
    ]
    for index, output in engine.run(requests):
        rollout = flat[index]
        token = output.stop_token if output.token is None else output.token
        if token is not None:
            rollout.tokens.append(token)
            rollout.chosen.append(not output.forced)
            rollout.logprobs.append(output.logprob)
        rollout.finish = output.finish or ""
    return groups


def advantages(rewards: np.ndarray, kind: str = "group_mean") -> np.ndarray:
    """rewards (prompts, G) -> each less its group's mean, the same shape; all zero for a group of
    equal rewards, which has nothing to teach. "rejection": 1 for a reward above 0, else 0.

    Example: advantages([[1, 0, 0, 1], [1, 1, 1, 1]]) == [[.5, -.5, -.5, .5], [0, 0, 0, 0]]
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    if kind == "rejection":
        return (rewards > 0).astype(np.float64)
    # subtle: the mean of equal numbers may differ from them in the last bit
    mixed = rewards.max(axis=1, keepdims=True) > rewards.min(axis=1, keepdims=True)
    return np.where(mixed, rewards - rewards.mean(axis=1, keepdims=True), 0.0)


def policy_row(rollout: Rollout, weight: float) -> tuple[np.ndarray, ...]:
    """(inputs, targets, weights), each (T,), of prompt and answer; targets are the chosen tokens.

    Example: prompt [1, 2], tokens [3, 4], both chosen, weight .5 ->
    inputs [1, 2, 3], targets [-1, 3, 4], weights [0, .5, .5]
    """
    ids = np.array(rollout.prompt + rollout.tokens, dtype=np.int64)
    learned = np.array([False] * len(rollout.prompt) + rollout.chosen, dtype=bool)
    targets = np.where(learned, ids, NO_LOSS)
    return ids[:-1], targets[1:], learned[1:] * np.float32(weight)


@torch.no_grad()
def token_logprobs(model, batch: Batch) -> torch.Tensor:
    """log p of every target, (B, T) float32, 0 where there is none, by the training model."""
    logprobs = model(batch.inputs).log_softmax(-1)  # (B, T, V)
    chosen = logprobs.gather(-1, batch.targets.clamp(min=0)[..., None])[..., 0]
    return torch.where(batch.targets >= 0, chosen, 0)


@dataclass(frozen=True)
class PolicySettings:
    """How a step samples and what it learns from."""

    prompts_per_step: int = 16
    """Problems of one step, over all ranks."""
    num_samples: int = 16
    """Answers to each problem: the group whose mean reward is the baseline."""
    max_tokens: int = 256
    """Longest answer, in tokens."""
    advantage: Literal["group_mean", "rejection"] = "group_mean"
    """What an answer weighs: its reward less its group's mean; or 1 where the reward is above 0 and
    else nothing, which is fine-tuning on the model's own right answers, to compare with."""
    temperature: float = 1.0
    """Of the answers that are learned from; only 1 is on-policy."""
    kl_coef: float = 0.0
    """Pull back to the model that the run began with; above 0 that model is held in memory, too."""
    mask_truncated: bool = False
    """Learn nothing from answers that --max-tokens cut off."""


@dataclass
class Policy:
    """Samples answers to a task's problems, rewards them, and makes training steps of them.

    task: conversations by index, whose last message is left out of the prompt. reward(conversation,
    completion) -> float. reference: the model to stay close to, where settings.kl_coef is above 0.
    note(step, figures): called with how the sampling of each step went.
    """

    engine: Engine
    task: Sequence[dict]
    reward: Callable[[dict, str], float]
    settings: PolicySettings
    seed: int
    device_batch_size: int
    reference: GPT | None = None
    note: Callable[[int, dict], None] = lambda step, figures: None

    def sample(
        self, task, problems: Sequence[int], step: int, num_samples: int, **options
    ) -> tuple[list[dict], list[list[Rollout]]]:
        """(conversations, groups of answers) of this rank's share of the problems.

        The noise of an answer depends on (seed, step, place of the problem, sample) alone.
        """
        rank, world = rank_and_world()
        seeds = np.random.SeedSequence((self.seed, step)).generate_state(len(problems)).tolist()
        conversations = [task[i] for i in problems[rank::world]]
        prompts = [render_for_completion(c, self.engine.tokenizer) for c in conversations]
        options |= {"seeds": seeds[rank::world], "max_tokens": self.settings.max_tokens}
        return conversations, rollouts(self.engine, prompts, num_samples, **options)

    def judge(self, conversations, groups, num_samples: int, reward) -> np.ndarray:
        """(prompts, num_samples) float64: the rewards of groups of answers."""
        decode = self.engine.tokenizer.decode
        pairs = zip(conversations, groups, strict=True)
        rewards = [[reward(c, decode(rollout.tokens)) for rollout in group] for c, group in pairs]
        return np.array(rewards, dtype=np.float64).reshape(len(groups), num_samples)

    def steps(self, first_step: int) -> Iterator[list[Batch]]:
        """Those of first_step and after, each sampled with the weights that the model has then."""
        yield from map(self.step, count(first_step))

    def step(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step, sampled now."""
        settings, started = self.settings, time.perf_counter()
        self.engine.refresh()
        number = settings.prompts_per_step
        problems = of_epochs(len(self.task), step * number, number, self.seed).tolist()
        conversations, groups = self.sample(
            self.task, problems, step, settings.num_samples, temperature=settings.temperature
        )
        seconds = time.perf_counter() - started
        rewards = self.judge(conversations, groups, settings.num_samples, self.reward)
        self.note(step, step_figures(groups, rewards, seconds))
        kept = [
            (rollout, advantage)
            for group, row in zip(groups, advantages(rewards, settings.advantage), strict=True)
            for rollout, advantage in zip(group, row, strict=True)
            if advantage and not (settings.mask_truncated and rollout.finish == "length")
        ]
        batches = self.batches(kept)
        return [self.with_kl_penalty(batch) for batch in batches] if settings.kl_coef else batches

    def batches(self, kept: Sequence[tuple[Rollout, float]]) -> list[Batch]:
        """Micro-batches of one step: (rollout, its weight) as rows, the longest first.

        No row is dropped: what the last one lacks is rows without targets, and without any row
        there is one micro-batch of them, so that every rank computes.
        """
        model, size = self.engine.model, self.device_batch_size
        shape = pad_widths(model.config.sequence_len), self.engine.tokenizer.bos, size
        rows = sorted((policy_row(*one) for one in kept), key=lambda row: -len(row[0]))
        parts = [rows[i : i + size] for i in range(0, len(rows), size)] or [[]]
        return [move(collate(part, *shape, weighted=True), model.device) for part in parts]

    def with_kl_penalty(self, batch: Batch) -> Batch:
        """Each weight less kl_coef (log p - log p of the reference): the gradient of the KL
        divergence, by the one-sample estimate at every token."""
        now, then = (token_logprobs(model, batch) for model in (self.engine.model, self.reference))
        return replace(batch, weights=batch.weights - self.settings.kl_coef * (now - then))


def step_figures(groups: list[list[Rollout]], rewards: np.ndarray, seconds: float) -> dict:
    """What a step is logged with, over all ranks; seconds: of sampling, on this one."""
    flat = [rollout for group in groups for rollout in group]
    tokens, cut = sum(len(r.tokens) for r in flat), sum(r.finish == "length" for r in flat)
    mixed = advantages(rewards).any(axis=1)
    every = gather([(rewards.sum(), rewards.size, mixed.sum(), len(mixed), tokens, cut)])
    total, answers, mixed, prompts, tokens, cut = (sum(part) for part in zip(*every, strict=True))
    return {
        "reward": float(total / answers),
        "mixed_groups": float(mixed / prompts),
        "answer_tokens": tokens / answers,
        "cut_share": cut / answers,
        "rollout_seconds": seconds,
        "rollout_tokens_per_second": tokens / seconds,
    }
