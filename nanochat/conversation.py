"""A conversation as ids with a loss mask, and as a Jinja template: the only owner of chat markup.

A conversation is {"messages": [{"role": "system" | "user" | "assistant", "content": str or a list
of parts}]}, a part {"type": "text" | "python" | "python_output", "text": str}. Texts are encoded as
ordinary text, so that nothing that a user or a data set wrote becomes a special token.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nanochat.common import ConfigError, DataError
from nanochat.tokenizer import Tokenizer

# What ends an answer: its own end, or the <|bos|> of a next document.
STOP_TOKENS = ("<|assistant_end|>", "<|bos|>")
# What stands around a part of an assistant's message, and whether the assistant says it.
PART_MARKS = {
    "text": ("", "", 1),
    "python": ("<|python_start|>", "<|python_end|>", 1),
    "python_output": ("<|output_start|>", "<|output_end|>", 0),
}


@lru_cache(1)
def chat_template() -> str:
    """The Jinja template that transformers' apply_chat_template renders conversations with. Its tag
    {% generation %} stands around what render() gives the mask 1.

    subtle: a template makes one string, in which "<|user_end|>" is markup whoever wrote it, so "<|"
    in content visibly becomes "< |"; text parts are joined first, for "<" and "|bos|>" may come in
    two. Without "<|" the ids are those of render().
    """
    return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")


def plain_chat_template() -> str:
    """The same template for programs that do not know the tag {% generation %}."""
    return re.sub(r"\{%- (end)?generation -%\}", "", chat_template())


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end an answer and are no part of it."""
    return tuple(tokenizer.special(name) for name in STOP_TOKENS)


class Segment(NamedTuple):
    """One special token, or one text, of a rendered conversation; mask 1 where loss is taken."""

    text: str
    special: bool = True
    mask: int = 0


def validate(conversation: dict, where: str) -> None:
    """Raises DataError naming `where` (say "chats.jsonl:17") unless `conversation` is well formed:
    at most one system message, first; then user and assistant in turns; only assistant messages
    have other parts than text. Other keys are not looked at."""
    messages = conversation.get("messages") if isinstance(conversation, dict) else None
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f'{where}: found {conversation!r:.60}, expected {{"messages": [...]}}, not empty'
        )
    num_system = int(isinstance(messages[0], dict) and messages[0].get("role") == "system")
    for i, message in enumerate(messages):
        role = "system" if i < num_system else ("user", "assistant")[(i - num_system) % 2]
        if problem := _problem(message, role):
            raise DataError(f"{where}: message {i + 1} of {len(messages)}: {problem}")
    if len(messages) == num_system:
        raise DataError(f"{where}: found a system message alone, expected a user message after it")


def _problem(message: object, role: str) -> str | None:
    """What is wrong with a message that should be `role`'s: found and expected."""
    if not isinstance(message, dict):
        return f"found {type(message).__name__}, expected a dictionary with role and content"
    if message.get("role") != role:
        return f"found role {message.get('role')!r}, expected {role!r}"
    content = message.get("content")
    if isinstance(content, str):
        return None
    if not isinstance(content, list):
        return f"found content of type {type(content).__name__}, expected a string or a list"
    kinds = list(PART_MARKS) if role == "assistant" else ["text"]
    for part in content:
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str) or part.get("type") not in kinds:
            return f"found part {part!r:.60}, expected one of {', '.join(kinds)}, text a string"
    return None


def content_parts(content: str | list[dict]) -> list[tuple[str, str]]:
    """(type, text) of each part; neighbouring texts joined, as one text for the tokenizer."""
    if isinstance(content, str):
        return [("text", content)]
    parts = []
    for part in content:
        if part["type"] == "text" and parts and parts[-1][0] == "text":
            parts[-1] = ("text", parts[-1][1] + part["text"])
        else:
            parts.append((part["type"], part["text"]))
    return parts


def segments(conversation: dict) -> list[Segment]:
    """The conversation from left to right, texts not yet encoded.

    Example: {"messages": [user "Hi"]} -> <|bos|> <|user_start|> "Hi" <|user_end|>, all with mask 0.
    """
    out = [Segment("<|bos|>")]
    system = ""
    for message in conversation["messages"]:
        parts = content_parts(message["content"])
        if message["role"] == "system":
            system = "".join(text for _, text in parts) + "\n\n"
        elif message["role"] == "user":
            text = system + "".join(text for _, text in parts)
            system = ""
            out += [Segment("<|user_start|>"), Segment(text, False), Segment("<|user_end|>")]
        else:
            out.append(Segment("<|assistant_start|>"))
            for kind, text in parts:
                start, end, mask = PART_MARKS[kind]
                if start:
                    out.append(Segment(start, True, mask))
                out.append(Segment(text, False, mask))
                if end:
                    out.append(Segment(end, True, mask))
            out.append(Segment("<|assistant_end|>", True, 1))
    return out


def render(conversation: dict, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(ids, mask) of a valid conversation: ids begin with <|bos|>; mask is 1 on what the assistant
    says, with its tool calls and <|assistant_end|>, and 0 on what it is given: user turns,
    <|assistant_start|>, tool output."""
    ids, mask = [], []
    for text, special, loss in segments(conversation):
        new = [tokenizer.special(text)] if special else tokenizer.encode_ordinary(text)
        ids += new
        mask += [loss] * len(new)
    return ids, mask


def render_batch(
    conversations: Sequence[dict], tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """render() of N conversations: flat ids, int64 offsets (N + 1,), flat uint8 mask."""
    each = [segments(conversation) for conversation in conversations]
    flat = [segment for one in each for segment in one]
    text_ids, ends = tokenizer.encode_ordinary_batch([s.text for s in flat if not s.special])
    special = np.array([s.special for s in flat], bool)
    lengths = np.ones(len(flat), int)
    lengths[~special] = np.diff(ends)
    marks = np.repeat(special, lengths)
    ids = np.empty(len(marks), text_ids.dtype)
    ids[~marks] = text_ids
    ids[marks] = [tokenizer.special(s.text) for s in flat if s.special]
    mask = np.repeat(np.array([s.mask for s in flat], np.uint8), lengths)
    offsets = np.cumsum([0, *lengths])[np.cumsum([0, *map(len, each)])]
    return ids, offsets, mask


def render_for_completion(conversation: dict, tokenizer: Tokenizer) -> list[int]:
    """The ids to complete, up to <|assistant_start|>; a last assistant message is left out."""
    messages = conversation["messages"]
    last = len(messages) - (messages[-1]["role"] == "assistant")
    ids, _ = render({"messages": messages[:last]}, tokenizer)
    return ids + [tokenizer.special("<|assistant_start|>")]


def prompt_ids(messages: list[dict], tokenizer: Tokenizer) -> list[int]:
    """The ids after which the assistant speaks; a last message of its own is gone on with."""
    if messages[-1]["role"] != "assistant":
        return render_for_completion({"messages": messages}, tokenizer)
    ids, _ = render({"messages": messages}, tokenizer)
    return ids[:-1]  # without <|assistant_end|>


def fit_turns(
    messages: Sequence[dict], tokenizer: Tokenizer, context: int, forget: bool = True
) -> tuple[list[int], int]:
    """(prompt_ids of a valid conversation, number of turns left out). If `forget`, the oldest turns
    but the last go until a quarter of the `context` is free; the system message stays. ConfigError
    where no room for an answer is left."""
    system = [m for m in messages[:1] if m["role"] == "system"]
    rest = messages[len(system) :]
    turns = [list(rest[i : i + 2]) for i in range(0, len(rest), 2)]  # a question and its answer
    # subtle: the turns are measured apart, so that a long history is tokenized twice, not once a
    # turn; a token or two may differ where they meet
    lengths = [len(render({"messages": turn}, tokenizer)[0]) for turn in turns]
    held = sum(lengths) + (len(prompt_ids(system + turns[-1], tokenizer)) - lengths[-1])
    first = 0
    while forget and first < len(turns) - 1 and held > context * 3 // 4:
        held -= lengths[first]
        first += 1
    ids = prompt_ids([*system, *(m for turn in turns[first:] for m in turn)], tokenizer)
    if len(ids) >= context:
        what = "last message with the system message" if forget else "conversation"
        raise ConfigError(
            f"the {what} has {len(ids):,} tokens; the context of {context:,} takes at most "
            f"{context - 1:,}, to leave room for an answer. Shorten it"
        )
    return ids, first
