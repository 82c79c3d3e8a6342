"""Spelling: write a word letter by letter, or count a letter in it through the tool.

A tokenizer hides the letters of a word. What is learned is which letters stand in each piece that
the tokenizer makes of words; so that every piece is met often enough, part of the training words
are made up: of the tokenizer's own pieces where they are given, else of halves of real words.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from pydoc_data.topics import topics

from nanochat.common import ConfigError, DataError, print0
from nanochat.data.offline_corpus import wiki_leads
from nanochat.inference.calculator import calculate
from tasks.task import GeneratedTask, exchange, final_text, held_back, tool_answer
from tasks.wordings import compose, draw_phrase, draw_weighted, read_phrases

PHRASES_FILE = Path(__file__).with_name("spelling.jsonl")  # rows spell and count
# How a word or a letter stands in the question, by weight; {} is small, {u} has capitals.
QUOTED = {"'{}'": 10, '"{}"': 10, "the word '{}'": 3, 'the word "{}"': 3}
BARE = {"{}": 20, "the word {}": 5, "{u}": 2}
LETTER = {"{}": 8, "the letter {}": 5, "'{}'": 2, '"{}"': 2, "the letter '{}'": 1, "{u}": 1}
LETTER_PLURAL = {
    **{"{}'s": 8, "{}s": 3, "{}": 4, "letters {}": 1, "letter {}": 1, "'{}'": 1, '"{}"': 1},
    **{"'{}'s": 1, "letter {}'s": 1, "{u}'s": 1, "{u}s": 1},
}
WORD = re.compile(r"(?<![^\W_])[a-z]{3,10}(?![^\W_])")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Drawn with equal weight; spelling is the harder to learn.
QUESTIONS = {"both": ("spell", "spell", "spell", "count"), "spell": ("spell",), "count": ("count",)}


class Spelling(GeneratedTask):
    """Words of 3 to 10 letters to spell or to count a letter in; `question` spell, count or both.

    The test split has real words that no train conversation asks for: a tenth of all strings, by
    hash; half of it is in phrasings held out too. Words are the `num_words` most frequent of the
    packaged texts; a share stands without quotes (`bare`). Train adds a share of `made_up` words.
    `words` replaces the list; `pieces` are the texts of a tokenizer's tokens, of which those of
    small letters alone are used.

    An answer is "w i n d o w", or python '("window").count("w")', python_output "2", text "2".
    """

    name = "spelling"

    def __init__(
        self,
        split: str = "train",
        size: int | None = None,
        seed: int = 0,
        *,
        question: str = "both",
        words: Sequence[str] | None = None,
        pieces: Iterable[str] = (),
        num_words: int = 12_000,
        made_up: float = 0.5,
        bare: float = 0.5,
    ):
        super().__init__(split, size, seed)
        if question not in QUESTIONS:
            raise ConfigError(f"question {question!r} is unknown; choose spell, count or both")
        if not 0 <= made_up < 1:
            raise ConfigError(f"made_up is {made_up}; a share of at least 0 and below 1 can be")
        self.question = question
        self.name = "spelling" if question == "both" else f"spelling-{question}"
        self.made_up, self.bare = made_up if split == "train" else 0.0, bare
        self.rows = read_phrases(PHRASES_FILE)
        every = common_words(num_words) if words is None else words
        small = {piece.strip() for piece in pieces}
        self.pieces = sorted(piece for piece in small if re.fullmatch("[a-z]{2,10}", piece))
        self.words = [w for w in every if held_back(w) == (split == "test")]
        if not self.words:
            raise ConfigError(f"{len(every)} words leave none for the {split} split; give more")

    def make(self, rng: random.Random, index: int) -> dict:
        word, letter = self.draw_word(rng), ""
        kind = rng.choice(QUESTIONS[self.question])
        phrase, phrasing = draw_phrase(self.rows[kind], self.split, rng)
        asked = draw_weighted(BARE if rng.random() < self.bare else QUOTED, rng)
        slots = {"word": asked.format(word, u=word.upper())}
        if kind == "count":
            letter = draw_letter(word, rng)
            for name, forms in (("letter", LETTER), ("letters", LETTER_PLURAL)):
                typed = draw_weighted(forms, rng)
                if letter in "aiu":  # "as", "is" and "us" are words
                    typed = typed.replace("}s", "}'s")
                slots[name] = typed.format(letter, u=letter.upper())
        question = compose(phrase, rng, **slots)
        if kind == "spell":
            spelled = " ".join(word)
            return exchange(question, spelled, answer=spelled, phrasing=phrasing)
        # Double quotes whatever the question has: "'s" of 'sun' would be cut off as a genitive.
        # In brackets, so that the word is cut into the same tokens as in the question.
        expression = f'("{word}").count("{letter}")'
        count = calculate(expression)
        answer = tool_answer(expression, count, count)
        return exchange(question, answer, answer=count, phrasing=phrasing)

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
    """A letter to count: first the count is drawn among those that occur, 0 included, then one of
    its letters, so that no single number is right most of the time."""
    by_count: dict[int, list[str]] = {}
    for letter in LETTERS:
        by_count.setdefault(word.count(letter), []).append(letter)
    return rng.choice(by_count[rng.choice(sorted(by_count))])


@lru_cache(maxsize=4)
def common_words(limit: int) -> tuple[str, ...]:
    """The most frequent lower-case words, of 3 to 10 letters, of the packaged encyclopedia and
    Python's manual."""
    counts = Counter(WORD.findall("\n".join(topics.values())))
    try:
        counts.update(WORD.findall("\n".join(lead["extract"] for lead in wiki_leads())))
    except DataError as error:
        print0(f"spelling: words are those of Python's manual alone. {error}")
    by_frequency = sorted(counts, key=lambda word: (-counts[word], word))
    return tuple(word for word in by_frequency[:limit] if counts[word] > 1)
