"""GSM8K: grade-school word problems, whose calculations become calls of the tool.

https://arxiv.org/abs/2110.14168. A solution holds marks such as "48/2 = <<48/2=24>>24 clips" and
ends in "#### 72".
"""

import re
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from pathlib import Path

from nanochat.inference.calculator import CalculatorError, calculate
from tasks.source import check_columns, data_file, load_rows, text
from tasks.task import Task, check_split, exchange, final_text

MARK = re.compile(r"<<(.*?)>>")
FINAL = re.compile(r"####\s*\$?\s*(-?[\d.,]+)")


class GSM8K(Task):
    """7,473 problems for training, 1,319 to test; `path` is a local file or folder, with columns
    question and answer, or another hub id instead (see source.py)."""

    name = "gsm8k"
    baseline = 0.0

    def __init__(
        self,
        split: str = "train",
        path: str | Path | None = None,
        max_malformed: float | None = None,
    ):
        check_split(split, ("train", "test"))
        path = data_file(path, "openai/gsm8k", f"main/{split}-00000-of-00001.parquet", split)
        self.rows = load_rows(path, check, ["question", "answer"], max_malformed)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        answer = row["answer"]
        return exchange(row["question"], tool_parts(answer), answer=str(final_number(answer)))

    def extract(self, completion: str) -> str | None:
        found = final_number(final_text(completion))
        return None if found is None else str(found)

    def evaluate(self, conversation: dict, completion: str) -> bool:
        found = final_number(final_text(completion))
        return found is not None and found == Decimal(conversation["answer"])


def check(row: dict, where: str) -> dict:
    def solution(value: object) -> str:
        if isinstance(value, str) and final_number(value) is not None:
            return value
        raise ValueError("a solution that ends in '#### number'")

    return check_columns(row, where, {"question": text, "answer": solution})


def tool_parts(solution: str) -> list[dict]:
    """A solution as parts: text, and for each `<<expression=value>>` a call and its output, which
    is what the tool says (0.2 where the data set has .20).

    tool_parts("so <<6*7=42>>42.") is text "so ", python "6*7", python_output "42", text "42.".
    """
    parts = []
    for position, piece in enumerate(MARK.split(solution)):
        if position % 2 == 0:
            parts += [{"type": "text", "text": piece}] if piece else []
            continue
        expression, _, output = piece.rpartition("=")
        with suppress(CalculatorError):  # then what the data set says stays
            output = calculate(expression)
        parts.append({"type": "python", "text": expression})
        parts.append({"type": "python_output", "text": output})
    return parts


def final_number(text: str) -> Decimal | None:
    """The number after the last "####", without commas; None where there is none."""
    found = FINAL.findall(text)
    try:
        return Decimal(found[-1].replace(",", "").rstrip(".")) if found else None
    except InvalidOperation:
        return None
