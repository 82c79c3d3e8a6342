"""Wordings: forms, layers, slips; and what the core phrases of every task's file mean."""

import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

import tasks
from nanochat.inference.calculator import calculate
from tasks.arithmetic import KINDS, NUMBER_WORDS, TURNED, TWO_WORDS, Arithmetic, expression, in_tool
from tasks.task import held_back, plain
from tasks.wordings import (
    RATES,
    compose,
    draw_phrase,
    form,
    read_phrases,
    slip,
    spread,
    with_tail,
)

FOLDER = Path(tasks.__file__).parent
FILES = ["arithmetic", "facts", "identity", "spelling", "unknown"]
SLOTS = dict.fromkeys(("x", "y", "bare", "X", "word", "words"), "Qzxuv")
SLOTS |= {"a": "9118", "b": "7224", "big": "9118", "small": "7224", "problem": "9118 + 7224"}
SLOTS |= {"letter": "k", "letters": "k's", "name": "Vwnya", "other": "Hjgsa", "things": "yfofs"}


def phrases(name, key):
    """(phrase, what fills its slots) of all rows."""
    for row in read_phrases(FOLDER / f"{name}.jsonl").values():
        for phrase in row[key]:
            yield phrase, SLOTS | {slot: texts[0] for slot, texts in row.get("slots", {}).items()}


@pytest.mark.parametrize("name", FILES)
def test_no_held_out_phrase_is_in_a_training_question(name):
    rng = random.Random(0)
    asked = {
        f" {plain(compose(phrase, rng, **slots))} "
        for phrase, slots in phrases(name, "prompts")
        for _ in range(25)
    }
    everything = "|".join(asked)
    for phrase, slots in phrases(name, "held_out"):
        core = plain(phrase.removeprefix("... ").format(**slots))
        assert f" {core} " not in everything, phrase


@pytest.mark.parametrize("name", FILES)
def test_what_fills_a_slot_is_never_damaged(name):
    rng = random.Random(1)
    for phrase, slots in [*phrases(name, "prompts"), *phrases(name, "held_out")]:
        expected = [slots[slot].lower() for slot in re.findall(r"{(\w+)}", phrase)]
        for _ in range(10):
            asked = compose(phrase, rng, **slots).lower()
            assert asked.strip() and "{" not in asked and "..." not in asked.replace(phrase, "")
            for text in expected:
                assert text in asked, (phrase, asked)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("What is the capital of {x}?", "question"),
        ("{X} is where?", "question"),
        ("Name the capital of {x}.", "request"),
        ("You are wrong.", "remark"),
        ("Hello!", "remark"),
        ("asdf", "remark"),
        ("... what the capital of {x} is", "clause"),
        ("... in which part of the world {x} is", "clause"),
        ("... the capital of {x}", "noun"),
        ("... {x}'s capital", "noun"),
        ("Capital of {x}", "fragment"),
    ],
)
def test_forms(phrase, expected):
    assert form(phrase) == expected


def test_grammar_of_the_leads():
    rng = random.Random(2)

    def asked(phrase):
        return {compose(phrase, rng, x="Peru") for _ in range(3000)}

    clause, noun = asked("... what the capital of {x} is"), asked("... the capital of {x}")
    assert {
        "Can you tell me what the capital of Peru is?",
        "I wonder what the capital of Peru is.",
    } < clause
    assert not any(re.search("what('s)? (is )?what", text.lower()) for text in clause)
    assert {"What is the capital of Peru?", "what's the capital of peru?"} < noun
    assert {"Name it.", "Please name it.", "Could you name it?"} < asked("Name it.")
    assert {"Hi! Is it Peru?", "Hi, is it Peru?"} < asked("Is it {x}?")
    assert {text.lower().rstrip("! ") for text in asked("Hello!")} <= {
        "hello",
        "hlelo",
        "helo",
        "heello",
        "helllo",
        "helol",
        "hllo",
        "hell",
    }


def test_most_questions_stay_plain_and_all_follow_from_the_rng():
    asked = Counter(compose("Who is {x}?", random.Random(i), x="Ann") for i in range(1000))
    again = Counter(compose("Who is {x}?", random.Random(i), x="Ann") for i in range(1000))
    assert asked == again and len(asked) > 100
    assert 250 < asked["Who is Ann?"] < 500


def test_slips_by_hand():
    rng = random.Random(3)
    assert {slip("the town {x}", rng) for _ in range(50)} == {"the town {x}"}
    assert {slip("a {capital} lemon", rng) for _ in range(200)} == {
        f"a {{capital}} {word}"
        for word in (
            "lmeon",
            "lmon",
            "leemon",
            "leomn",
            "leon",
            "lemmon",
            "lemno",
            "lemn",
            "lemoon",
        )
    }


def test_tails_by_hand():
    assert with_tail("Why?", ", please") == "Why, please?"
    assert with_tail("Why", " pls") == "Why pls"
    assert with_tail("Why?", "Thank you.") == "Why? Thank you."
    assert with_tail("Why", "I forgot.") == "Why, I forgot."


def test_phrases_of_the_test_split_are_half_new():
    row, rng = {"prompts": ["a", "b"], "held_out": ["c"]}, random.Random(4)
    assert {draw_phrase(row, "train", rng) for _ in range(99)} == {
        ("a", "trained"),
        ("b", "trained"),
    }
    drawn = Counter(draw_phrase(row, "test", rng)[1] for _ in range(1000))
    assert 400 < drawn["new"] < 600


def test_the_first_phrases_of_a_file_are_trained_the_most():
    row, rng = {"prompts": list(range(100)), "held_out": []}, random.Random(4)
    drawn = Counter(draw_phrase(row, "train", rng)[0] for _ in range(10_000))
    assert 3600 < sum(drawn[k] for k in range(25)) < 4300  # (1 / 4)^(2 / 3) of them
    assert len(drawn) == 100


def test_spread_leaves_no_gap():
    for n in (10, 100, 1000):
        places = sorted([0, *(spread(index) for index in range(n)), 1])
        assert max(b - a for a, b in pairwise(places)) < 2.7 / n  # by chance about ln(n) / n


def test_unknown_topics_are_split():
    for row in read_phrases(FOLDER / "unknown.jsonl").values():
        for slot, texts in row["slots"].items():
            assert len(texts) == len(set(texts)) > sum(held_back(t, 0.2) for t in texts) > 0, slot


# ---------------------------------------------------------------- what arithmetic's questions mean

# Where the number that comes second in the text is the one that is taken from or divided.
TURNED_WORDS = {
    "-": r"\d (\w+ ){0,3}from \d|\d (\w+ )?(off|before|below|short of|under|out of|of) \d"
    r"|\d (less|fewer|lower) than \d|from \d+ to \d",
    "/": r"\d (goe?s?|fits?|is contained) (into|in) \d|^\d+ into \d|\ds are in \d|\d out of \d",
}
# What names one operation; a phrase of another kind has it only where it asks for the inverse:
# "What must be added to 3 to make 10?"
SIGNS = {
    "+": r"\+|\bplus\b|\badd|\bsum of",
    "-": r"\bminus\b|subtract|\d - \d",
    "*": r"\*|×|multipl|\bproduct of|\btimes\b",
    "/": "÷|divid|quotient",
    "double": r"\bdouble|\btwice\b",
    "half": r"\bhal(f|ve)",
    "percent": "%|percent",
}
INVERSES = {"+ -", "- +", "* /", "/ *", "* +", "/ +", "/ -", "double +", "double *", "square *"}
INVERSES |= {"half /", "half *", "double half", "half double", "half percent", "square double"}


def meaning(sign: str, text: str) -> int:
    """The value of a question of two numbers, read from its English."""
    first, second = map(int, re.findall(r"\d+", text))
    turned = sign in TURNED_WORDS and re.search(TURNED_WORDS[sign], text, re.I)
    x, y = (second, first) if turned else (first, second)
    return {"+": x + y, "-": x - y, "*": x * y, "/": x // max(y, 1)}[sign]


def test_phrases_mean_their_operation():
    """By the words for it, and where the numbers may come in either size by their order."""
    rows = read_phrases(FOLDER / "arithmetic.jsonl")
    numbers = {"a": 84, "b": 12, "big": 84, "small": 12, "x": 84, "y": 12}
    for kind in KINDS["test"]:
        row = rows[kind]
        for phrase in row["prompts"] + row["held_out"] + row.get("infix", []):
            text = phrase.format(**numbers, name="Ann", other="Tom", things="pens")
            for other, words in SIGNS.items():
                if other != kind and f"{kind} {other}" not in INVERSES:
                    assert not re.search(words, text, re.I), (kind, other, text)
            if kind in "+-*" and "{a}" in phrase:
                assert meaning(kind, text) == {"+": 96, "-": 72, "*": 1008}[kind], text


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_what_the_questions_mean(split, monkeypatch):
    monkeypatch.setitem(RATES, "slip", 0)  # "928 belw 18"
    task, checked = Arithmetic(split, 1500), 0
    for i in range(len(task)):
        question, reply = (message["content"] for message in task[i]["messages"][-2:])
        found = re.fullmatch(r"(?:abs\()?(-?)(\d+)([-+*])(\d+)\)?", reply[0]["text"])
        numbers = re.findall(r"\d+", question)
        if found and sorted(numbers) == sorted(found.group(2, 4)):
            assert numbers == [*found.group(2, 4)] or found[4] == "2", question  # doubled: 93*2
            value = meaning(found[1] or found[3], question)
            # "I ate 3 of 7": what is left is no less than 0
            assert task[i]["answer"] in (str(value), str(abs(value))), question
            checked += 1
    assert checked > 700


@pytest.mark.parametrize(
    ("kind", "phrase", "a", "b", "expected"),
    [
        ("-", "Take {b} away from {a}.", 95, 18, 77),
        ("-", "Subtract {b} from {a}.", 20, 50, -30),
        ("-", "{b} less than {a}", 30, 4, 26),
        ("-", "If {name} has {big} {things} and eats {small}, how many are left?", 9, 2, 7),
        ("+", "... the sum of {a} and {b}", 3, 4, 7),
        ("/", "Share {a} {things} between {b} kids.", 12, 3, 4),
        ("/", "How many times does {b} go into {a}?", 12, 4, 3),
        (
            "*",
            "There are {a} boxes with {b} {things} in each. How many {things} are there?",
            5,
            6,
            30,
        ),
        ("double", "Double {a}.", 14, 2, 28),
        ("half", "Half of {a}", 30, 2, 15),
        ("square", "... the square of {a}", 9, 9, 81),
        ("percent", "... {b}% of {a}", 60, 15, 9),
    ],
)
def test_expressions_by_hand(kind, phrase, a, b, expected):
    row = read_phrases(FOLDER / "arithmetic.jsonl")[kind]
    assert phrase in row["prompts"] + row["held_out"]
    assert calculate(expression(kind, phrase, a, b)) == str(expected)


@pytest.mark.parametrize(
    ("kind", "phrase", "expected"),
    [
        ("+", "Add {a} and {b}.", "9+2"),
        ("+", "... what you get when you add {b} to {a}", "2+9"),
        ("*", "... the price of {b} cakes at {a} dollars each", "2*9"),
        ("percent", "How much do I save if {a} dollars is {b}% off?", "9*2/100"),
        ("percent", "Find {b} percent of {a}.", "2*9/100"),
        ("-", "What remains of {a} without {b}?", "9-2"),
        ("-", "If {name} has {big} {things} and eats {small}, how many are left?", "9-2"),
        ("-", "I threw out {small} of {big} {things}. How many did I keep?", "-2+9"),
        ("-", "Subtract {b} from {a}.", "-2+9"),
        ("-", "Gap between {x} and {y}", "abs(9-2)"),
        ("/", "Share {a} between {b}.", "9/2"),
        ("/", "How many times does {b} go into {a}?", "1/2*9"),
        ("double", "Double {a}.", "9*2"),
        ("square", "... the square of {a}", "9*9"),
    ],
)
def test_the_expression_has_the_numbers_in_the_phrase_s_order(kind, phrase, expected):
    assert expression(kind, phrase, 9, 9 if kind == "square" else 2) == expected


def test_a_difference_is_asked_in_either_order():
    task, order = Arithmetic("train", 6000), Counter()
    for i in range(len(task)):
        question, reply = (message["content"] for message in task[i]["messages"][-2:])
        if re.search("(difference|gap) (between|of)|far apart", question, re.I):
            numbers = re.findall(r"\d+", reply[0]["text"])
            if len(numbers) > 2:  # "twenty-five"
                continue
            a, b = map(int, numbers)
            order[a > b] += reply[0]["text"].startswith("abs")
            assert task[i]["answer"] == str(abs(a - b))
    assert order[True] > 1 < order[False]


def test_dividing_by_the_first_number_is_exact_where_the_quotient_is_whole():
    for b in range(1, 100):
        for quotient in range(1, 9999 // b + 1):
            turned = TURNED["/"].format(a=b * quotient, b=b)
            assert calculate(turned) == str(quotient)


def test_small_numbers_are_also_written_as_words():
    words = ["zero", "seven", "thirteen", "twenty", "forty", "ninety-nine"]
    assert [NUMBER_WORDS[n] for n in (0, 7, 13, 20, 40, 99)] == words
    assert list(NUMBER_WORDS.values()) == list(dict.fromkeys(NUMBER_WORDS.values()))
    task = Arithmetic("train", 3000)
    asked = [task[i]["messages"][0]["content"].lower().split() for i in range(len(task))]
    assert 20 < sum("seven" in words or "eight" in words for words in asked) < 200


def test_a_number_of_two_words_is_copied_word_by_word():
    cases = [(25, "twenty-five"), (25, "twenty five"), (25, "25"), (20, "twenty"), (2.5, "2.5")]
    assert [in_tool(*case) for case in cases] == ["(20+5)", "(20+5)", 25, 20, 2.5]
    numbers = {words: n for n, words in NUMBER_WORDS.items()}
    pattern = "|".join(words.replace("-", "[ -]") for words in TWO_WORDS.values())
    task, checked = Arithmetic("train", 4000), 0
    for i in range(len(task)):
        question, reply = (message["content"] for message in task[i]["messages"][-2:])
        asked = [text.replace(" ", "-") for text in re.findall(pattern, question.lower())]
        sums = re.findall(r"\(([2-9]0)\+([1-9])\)", reply[0]["text"])
        copied = [int(ten) + int(unit) for ten, unit in sums]
        assert list(dict.fromkeys(copied)) == [*dict.fromkeys(numbers[words] for words in asked)]
        checked += len(sums)
    assert checked > 200
