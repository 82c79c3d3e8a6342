"""MMLU: multiple-choice questions on 57 subjects, four choices each.
https://arxiv.org/abs/2009.03300"""

from pathlib import Path

from tasks.source import check_columns, data_file, load_rows, number_below, text, texts
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

    def __init__(
        self,
        split: str = "test",
        path: str | Path | None = None,
        max_malformed: float | None = None,
    ):
        check_split(split, tuple(FILES))
        path = data_file(path, "cais/mmlu", FILES[split], split)
        columns = ["question", "subject", "choices", "answer", "train"]
        self.rows = load_rows(path, check, columns, max_malformed)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        subject = row.get("subject") or ""
        return choice_exchange(row["question"], row["choices"], row["answer"], subject=subject)


def check(row: dict, where: str) -> dict:
    """The row; the hub's auxiliary_train has its columns inside one column, "train"."""

    def four(value: object) -> list[str]:
        found = texts(value)
        if len(found) != 4:
            raise ValueError("four texts")
        return found

    row = row["train"] if isinstance(row.get("train"), dict) else row
    columns = {"question": text, "choices": four, "answer": number_below(4)}
    return check_columns(row, where, columns)
