"""ARC: grade-school science questions, three to five choices. https://arxiv.org/abs/1803.05457"""

from pathlib import Path

from nanochat.common import DataError
from nanochat.dataset import hub_file, read_rows
from tasks.task import Task, check_split, choice_is_right, choice_question, exchange, in_range

LETTERS = "ABCDE"


class ARC(Task):
    """`subset` ARC-Easy or ARC-Challenge, `split` train, validation or test; `path` is a local file
    instead."""

    kind = "choice"

    def __init__(
        self, subset: str = "ARC-Easy", split: str = "test", path: str | Path | None = None
    ):
        check_split(subset, ("ARC-Easy", "ARC-Challenge"))
        check_split(split, ("train", "validation", "test"))
        self.name = subset.lower()
        path = path or hub_file("allenai/ai2_arc", f"{subset}/{split}-00000-of-00001.parquet")
        self.rows = list(read_rows(path))
        for number, row in enumerate(self.rows, start=1):
            choices = row.get("choices") or {}
            if row.get("answerKey") not in list(choices.get("label") or ()):
                raise DataError(
                    f"{path}: row {number} has no answerKey among its choices' labels; "
                    "columns question, choices{text, label}, answerKey are expected"
                )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[in_range(index, len(self))]
        options, labels = list(row["choices"]["text"]), list(row["choices"]["label"])
        letters = LETTERS[: len(options)]  # some questions number their choices: letters for all
        letter = letters[labels.index(row["answerKey"])]
        question = choice_question(row["question"], options, letters)
        return exchange(question, letter, letters=list(letters), answer=letter)

    def evaluate(self, conversation: dict, completion: str) -> bool:
        return choice_is_right(conversation, completion)
