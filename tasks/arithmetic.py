"""Arithmetic through the tool: the question becomes an expression, the tool its value, the value
the answer.

What is learned is to copy the numbers as they stand in the question and to choose the operators
around them, so it carries over to numbers never seen together. Questions are signs and written-out
operators ("{a} plus {b}", the "infix" of arithmetic.jsonl, inside the phrases of its row
"problem"), operations in words ("take {b} away from {a}") and word problems. {big} and {small} are
the two numbers in order of size; {x} and {y}, of a difference, are in either order.
"""

import random
import re
from pathlib import Path

from nanochat.inference.calculator import calculate
from tasks.task import GeneratedTask, exchange, final_text, held_back, tool_answer
from tasks.wordings import compose, draw_phrase, draw_weighted, read_phrases

PHRASES_FILE = Path(__file__).with_name("arithmetic.jsonl")
EXPRESSIONS = {
    "+": "{a}+{b}",
    "-": "{a}-{b}",
    "difference": "abs({a}-{b})",
    "*": "{a}*{b}",
    "/": "{a}/{b}",
    "double": "{a}*2",
    "half": "{a}/2",
    "square": "{a}*{a}",
    "percent": "{a}*{b}/100",
}
TURNED = {  # of a question that has b first
    "+": "{b}+{a}",
    "-": "-{b}+{a}",
    "*": "{b}*{a}",
    "/": "1/{b}*{a}",
    "percent": "{b}*{a}/100",
}
# Weights of the kinds, and the share of + - * / asked in signs, as "12 + 40" or "12 times 40":
# training has more of what takes longer to learn.
KINDS = {
    "train": {
        "+": 26, "-": 30, "*": 28, "/": 26, "double": 7, "half": 5, "square": 5, "percent": 4
    },
    "test": {
        "+": 30, "-": 30, "*": 30, "/": 16, "double": 4, "half": 4, "square": 3, "percent": 3
    },
}  # fmt: skip
IN_SIGNS = {"train": 0.25, "test": 0.5}
NAMES = (
    "Ann", "Tom", "Maria", "Ali", "Lucy", "Ben", "Priya", "Sam", "Chen", "Olga", "Leo", "Fatima",
    "John", "Mary", "Peter", "Anna", "David", "Emma", "James", "Sara", "Mike", "Julia", "Carlos",
    "Sofia", "Ahmed", "Lena", "Kofi", "Yuki", "Ivan", "Nina", "Omar", "Grace", "Paul", "Mia", "Raj",
    "Zoe", "Luis", "Eva", "Jack", "Amy", "Hassan", "Clara", "Diego", "Rosa", "Max", "Ella", "Tim",
    "Aisha", "Noah", "Lily", "Victor", "Ruth", "Kevin", "Bella", "Jamal", "Ines", "Oscar", "Hana",
)  # fmt: skip
THINGS = (
    "apples", "books", "eggs", "pens", "coins", "oranges", "balls", "cookies", "candies", "cards",
    "flowers", "stamps", "sweets", "marbles", "pencils", "bananas", "cakes", "toys", "cups",
    "stickers", "pears", "plates", "shells", "buttons", "chairs", "tickets", "tomatoes",
    "strawberries", "lemons", "balloons", "photos", "keys", "bottles", "shirts", "socks", "hats",
    "plants", "seeds", "bricks", "beads", "muffins", "pancakes", "sandwiches", "carrots",
    "potatoes", "mangoes", "cherries", "crayons", "magazines", "letters", "boxes", "candles",
    "stones",
)  # fmt: skip
TO_TWENTY = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen",
    "eighteen", "nineteen", "twenty",
)  # fmt: skip
TENS = ("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ONE_WORD = dict(enumerate(TO_TWENTY)) | dict(zip(range(30, 100, 10), TENS, strict=True))
TWO_WORDS = {
    ten + unit: f"{ONE_WORD[ten]}-{ONE_WORD[unit]}"
    for ten in range(20, 100, 10)
    for unit in range(1, 10)
}
NUMBER_WORDS = ONE_WORD | TWO_WORDS
FOLLOW_UPS = 0.14  # share of conversations with a second turn, half of them about its result
DECIMALS = 0.1  # share of the train split's sums, differences and products in signs
IN_WORDS = 0.25  # rate of phrases without signs whose numbers are words, if NUMBER_WORDS has them
WITH_A_WORD = 0.2  # rate of problems to train with whose first number is one of ONE_WORD
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


class Arithmetic(GeneratedTask):
    """a + b, a - b, a * b, exact divisions, doubles, halves, squares and percentages.

    The test split has numbers of two and three digits, in pairs (in either order) that no train
    conversation has: a tenth of all pairs, by hash; half of it is in phrasings held out too. Train
    has one to four digits, and some decimals. A second turn asks another sum or goes on from the
    first one's result ("then +" and so on of the file).

    Arithmetic("test")[0]["messages"][1]["content"] might be python "37*12", python_output "444",
    text "444".
    """

    name = "arithmetic"

    def __init__(self, split: str = "train", size: int | None = None):
        super().__init__(split, size)
        self.rows = read_phrases(PHRASES_FILE)

    def make(self, rng: random.Random, index: int) -> dict:
        if rng.random() >= FOLLOW_UPS:
            return self.ask(rng)
        first = self.ask(rng)
        last = self.go_on(first["answer"], rng) or self.ask(rng, again=True)
        return last | {"messages": first["messages"] + last["messages"]}

    def go_on(self, result: str, rng: random.Random) -> dict | None:
        """A question about the result before it, "And divided by 4?"; None where another sum is
        to be asked."""
        if rng.random() < 0.4 or not result.isdigit() or len(result) > 3:
            return None
        a, kind, test = int(result), rng.choice("+-*/"), self.split == "test"
        numbers = range(2, 13 if kind in "*/" else 100)
        suitable = [
            b for b in numbers if is_test(kind, a, b) == test and (kind != "/" or a % b == 0)
        ]
        if not suitable:
            return None
        b = rng.choice(suitable)
        phrase, phrasing = draw_phrase(self.rows[f"then {kind}"], self.split, rng)
        question = compose(phrase, rng, (), b=str(b))
        return answered(question, EXPRESSIONS[kind].format(a=a, b=b), phrasing)

    def ask(self, rng: random.Random, again: bool = False) -> dict:
        """A question and its answer. again: as after another one, "And 3 + 4?"."""
        kinds = KINDS["test" if again else self.split]
        kind = draw_weighted({k: kinds[k] for k in "+-*/"} if again else kinds, rng)
        row = self.rows[kind]
        around = self.rows["again" if again else "problem"]
        infix = ""
        if "infix" in row and (again or rng.random() < IN_SIGNS[self.split]):
            infix = rng.choice(row["infix"])
        phrase, phrasing = draw_phrase(around if infix else row, self.split, rng)
        phrase = phrase.replace("{problem}", infix)
        # two sentences are a situation, too
        story = not infix and any(mark in phrase for mark in ("{name}", "{things}", ". "))
        a, b = self.draw(kind, story, rng)
        while is_test(kind, a, b) != (self.split == "test"):
            a, b = self.draw(kind, story, rng)
        if "{big}" in phrase or (kind == "-" and rng.random() < 0.6):  # most people's order
            a, b = max(a, b), min(a, b)
        elif infix and self.split == "train" and kind != "/" and rng.random() < DECIMALS:
            a, b = (draw_decimal(n, rng) for n in (a, b))
        layers = () if again else ("opener", "tail")
        filled = slots(phrase, a, b, rng)
        question = compose(phrase, rng, layers, **filled)
        a, b = (in_tool(n, filled[slot]) for n, slot in ((a, "a"), (b, "b")))
        return answered(question, expression(kind, phrase, a, b), phrasing)

    def draw(self, kind: str, story: bool, rng: random.Random) -> tuple[int, int]:
        """Two numbers that suit the kind, and a word problem's: a tenth of these pairs is kept for
        testing."""
        if self.split == "test":
            weights = (0, 1, 0, 0) if story else (0, 1, 1, 0)
        else:
            weights = (2, 6, 1, 0) if story else (5, 8, 8, 1)
        a, b = draw_number(rng, weights), draw_number(rng, weights)
        if self.split == "train" and rng.random() < WITH_A_WORD:
            a = rng.choice(list(ONE_WORD))
        if story:
            a, b = max(a, 2), max(b, 2)
        if kind == "percent":
            return max(a - a % 20, 20), rng.choice((5, 10, 15, 20, 25, 30, 40, 50, 75, 80, 90))
        if kind == "square":
            return a, a
        if kind in ("double", "half"):
            as_is = kind == "double" or (not story and rng.random() < 0.2)
            return (a if as_is else a + a % 2), 2
        if kind == "/":
            a, b = max(a, b), max(min(a, b) % 100, 1 + story)
            a -= a % b  # so that it divides exactly
        return a, b

    def evaluate(self, conversation: dict, completion: str) -> bool:
        """Whether the last number that the assistant says, after its tool calls, is the answer."""
        found = NUMBER.findall(final_text(completion).replace("−", "-"))
        return bool(found) and float(found[-1].replace(",", "")) == float(conversation["answer"])


def in_tool(n: float, text: str) -> float | str:
    """A number as the tool gets it: "twenty-five" word by word, (20+5), which is only copied, too;
    25 would have to be learned for each pair of words."""
    return f"({n - n % 10}+{n % 10})" if re.search("[ -]", text) else n


def expression(kind: str, phrase: str, a: float | str, b: float | str) -> str:
    """What the tool calculates. It has the numbers in the phrase's order, so that they are always
    copied in one way. expression("-", "Take {b} from {a}.", 9, 2) == "-2+9"."""
    first = re.search(r"{(a|b|big|small|x)}", phrase)[1]
    if first == "x":
        return EXPRESSIONS["difference"].format(a=a, b=b)
    turned = first in ("b", "small") and kind in TURNED
    return (TURNED if turned else EXPRESSIONS)[kind].format(a=a, b=b)


def answered(question: str, expression: str, phrasing: str) -> dict:
    output = calculate(expression)
    answer = tool_answer(expression, output, output)
    return exchange(question, answer, answer=output, phrasing=phrasing)


def slots(phrase: str, a: float, b: float, rng: random.Random) -> dict[str, str]:
    """What fills the phrase: the numbers, and a word problem's people and things."""
    signs = re.search(r"[-+*/:÷×=^²%]|}x{", phrase) or isinstance(a + b, float)
    in_words = not signs and rng.random() < IN_WORDS
    a_text, b_text = (in_words and NUMBER_WORDS.get(n) or str(n) for n in (a, b))
    if rng.random() < 0.5:
        a_text, b_text = a_text.replace("-", " "), b_text.replace("-", " ")
    name, other = rng.sample(NAMES, 2)
    people = {"name": name, "other": other, "things": rng.choice(THINGS)}
    numbers = dict.fromkeys(("a", "big", "x"), a_text) | dict.fromkeys(("b", "small", "y"), b_text)
    return numbers | people


def draw_number(rng: random.Random, weights: tuple[int, int, int, int]) -> int:
    """A number of one to four digits, by weight; uniform among those."""
    low, high = rng.choices(((0, 9), (10, 99), (100, 999), (1000, 9999)), weights)[0]
    return rng.randint(low, high)


def draw_decimal(n: int, rng: random.Random) -> int | float:
    """n itself, or n with one or two decimals that are not all 0."""
    places = rng.choice((1, 2))
    return rng.choice((n, round(n + rng.randrange(1, 10**places) / 10**places, places)))


def is_test(kind: str, a: int, b: int) -> bool:
    """Whether the pair, in either order, is kept for testing under this operation."""
    return held_back(f"{min(a, b)} {kind} {max(a, b)}")
