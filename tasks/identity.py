"""Identity: who the assistant says it is, and courtesies, from a file that users can replace.

A line of the file is {"kind": "name", "prompts": ["What is your name?", ...], "held_out": ["...
your first name", ...], "answers": ["My name is nanochat."], "expect": ["nanochat"]}: core phrases
to ask with, those kept for testing (see tasks/wordings.py for their forms), answers to learn, and
phrases of which a right answer has at least one. A line may have slots, as in "Write a {thing}
about {topic}."; then "slots" lists what fills each, of which a fifth is kept for testing. Openers
and leads are those of the wordings.jsonl in the file's folder, or English.
"""

import random
import re
from pathlib import Path

from nanochat.common import DataError
from nanochat.files import user_path
from tasks.source import check_columns, load_rows, texts
from tasks.task import GeneratedTask, exchange, held_back, plain, says
from tasks.wordings import compose, draw_phrase, spread, wordings_beside


class Identity(GeneratedTask):
    """`size` conversations, each kind equally often; half of the test split in phrases held out,
    all of it with fillers held out."""

    name = "identity"
    capitals = 0.06
    default_sizes = {"train": 6000, "test": 1000}
    file = Path(__file__).with_name("identity.jsonl")
    layers: tuple[str, ...] = ("opener",)  # "Who are you, please?" is odd

    def __init__(
        self, split: str = "train", size: int | None = None, path: str | Path | None = None
    ):
        super().__init__(split, size)
        path = user_path(path or self.file)
        self.rows, self.wordings = load_rows(path, check), wordings_beside(path)
        if split == "test":
            self.rows = [row for row in self.rows if row["held_out"]]
            if not self.rows:
                raise DataError(f"{path}: no row has held_out prompts; the test split needs some")
        self.fillers = [
            {
                slot: [text for text in texts if held_back(text, 0.2) == (split == "test")]
                for slot, texts in row["slots"].items()
            }
            for row in self.rows
        ]

    def make(self, rng: random.Random, index: int) -> dict:
        if self.split == "train":  # every phrase about equally often, not by chance
            at = spread(index) * len(self.rows)
            number, place = int(at), at % 1
        else:
            number, place = rng.randrange(len(self.rows)), None
        row = self.rows[number]
        phrase, phrasing = draw_phrase(row, self.split, rng, place)
        slots = {slot: rng.choice(texts) for slot, texts in self.fillers[number].items()}
        question = compose(phrase, rng, self.layers, self.wordings, **slots)
        answer = rng.choice(row["answers"])
        return exchange(question, answer, expect=row["expect"], phrasing=phrasing)

    def evaluate(self, conversation: dict, completion: str) -> bool:
        return any(says(completion, phrase) for phrase in conversation["expect"])


def check(row: dict, where: str) -> dict:
    """A row of an identity file; DataError where it is incomplete or contradicts itself."""

    def any_texts(value: object) -> list[str]:
        return [] if value == [] else texts(value)

    def slot_texts(value: object) -> dict[str, list[str]]:
        if not isinstance(value, dict):
            raise ValueError("slots with what fills each")
        return {slot: texts(fillers) for slot, fillers in value.items()}

    columns = {"prompts": texts, "held_out": any_texts, "answers": texts, "expect": texts}
    row = {"held_out": [], "slots": {}} | row
    row = check_columns(row, where, columns | {"slots": slot_texts})
    asked = {plain(prompt) for prompt in row["prompts"]}
    for prompt in row["held_out"]:
        if plain(prompt) in asked:
            raise DataError(f"{where}: {prompt!r} is held out and also a prompt")
    for slot in re.findall(r"{(\w*)", " ".join(row["prompts"] + row["held_out"])):
        if len({held_back(text, 0.2) for text in row["slots"].get(slot, ())}) < 2:
            raise DataError(f"{where}: 'slots' has too few texts for {{{slot}}}")
    for answer in row["answers"]:
        if not any(says(answer, phrase) for phrase in row["expect"]):
            raise DataError(f"{where}: answer {answer!r} has none of {row['expect']}")
    return row
