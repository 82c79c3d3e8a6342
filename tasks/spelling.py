"""Spelling: write a word letter by letter, or count a letter in it.

A tokenizer hides the letters of a word, so the model copies its tokens into an expression, as they
stand in the question, and the tool sees the letters. So that any word is copied, part of the
training words are made up: of the tokenizer's own pieces where they are given, else of halves of
real words.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from nanochat.common import DataError, print0
from nanochat.data.offline_corpus import wiki_leads
from nanochat.inference.calculator import calculate
from tasks.task import GeneratedTask, exchange, final_text, held_back, tool_answer
from tasks.wordings import compose, draw_phrase, draw_weighted, read_phrases

PHRASES_FILE = Path(__file__).with_name("spelling.jsonl")  # a row a kind
# How a word or a letter stands in the question, by weight; {} is small, {u} has capitals.
QUOTED = {"'{}'": 6, '"{}"': 10, "the word '{}'": 3, 'the word "{}"': 3}
BARE = {"{}": 20, "the word {}": 5, "{u}": 2}
LETTER = {"{}": 8, "the letter {}": 5, "'{}'": 2, '"{}"': 2, "the letter '{}'": 1, "{u}": 1}
LETTER_PLURAL = {
    **{"{}'s": 8, "{}s": 3, "{}": 4, "letters {}": 1, "letter {}": 1, "'{}'": 1, '"{}"': 1},
    **{"'{}'s": 1, "letter {}'s": 1, "{u}'s": 1, "{u}s": 1},
}
WORD = re.compile(r"(?<![^\W_])[a-z]{3,14}(?![^\W_])")
SHORT, LONG = (3, 10), (9, 14)  # letters of a word: fewest, most
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NUM_WORDS = 12_000  # the most frequent of the packaged texts
MADE_UP = 0.5  # share of the train split
UNQUOTED = 0.5
FOLLOW_UPS = 0.15  # share of conversations that ask in a second turn
QUESTIONS = {"spell": 2, "count": 1}  # of the task that has both


class Spelling(GeneratedTask):
    """Words to spell or to count a letter in; `question` one of these or all.

    The test split has real words that no train conversation asks for: a tenth of all strings, by
    hash; half of it is in phrasings held out too. Half of the words stand without quotes. Train
    adds made-up words. `pieces` are the texts of a tokenizer's tokens, of which those of small
    letters alone are used.

    An answer is python '" ".join(" window".strip())', python_output and text "w i n d o w", or
    python '(" window").count("w")', python_output and text "2".
    """

    def __init__(
        self,
        split: str = "train",
        size: int | None = None,
        *,
        question: str = "all",
        letters: tuple[int, int] = SHORT,
        pieces: Iterable[str] = (),
    ):
        super().__init__(split, size)
        self.question, self.letters = question, letters
        self.name = "spelling" if question == "all" else f"spelling-{question}"
        self.name += "-long" if letters == LONG else ""
        self.made_up = MADE_UP if split == "train" else 0.0
        self.rows = read_phrases(PHRASES_FILE)
        small = {piece.strip() for piece in pieces}
        self.pieces = sorted(piece for piece in small if re.fullmatch("[a-z]{2,10}", piece))
        self.words = [w for w in common_words(*letters) if held_back(w) == (split == "test")]

    def make(self, rng: random.Random, index: int) -> dict:
        kind = self.question if self.question in QUESTIONS else draw_weighted(QUESTIONS, rng)
        word = self.draw_word(rng)
        if rng.random() >= FOLLOW_UPS:
            return self.ask(kind, word, self.split, rng)
        # "And garden?" after another word, "And how many e's?" of the same one
        before = word if kind == "count" else self.draw_word(rng)
        first = self.ask(kind, before, "train", rng)
        last = self.ask(f"{kind}-again", word, self.split, rng, first["messages"][0]["content"])
        return last | {"messages": first["messages"] + last["messages"]}

    def ask(self, kind: str, word: str, split: str, rng: random.Random, earlier: str = "") -> dict:
        """A question of the row `kind` and its answer; `earlier`: a question before it, in which
        the word stands if it does not in this one."""
        phrase, phrasing = draw_phrase(self.rows[kind], split, rng)
        asked, letter = draw_weighted(BARE if rng.random() < UNQUOTED else QUOTED, rng), ""
        slots = {"word": asked.format(word, u=word.upper())}
        if kind.startswith("count"):
            letter = draw_letter(word, rng)
            for name, forms in (("letter", LETTER), ("letters", LETTER_PLURAL)):
                typed = draw_weighted(forms, rng)
                if letter in "aiu":  # "as", "is" and "us" are words
                    typed = typed.replace("}s", "}'s")
                slots[name] = typed.format(letter, u=letter.upper())
        question = compose(phrase, rng, () if earlier else ("opener", "tail"), **slots)
        copied = as_it_stands(question if "{word}" in phrase else earlier, word)
        expression = count_call(copied, letter) if letter else spell_call(copied)
        output = calculate(expression)
        answer = tool_answer(expression, output, output)
        return exchange(question, answer, answer=output.lower(), word=word, phrasing=phrasing)

    def draw_word(self, rng: random.Random) -> str:
        """A real word of this split or a made-up one, which no string of the test split is."""
        while rng.random() < self.made_up:
            word = self.make_up(rng)
            low, high = self.letters
            if low <= len(word) <= high and not held_back(word):
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
        return re.split(r"[\s,-]+", said.lower().rstrip(".")) == answer.lower().split()

    def reward(self, conversation: dict, completion: str) -> float:
        """1 for a right answer; of a count only with the word itself in the tool call, because the
        number is often right for another word, too."""
        right = self.evaluate(conversation, completion)
        if right and conversation["answer"].isdigit():
            right = bool(re.search(rf'[" ]{conversation["word"]}"\)', completion.lower()))
        return float(right)


def as_it_stands(question: str, word: str) -> str:
    """`word` with the capitals and the space before it that it has in the question: to a tokenizer
    the same tokens. In an expression it stands in brackets and double quotes, which no token joins
    to letters as it does a single quote."""
    found = next(m for m in re.finditer(r" ?([^\W_]+)", question) if m[1].lower() == word)
    return found[0]


def spell_call(copied: str) -> str:
    return f'" ".join("{copied}".strip())'


def count_call(copied: str, letter: str) -> str:
    return f'("{copied}"){"" if copied.islower() else ".lower()"}.count("{letter}")'


def draw_letter(word: str, rng: random.Random) -> str:
    """A letter to count. The count is drawn first, 0 included, then one of its letters, so that no
    number is right most of the time."""
    by_count: dict[int, list[str]] = {}
    for letter in LETTERS:
        by_count.setdefault(word.count(letter), []).append(letter)
    return rng.choice(by_count[rng.choice(sorted(by_count))])


@cache
def common_words(low: int, high: int) -> tuple[str, ...]:
    """The most frequent lower-case words, of `low` to `high` letters, of the packaged encyclopedia
    and Python's manual."""
    counts = Counter(WORD.findall("\n".join(topics.values())))
    try:
        counts.update(WORD.findall("\n".join(lead["extract"] for lead in wiki_leads())))
    except DataError as error:
        print0(f"spelling: words are those of Python's manual alone. {error}")
    counts = {word: n for word, n in counts.items() if low <= len(word) <= high}
    by_frequency = sorted(counts, key=lambda word: (-counts[word], word))
    return tuple(word for word in by_frequency[:NUM_WORDS] if counts[word] > 1)
