"""Counterfactuals: the same questions under a change that shows where a score comes from.

Choice tasks: each question's options stand in another order, drawn by (seed, task, index). A model
that knows the answer keeps its score; one that learned which letters are right falls to chance.
(Options that speak of others, such as "both of the above", suffer a little.)

Tasks with the tool: it answers each call with a wrong number. A model that uses it falls to about
0; an unchanged score means that the tool is not used.
"""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal

from nanochat.common import print0
from tasks.task import ChoiceTask, Task, choice_exchange

NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE)


class Shuffled(ChoiceTask):
    """`task` with each question's options in another order, the answer's letter following: red=A,
    blue=B with answer B may become blue=A, red=B with answer A."""

    def __init__(self, task: ChoiceTask, seed: int = 0):
        self.task, self.name, self.seed = task, f"{task.name}-control", seed

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        old = self.task[index]
        order = list(range(len(old["options"])))
        random.Random(f"{self.seed}/{self.task.name}/{index}").shuffle(order)
        right = order.index(old["letters"].index(old["answer"]))
        return choice_exchange(old["question"], [old["options"][i] for i in order], right)


def wrong_results(tool: Callable[[str], str]) -> Callable[[str], str]:
    """The tool, but each number it returns is one more, or half of it beyond 1e15; other results,
    such as errors, stay. Example: wrong_results(evaluate)("6*7") == "43"."""

    def answer(call: str) -> str:
        result = tool(call)
        if not NUMBER.fullmatch(result.strip()):
            return result
        number = Decimal(result.strip())
        return str(number + 1 if abs(number) < 10**15 else number / 2)

    return answer


def calls_tool(task: Task, rows: int = 100) -> bool:
    """Whether a reference answer among the first `rows` calls the tool."""
    contents = (task[i]["messages"][-1]["content"] for i in range(min(rows, len(task))))
    return any(
        not isinstance(content, str) and any(part["type"] == "python" for part in content)
        for content in contents
    )


class ControlledTool:
    """A tool for an engine, which `counterfactual` can make answer wrongly for a while."""

    def __init__(self, run: Callable[[str], str]):
        self.run = run

    def __call__(self, call: str) -> str:
        return self.run(call)


@contextmanager
def counterfactual(task: Task, tool: ControlledTool | None, seed: int = 0) -> Iterator[Task | None]:
    """Yields the task to ask under the change, during which the engine's `tool` may answer wrongly;
    None, with a printed line, if there is nothing to change."""
    if task.kind == "choice":
        yield Shuffled(task, seed)
    elif calls_tool(task) and tool is not None:
        right, tool.run = tool.run, wrong_results(tool.run)
        try:
            yield task
        finally:
            tool.run = right
    else:
        print0(f"{task.name}: no control, for it has neither options nor a tool to change")
        yield None
