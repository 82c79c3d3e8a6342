"""Free questions: what people type when nobody tells them how, by hand, and never trained on.

The other tasks ask in wordings that are made by rule; a model may know these and not a user's. A
line of the file is {"kind", "question", "expect": [...]}: phrases, of which a right answer has one;
and "before": a question and its answer, where the question goes on from them.

free_questions_2.jsonl and free_questions_3.jsonl have as many each, by two other hands, from a list
of what the assistant can do alone: ask them as free@tasks/free_questions_2.jsonl. None of the
files is trained on.
"""

import random
import re
from pathlib import Path

from nanochat.files import user_path
from tasks.arithmetic import Arithmetic
from tasks.facts import Facts
from tasks.identity import Identity
from tasks.source import check_columns, load_rows, text, texts
from tasks.spelling import Spelling
from tasks.task import FREE_QUESTIONS, Task, check_split, exchange, final_text, says
from tasks.unknown import Unknown


class Free(Task):
    """The questions of free_questions.jsonl, or of a file of the same form; test split only."""

    name = "free"

    def __init__(self, split: str = "test", path: str | Path | None = None):
        check_split(split, ("test",))
        self.rows = load_rows(user_path(path or FREE_QUESTIONS), check)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        asked = exchange(row["question"], row["expect"][0], expect=row["expect"], kind=row["kind"])
        if before := row.get("before"):
            asked["messages"] = exchange(*before)["messages"] + asked["messages"]
        return asked

    def evaluate(self, conversation: dict, completion: str) -> bool:
        """Spelled: exactly the letters, apart. A number: the last one said. Else one phrase."""
        said, expect = final_text(completion), conversation["expect"]
        if conversation["kind"] == "spell":
            return re.split(r"[\s,-]+", said.lower().rstrip(".")) == expect[0].split()
        if conversation["kind"] in ("arithmetic", "count"):
            return re.findall(r"\d+(?:\.\d+)?", said.replace(",", ""))[-1:] == expect
        return any(says(completion, phrase) for phrase in expect)


class Talk(Free):
    """The free questions in the middle of a talk: each after one to three conversations of other
    tasks' test splits, with their right answers."""

    name = "talk"

    def __init__(self, split: str = "test", path: str | Path | None = None):
        super().__init__(split, path)
        self.others = [task(split) for task in (Arithmetic, Facts, Identity, Spelling, Unknown)]

    def __getitem__(self, index: int) -> dict:
        asked, rng = super().__getitem__(index), random.Random(f"talk/{index}")
        for _ in range(rng.randint(1, 3)):
            other = rng.choice(self.others)
            before = other[rng.randrange(len(other))]
            asked["messages"] = before["messages"] + asked["messages"]
        return asked


def check(row: dict, where: str) -> dict:
    def exchanged(value: object) -> list[str]:
        if value is not None and len(texts(value)) != 2:
            raise ValueError("a question and its answer")
        return value

    columns = {"kind": text, "question": text, "expect": texts, "before": exchanged}
    return check_columns({"before": None} | row, where, columns)
