"""A task and a reward of one's own, as a user writes them: the fewer characters the better."""

from tasks.identity import Identity


class Few(Identity):
    """So few conversations that all of them are made in no time."""

    default_sizes = {"train": 100, "test": 20}


def reward(conversation: dict, completion: str) -> float:
    return -len(completion)
