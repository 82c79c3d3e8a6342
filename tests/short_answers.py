"""A reward of one's own, as a user writes it: the fewer characters the better."""


def reward(conversation: dict, completion: str) -> float:
    return -len(completion)
