"""Identity: who the assistant says it is, and courtesies, from a file that users can replace.

A line of the file is {"kind": "name", "prompts": ["What is your name?", ...], "held_out": ["Your
name, please?", ...], "answers": ["My name is nanochat."], "expect": ["nanochat"]}: ways to ask,
ways kept for testing, answers to learn, and phrases of which a right answer has at least one.
"""

import random
from pathlib import Path

from nanochat.common import DataError
from nanochat.data.sources import read_rows
from tasks.task import GeneratedTask, exchange, plain, says

DEFAULT_FILE = Path(__file__).with_name("identity.jsonl")
LISTS = ("prompts", "held_out", "answers", "expect")
OPENINGS = ("Hi! ", "Hello, ", "Hey nanochat, ", "Please tell me: ", "One question: ")


class Identity(GeneratedTask):
    """Train: `size` conversations, each prompt as written or a little changed. Test: each held-out
    prompt, as it is."""

    name = "identity"
    default_sizes = {"train": 4000, "test": 1000}

    def __init__(
        self, split: str = "train", size: int | None = None, path: str | Path | None = None
    ):
        super().__init__(split, size)
        self.rows = read_identity(path or DEFAULT_FILE)
        self.held_out = [(prompt, row) for row in self.rows for prompt in row["held_out"]]
        if split == "test":
            if not self.held_out:
                raise DataError(f"{path}: no row has held_out prompts; the test split needs some")
            self.size = min(self.size, len(self.held_out))

    def __getitem__(self, index: int) -> dict:
        if self.split == "train":
            return super().__getitem__(index)
        prompt, row = self.held_out[range(self.size)[index]]
        return exchange(prompt, row["answers"][0], expect=row["expect"])

    def make(self, rng: random.Random) -> dict:
        row = rng.choice(self.rows)
        prompt = vary(rng.choice(row["prompts"]), rng)
        return exchange(prompt, rng.choice(row["answers"]), expect=row["expect"])

    def evaluate(self, conversation: dict, completion: str) -> bool:
        return any(says(completion, phrase) for phrase in conversation["expect"])


def vary(prompt: str, rng: random.Random) -> str:
    """The prompt as people also type it: in lower case, unpunctuated, or after a few words."""
    change = rng.choice(("none", "none", "none", "lower", "unmarked", "opening"))
    if change == "lower":
        return prompt.lower()
    if change == "unmarked":
        return prompt.rstrip("?!.")
    if change == "opening" and prompt.endswith("?"):
        first = prompt if prompt.startswith("I ") else prompt[0].lower() + prompt[1:]
        opening = rng.choice(OPENINGS)
        return opening + (first if opening.endswith(", ") else prompt)
    return prompt


def read_identity(path: str | Path) -> list[dict]:
    """The rows of an identity file; DataError names a row that is incomplete or contradicts
    itself."""
    rows = list(read_rows(path))
    for number, row in enumerate(rows, start=1):
        row.setdefault("held_out", [])
        for key in LISTS:
            value = row.get(key)
            if not isinstance(value, list) or not all(isinstance(x, str) and x for x in value):
                raise DataError(
                    f"{path}:{number}: {key!r} is {value!r}; a list of texts is expected"
                )
            if not value and key != "held_out":
                raise DataError(f"{path}:{number}: {key!r} is empty; at least one is expected")
        asked = {plain(prompt) for prompt in row["prompts"]}
        for prompt in row["held_out"]:
            if plain(prompt) in asked:
                raise DataError(f"{path}:{number}: {prompt!r} is held out and also a prompt")
        for answer in row["answers"]:
            if not any(says(answer, phrase) for phrase in row["expect"]):
                raise DataError(f"{path}:{number}: answer {answer!r} has none of {row['expect']}")
    if not rows:
        raise DataError(f"{path}: no rows; each line is one kind of question")
    return rows
