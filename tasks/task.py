"""Task: a data set of conversations that also knows whether a completion is right.

A *completion* is the text of the ids that the model generated after `<|assistant_start|>`, with
special tokens shown by their names, for example

<|python_start|>37*12<|python_end|><|output_start|>444<|output_end|>444<|assistant_end|>

`final_text` takes the tool calls and the end out of it; a task compares what is left ("444").
"""

import hashlib
import json
import random
import re
import string
import unicodedata
from functools import cache
from pathlib import Path

from nanochat.common import ConfigError
from nanochat.conversation import PART_MARKS, STOP_TOKENS

FREE_QUESTIONS = Path(__file__).with_name("free_questions.jsonl")  # see tasks/free.py
TOOL_MARKS = [(re.escape(start), re.escape(end)) for start, end, _ in PART_MARKS.values() if start]
UNTYPED = re.compile(r"[^\w\s]|_")
TOOL_SPAN = re.compile("|".join(f"{start}.*?(?:{end}|$)" for start, end in TOOL_MARKS), re.S)
END = re.compile("|".join(map(re.escape, (*STOP_TOKENS, "<|user_start|>"))))


class Task:
    """Conversations by index, and a judge of completions.

    `kind` is "generate" (the completion is sampled) or "choice" (it is the likeliest of
    `choices(i)`, single letters). `baseline` is the accuracy of chance, None where no published
    figure says so. Subclasses set `name` and define `__len__`, `__getitem__`, `evaluate`.
    """

    name = "task"
    kind = "generate"
    baseline: float | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict:
        raise NotImplementedError

    def choices(self, index: int) -> tuple[str, ...]:
        """The letters to choose from in conversation `index`; () for a task of kind "generate"."""
        return tuple(self[index].get("letters", ()))

    def evaluate(self, conversation: dict, completion: str) -> bool:
        raise NotImplementedError

    def extract(self, completion: str) -> str | None:
        """The part of a completion that is compared, for the log of answers."""
        return final_text(completion)

    def evaluate_all(self, conversations: list[dict], completions: list[str]) -> list[dict]:
        """Many completions at once; of each, what the log of answers says:
        {"extracted", "expected", "right", ...}."""
        return [
            {
                "extracted": self.extract(completion),
                "expected": conversation.get("answer", conversation.get("expect")),
                "right": bool(self.evaluate(conversation, completion)),
            }
            for conversation, completion in zip(conversations, completions, strict=True)
        ]

    def reward(self, conversation: dict, completion: str) -> float:
        """What reinforcement learning maximises: 1.0 for a right completion, else 0.0."""
        return float(self.evaluate(conversation, completion))


class ChoiceTask(Task):
    """A task of choice_exchange's conversations. The baseline is that of the published figures,
    which count every question as one of four choices."""

    kind = "choice"
    baseline = 0.25

    def evaluate(self, conversation: dict, completion: str) -> bool:
        """Whether a completion is exactly the letter of the right choice."""
        return final_text(completion) == conversation["answer"]


class GeneratedTask(Task):
    """A task of `size` conversations, each made from name, split and index by `make(rng, index)`.

    In the test split half of the conversations are in wordings that training has, half in wordings
    that it never has: their "phrasing" is "trained" or "new" (see tasks/wordings.py).
    """

    default_sizes = {"train": 20_000, "test": 1000}
    # Share of the conversations to train with that are typed in capitals, besides the questions
    # that wordings.py puts so: words are other tokens then, and have to be learned in both.
    capitals = 0.0

    def __init__(self, split: str = "train", size: int | None = None):
        check_split(split, ("train", "test"))
        size = self.default_sizes[split] if size is None else size
        if size < 1:
            raise ConfigError(f"{self.name}: size is {size}; at least 1 conversation is needed")
        self.split, self.size = split, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        index = range(self.size)[index]
        rng = random.Random(f"{self.name}/0/{self.split}/{index}")
        conversation = self.make(rng, index)
        while self.split == "train" and asks_freely(conversation):
            # subtle: by another index, for one's own can ask the same phrase for ever
            conversation = self.make(rng, rng.randrange(10**9))
        if self.split == "train" and rng.random() < self.capitals:
            for question in conversation["messages"][::2]:
                question["content"] = question["content"].upper()
        return conversation

    def make(self, rng: random.Random, index: int) -> dict:
        raise NotImplementedError


def as_typed(text: str) -> str:
    """A question without case and punctuation: equal for all who type the same words."""
    return " ".join(UNTYPED.sub("", text.lower()).split())


@cache
def free_questions() -> frozenset[str]:
    """The free questions of more than three words, as typed; "hi" and "thanks" are everybody's."""
    files = sorted(FREE_QUESTIONS.parent.glob("free_questions*.jsonl"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    asked = (as_typed(json.loads(line)["question"]) for line in lines)
    return frozenset(text for text in asked if text.count(" ") > 2)


def asks_freely(conversation: dict) -> bool:
    """Whether a user's turn is one of the free questions, which are kept out of training."""
    turns = (m["content"] for m in conversation["messages"] if m["role"] == "user")
    return any(as_typed(text) in free_questions() for text in turns)


def final_text(completion: str) -> str:
    """What the assistant says: a completion without tool calls, their output, and what follows its
    end. The module's example gives "444"."""
    return TOOL_SPAN.sub("", END.split(completion, maxsplit=1)[0]).strip()


def gold_completion(conversation: dict) -> str:
    """The conversation's own last answer, as a perfect model would generate it."""
    content = conversation["messages"][-1]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(part["text"].join(PART_MARKS[part["type"]][:2]) for part in parts)
    return text + "<|assistant_end|>"


def exchange(question: str, reply: str | list[dict], **extra) -> dict:
    """A conversation of one question and one reply; `extra` are keys beside "messages"."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return {"messages": messages, **extra}


def tool_answer(expression: str, output: str, text: str) -> list[dict]:
    """An answer that calls the tool, sees its output, and then says `text`."""
    return [
        {"type": "python", "text": expression},
        {"type": "python_output", "text": output},
        {"type": "text", "text": text},
    ]


def choice_question(question: str, options: list[str], letters: str) -> str:
    """A multiple-choice question as text. Each letter stands directly behind its option: small
    models bind them better so, and the letter is the same token as in the answer."""
    lines = [f"- {option}={letter}" for option, letter in zip(options, letters, strict=True)]
    ask = "Answer with the letter of the right choice and nothing else."
    return "\n".join([f"Multiple choice: {question}", *lines, ask])


def choice_exchange(question: str, options: list[str], right: int, **extra) -> dict:
    """A multiple-choice question and its right letter; option number `right`, from 0, is right."""
    letters = string.ascii_uppercase[: len(options)]
    extra |= {"letters": list(letters), "answer": letters[right]}
    conversation = exchange(choice_question(question, options, letters), letters[right], **extra)
    return {**conversation, "question": question, "options": list(options)}


def held_back(text: str, share: float = 0.1) -> bool:
    """Whether `text` is in the fixed pseudo-random `share` of strings kept for the test split."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") < share * 2**32


def check_split(split: str, known: tuple[str, ...]) -> None:
    if split not in known:
        raise ConfigError(f"split {split!r} is unknown; choose one of {', '.join(known)}")


def plain(text: str) -> str:
    """`text` for comparison: lower case, without accents and punctuation, single spaces."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    kept = (c if c.isalnum() else " " for c in letters if not unicodedata.combining(c))
    return " ".join("".join(kept).split())


def says(completion: str, expected: str) -> bool:
    """Whether the answer holds `expected` as whole words, however it is written otherwise."""
    return f" {plain(expected)} " in f" {plain(final_text(completion))} "
