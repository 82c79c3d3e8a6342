"""Mixture: several tasks as one shuffled list of conversations, each with a weight in epochs."""

import random
from array import array
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nanochat.common import ConfigError
from nanochat.data.token_shards import TokenShards


class Mixture:
    """A list of conversations: every task as many times as its weight says, shuffled by `seed`.

    A weight is a number of epochs: 2 has every conversation twice, 0.5 a fixed pseudo-random half,
    1.25 all of them and a quarter twice. The order depends on the tasks' sizes, the weights and the
    seed alone. Example: Mixture([(GSM8K(), 1), (Identity(), 4)], seed=42).
    """

    def __init__(self, parts: Sequence[tuple[Sequence, float]], seed: int = 42):
        self.tasks = [task for task, _ in parts]
        self.task_of, self.row_of = array("q"), array("q")
        rng = random.Random(seed)
        for number, (task, weight) in enumerate(parts):
            if not 0 <= weight <= 10_000:
                raise ConfigError(f"{name_of(task)}: weight {weight}; 0 to 10,000 epochs can be")
            whole, rest = int(weight), round((weight - int(weight)) * len(task))
            rows = array("q", list(range(len(task))) * whole + rng.sample(range(len(task)), rest))
            self.row_of += rows
            self.task_of += array("q", [number]) * len(rows)
        if not self.row_of:
            raise ConfigError("the mixture is empty: give at least one task with a weight above 0")
        self.order = array("q", range(len(self.row_of)))
        rng.shuffle(self.order)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict:
        place = self.order[index]
        return self.tasks[self.task_of[place]][self.row_of[place]]

    def report(self) -> list[tuple[str, int]]:
        """(name, conversations) of each part, in the order given."""
        return [
            (name_of(task), self.task_of.count(number)) for number, task in enumerate(self.tasks)
        ]


def name_of(task) -> str:
    return getattr(task, "name", type(task).__name__)


def in_turns(conversations: TokenShards, go_on: float, longest: int, seed: int) -> TokenShards:
    """The same conversations, each with the chance `go_on` as the next turns of the one before it,
    up to `longest` tokens: a model that has seen first turns alone does not answer later ones."""
    if not 0 <= go_on <= 1:
        raise ConfigError(f"--go-on {go_on:g}: a chance, expected 0 to 1")
    (shard,), rng = conversations.shards, random.Random(seed)
    begins, length = [], longest
    for i, tokens in enumerate(np.diff(shard.offsets).tolist()):
        length += tokens
        if length > longest or rng.random() >= go_on:
            begins.append(i)
            length = tokens
    offsets = shard.offsets[[*begins, -1]]
    return replace(conversations, shards=[replace(shard, offsets=offsets)])
