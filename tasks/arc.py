"""ARC: grade-school science questions, three to five choices. https://arxiv.org/abs/1803.05457"""

from pathlib import Path

from nanochat.common import DataError
from tasks.source import check_columns, data_file, load_rows, text, texts
from tasks.task import ChoiceTask, check_split, choice_exchange


class ARC(ChoiceTask):
    """`subset` ARC-Easy or ARC-Challenge, `split` train, validation or test; `path` is a local file
    or folder or another hub id instead (see source.py)."""

    def __init__(
        self,
        subset: str = "ARC-Easy",
        split: str = "test",
        path: str | Path | None = None,
        max_malformed: float | None = None,
    ):
        check_split(subset, ("ARC-Easy", "ARC-Challenge"))
        check_split(split, ("train", "validation", "test"))
        self.name = subset.lower()
        name = f"{subset}/{split}-00000-of-00001.parquet"
        path = data_file(path, "allenai/ai2_arc", name, split)
        self.rows = load_rows(path, check, ["question", "choices", "answerKey"], max_malformed)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        # Some questions number their choices: letters for all.
        right = row["choices"]["label"].index(row["answerKey"])
        return choice_exchange(row["question"], row["choices"]["text"], right)


def check(row: dict, where: str) -> dict:
    """The row, with as many labels as texts, and answerKey among the labels."""

    def choices(value: object) -> dict:
        if not isinstance(value, dict):
            raise ValueError("text and label, two lists")
        found = {"text": texts(value.get("text")), "label": texts(value.get("label"))}
        if len(found["text"]) != len(found["label"]) or len(found["text"]) > 26:
            raise ValueError("as many texts as labels, up to 26")
        return found

    row = check_columns(row, where, {"question": text, "choices": choices, "answerKey": text})
    if row["answerKey"] not in row["choices"]["label"]:
        raise DataError(f"{where}: 'answerKey' is {row['answerKey']!r}, expected one of the labels")
    return row
