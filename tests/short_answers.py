"""A task and a reward of one's own, as a user writes them: the fewer characters the better."""

import random

from tasks.identity import Identity


class Few(Identity):
    """So few conversations that all of them are made in no time, short enough for a context of 64
    tokens of a few letters."""

    default_sizes = {"train": 100, "test": 20}

    def make(self, rng: random.Random, index: int) -> dict:
        conversation = super().make(rng, index)
        while len(conversation["messages"][0]["content"]) > 40:
            conversation = super().make(rng, rng.randrange(1000))
        return conversation


def reward(conversation: dict, completion: str) -> float:
    return -len(completion)
