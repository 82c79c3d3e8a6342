"""ARC: grade-school science questions, three to five choices. https://arxiv.org/abs/1803.05457"""

from pathlib import Path

from nanochat.common import DataError
from nanochat.data.sources import read_rows
from tasks.source import data_file
from tasks.task import ChoiceTask, check_split, choice_exchange


class ARC(ChoiceTask):
    """`subset` ARC-Easy or ARC-Challenge, `split` train, validation or test; `path` is a local file
    or folder or another hub id instead (see source.py)."""

    def __init__(
        self, subset: str = "ARC-Easy", split: str = "test", path: str | Path | None = None
    ):
        check_split(subset, ("ARC-Easy", "ARC-Challenge"))
        check_split(split, ("train", "validation", "test"))
        self.name = subset.lower()
        name = f"{subset}/{split}-00000-of-00001.parquet"
        path = data_file(path, "allenai/ai2_arc", name, split)
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
        row = self.rows[index]
        # Some questions number their choices: letters for all.
        right = list(row["choices"]["label"]).index(row["answerKey"])
        return choice_exchange(row["question"], list(row["choices"]["text"]), right)
