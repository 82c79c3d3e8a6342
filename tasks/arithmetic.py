"""Arithmetic through the tool: the question becomes an expression, the tool its value, the value
the answer.

What is learned is to copy two numbers and choose an operator, so it carries over to numbers never
seen together.
"""

import random
import re

from nanochat.inference.calculator import calculate
from tasks.task import GeneratedTask, exchange, final_text, held_back, tool_answer

# How a user may write each operator between two numbers; drawn with equal weight.
SIGNS = {
    "+": ("{a} + {b}", "{a}+{b}", "{a} plus {b}"),
    "-": ("{a} - {b}", "{a}-{b}", "{a} minus {b}"),
    "*": ("{a} * {b}", "{a}*{b}", "{a} x {b}", "{a} times {b}", "{a} multiplied by {b}"),
    "/": ("{a} / {b}", "{a}/{b}", "{a} divided by {b}"),
}
WORDINGS = (
    "What is {problem}?",
    "What's {problem}?",
    "What is {problem}",
    "what is {problem}?",
    "How much is {problem}?",
    "Calculate {problem}.",
    "Calculate {problem}",
    "Compute {problem}.",
    "Work out {problem}.",
    "Can you calculate {problem}?",
    "Please compute {problem}.",
    "Tell me what {problem} is.",
    "{problem}",
    "{problem}?",
    "{problem} =",
    "{problem} = ?",
)
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


class Arithmetic(GeneratedTask):
    """a + b, a - b, a * b with one to three digits, and some exact divisions.

    The test split has + - * of two and three digits, on pairs (in either order) that no train
    conversation has: a tenth of all pairs, by hash.

    Arithmetic("test")[0]["messages"][1]["content"] might be python "37*12", python_output "444",
    text "444".
    """

    name = "arithmetic"

    def make(self, rng: random.Random) -> dict:
        sign, a, b = self.draw(rng)
        while is_test(sign, a, b) != (self.split == "test"):
            sign, a, b = self.draw(rng)
        problem = rng.choice(SIGNS[sign]).format(a=a, b=b)
        question = rng.choice(WORDINGS).format(problem=problem)
        expression = f"{a}{sign}{b}"
        output = calculate(expression)
        return exchange(question, tool_answer(expression, output, output), answer=output)

    def draw(self, rng: random.Random) -> tuple[str, int, int]:
        if self.split == "test":
            return rng.choice("+-*"), draw_number(rng, (0, 1, 1)), draw_number(rng, (0, 1, 1))
        sign = rng.choice("+++---***/")
        a, b = draw_number(rng, (1, 3, 6)), draw_number(rng, (1, 3, 6))
        if sign == "/":
            b = max(b % 100, 1)
            a -= a % b  # so that it divides exactly
        return sign, a, b

    def evaluate(self, conversation: dict, completion: str) -> bool:
        """Whether the last number that the assistant says, after its tool calls, is the answer."""
        found = NUMBER.findall(final_text(completion).replace("−", "-"))
        return bool(found) and float(found[-1].replace(",", "")) == float(conversation["answer"])


def draw_number(rng: random.Random, weights: tuple[int, int, int]) -> int:
    """A number of one, two or three digits, by weight; uniform among those."""
    low, high = rng.choices(((0, 9), (10, 99), (100, 999)), weights)[0]
    return rng.randint(low, high)


def is_test(sign: str, a: int, b: int) -> bool:
    """Whether the pair, in either order, is kept for testing under this operator."""
    return held_back(f"{min(a, b)} {sign} {max(a, b)}")
