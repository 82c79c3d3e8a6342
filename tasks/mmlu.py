"""MMLU: multiple-choice questions on 57 subjects, four choices each.
https://arxiv.org/abs/2009.03300"""

from pathlib import Path

from nanochat.common import DataError
from nanochat.dataset import hub_file, read_rows
from tasks.task import Task, check_split, choice_is_right, choice_question, exchange, in_range

LETTERS = "ABCD"
FILES = {
    "auxiliary_train": "auxiliary_train/train-00000-of-00001.parquet",
    "test": "all/test-00000-of-00001.parquet",
    "validation": "all/validation-00000-of-00001.parquet",
    "dev": "all/dev-00000-of-00001.parquet",
}


class MMLU(Task):
    """14,042 questions to test, 1,531 validation, 285 dev, 99,842 auxiliary_train to train on."""

    name = "mmlu"
    kind = "choice"

    def __init__(self, split: str = "test", path: str | Path | None = None):
        check_split(split, tuple(FILES))
        path = path or hub_file("cais/mmlu", FILES[split])
        # The hub's auxiliary_train has its columns inside one column, "train".
        self.rows = [row.get("train", row) for row in read_rows(path)]
        for number, row in enumerate(self.rows, start=1):
            if len(row.get("choices") or ()) != 4 or row.get("answer") not in range(4):
                raise DataError(
                    f"{path}: row {number} has not four choices and an answer 0..3; "
                    "columns question, subject, choices, answer as in cais/mmlu are expected"
                )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[in_range(index, len(self))]
        question = choice_question(row["question"], row["choices"], LETTERS)
        letter = LETTERS[row["answer"]]
        extra = {"letters": list(LETTERS), "answer": letter, "subject": row.get("subject", "")}
        return exchange(question, letter, **extra)

    def evaluate(self, conversation: dict, completion: str) -> bool:
        return choice_is_right(conversation, completion)
