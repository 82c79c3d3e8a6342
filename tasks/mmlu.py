"""MMLU: multiple-choice questions on 57 subjects, four choices each.
https://arxiv.org/abs/2009.03300"""

from pathlib import Path

from nanochat.common import DataError
from nanochat.data.sources import read_rows
from tasks.source import data_file
from tasks.task import ChoiceTask, check_split, choice_exchange

FILES = {
    "auxiliary_train": "auxiliary_train/train-00000-of-00001.parquet",
    "test": "all/test-00000-of-00001.parquet",
    "validation": "all/validation-00000-of-00001.parquet",
    "dev": "all/dev-00000-of-00001.parquet",
}


class MMLU(ChoiceTask):
    """14,042 questions to test, 1,531 validation, 285 dev, 99,842 auxiliary_train to train on;
    `path` is a local file or folder or another hub id instead (see source.py)."""

    name = "mmlu"

    def __init__(self, split: str = "test", path: str | Path | None = None):
        check_split(split, tuple(FILES))
        path = data_file(path, "cais/mmlu", FILES[split], split)
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
        row = self.rows[index]
        subject = row.get("subject", "")
        return choice_exchange(row["question"], row["choices"], row["answer"], subject=subject)
