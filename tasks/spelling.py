"""Spelling: write a word letter by letter, or count a letter in it through the tool.

A tokenizer hides the letters of a word, so the model must learn the letters of every piece. To meet
each often enough, part of the training words are made up: of the tokenizer's own pieces where they
are given, else of halves of real words.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pydoc_data.topics import topics

from nanochat.common import DataError, print0
from nanochat.data.offline_corpus import wiki_leads
from nanochat.inference.calculator import calculate
from tasks.task import GeneratedTask, exchange, final_text, held_back, tool_answer

SPELL_WORDINGS = (
    "How do you spell {word}?",
    "Spell {word}.",
    "Spell the word {word}.",
    "How is {word} spelled?",
    "Can you spell {word}?",
    "Please spell {word}.",
    "What are the letters of {word}?",
    "Write {word} letter by letter.",
)
COUNT_WORDINGS = (
    "How many {letter} in {word}?",
    "How many {letter}'s are in {word}?",
    "How many {letter}'s are there in {word}?",
    "How many times does {letter} appear in {word}?",
    "How many times is the letter {letter} in {word}?",
    "Count the letter {letter} in {word}.",
    "Count the {letter}'s in {word}.",
    "How often does {letter} occur in {word}?",
)
QUOTES = ("'{}'", '"{}"')
WORD = re.compile(r"(?<![^\W_])[a-z]{3,10}(?![^\W_])")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NUM_WORDS = 12_000  # the most frequent of the packaged texts
MADE_UP, BARE = 0.5, 0.15  # shares of the train split: made-up words, words without quotes
# Drawn with equal weight; spelling is the harder to learn.
QUESTIONS = {"both": ("spell", "spell", "spell", "count"), "spell": ("spell",), "count": ("count",)}


class Spelling(GeneratedTask):
    """Words of 3 to 10 letters, in quotes, to spell or to count a letter in; `question` spell,
    count or both.

    The test split has real words that no train conversation asks for: a tenth of all strings, by
    hash. Train adds made-up words, and words without quotes. `pieces` are the texts of a
    tokenizer's tokens, of which those of small letters alone are used.

    An answer is "w i n d o w", or python '("window").count("w")', python_output "2", text "2".
    """

    def __init__(
        self,
        split: str = "train",
        size: int | None = None,
        *,
        question: str = "both",
        pieces: Iterable[str] = (),
    ):
        super().__init__(split, size)
        self.question = question
        self.name = "spelling" if question == "both" else f"spelling-{question}"
        self.made_up, self.bare = (MADE_UP, BARE) if split == "train" else (0.0, 0.0)
        small = {piece.strip() for piece in pieces}
        self.pieces = sorted(piece for piece in small if re.fullmatch("[a-z]{2,10}", piece))
        self.words = [w for w in common_words() if held_back(w) == (split == "test")]

    def make(self, rng: random.Random) -> dict:
        word = self.draw_word(rng)
        asked = word if rng.random() < self.bare else rng.choice(QUOTES).format(word)
        if rng.choice(QUESTIONS[self.question]) == "spell":
            spelled = " ".join(word)
            return exchange(rng.choice(SPELL_WORDINGS).format(word=asked), spelled, answer=spelled)
        letter = draw_letter(word, rng)
        # Double quotes whatever the question has: "'s" of 'sun' would be cut off as a genitive.
        # In brackets, so that the word is cut into the same tokens as in the question.
        expression = f'("{word}").count("{letter}")'
        count = calculate(expression)
        question = rng.choice(COUNT_WORDINGS).format(word=asked, letter=letter)
        return exchange(question, tool_answer(expression, count, count), answer=count)

    def draw_word(self, rng: random.Random) -> str:
        """A real word of this split or a made-up one, which no string of the test split is."""
        while rng.random() < self.made_up:
            word = self.make_up(rng)
            if 3 <= len(word) <= 10 and not held_back(word):
                return word
        return rng.choice(self.words)

    def make_up(self, rng: random.Random) -> str:
        """One or two pieces; or the beginning of a word and the end of another."""
        if self.pieces:
            return "".join(rng.choices(self.pieces, k=rng.choice((1, 2, 2))))
        first, second = rng.choice(self.words), rng.choice(self.words)
        return first[: rng.randint(1, len(first))] + second[rng.randint(0, len(second) - 1) :]

    def evaluate(self, conversation: dict, completion: str) -> bool:
        """Spelled: the letters, apart, in any case, by spaces, hyphens or commas. Counted: the last
        number said."""
        said = final_text(completion)
        answer = conversation["answer"]
        if answer.isdigit():
            return re.findall(r"\d+", said)[-1:] == [answer]
        return re.split(r"[\s,-]+", said.lower().rstrip(".")) == answer.split()


def draw_letter(word: str, rng: random.Random) -> str:
    """A letter to count. The count is drawn first, 0 included, then one of its letters, so that no
    number is right most of the time."""
    by_count: dict[int, list[str]] = {}
    for letter in LETTERS:
        by_count.setdefault(word.count(letter), []).append(letter)
    return rng.choice(by_count[rng.choice(sorted(by_count))])


@cache
def common_words() -> tuple[str, ...]:
    """The most frequent lower-case words, of 3 to 10 letters, of the packaged encyclopedia and
    Python's manual."""
    counts = Counter(WORD.findall("\n".join(topics.values())))
    try:
        counts.update(WORD.findall("\n".join(lead["extract"] for lead in wiki_leads())))
    except DataError as error:
        print0(f"spelling: words are those of Python's manual alone. {error}")
    by_frequency = sorted(counts, key=lambda word: (-counts[word], word))
    return tuple(word for word in by_frequency[:NUM_WORDS] if counts[word] > 1)
