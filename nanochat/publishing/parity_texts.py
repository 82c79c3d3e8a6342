"""Texts and chats that an export is proved on, in parity_texts.json: languages, emoji, code,
look-alike markup, the first letters and digits of every script."""

import json
from functools import cache
from pathlib import Path


@cache
def written() -> dict[str, list]:
    """parity_texts.json: kinds of texts by name, and "chats"."""
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def texts() -> list[str]:
    """More than 300 texts."""
    return [text for kind, some in written().items() if kind != "chats" for text in some]


def conversation(turns) -> dict:
    """{"messages": [...]} of ((role, content), ...)."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def chats() -> list[dict]:
    """Conversations in every form, whose content holds no "<|"."""
    by_hand = written()
    plain = [*by_hand["sentences"], *by_hand["code"][:3], *by_hand["emoji"], *by_hand["odd"]]
    made = [conversation([("user", text), ("assistant", text)]) for text in plain]
    return [*by_hand["chats"], *(chat for chat in made if "<|" not in str(chat))]


def parts(*kinds_and_texts: tuple[str, str]) -> list[dict]:
    return [{"type": kind, "text": text} for kind, text in kinds_and_texts]


def hostile_chats() -> list[dict]:
    """Conversations whose content tries to be markup: as a string, in parts, in a tool's result."""
    made = []
    for text in written()["lookalikes"]:
        made.append([("user", text), ("assistant", f"{text} {text}")])
        halves = parts(("text", text[:1]), ("text", text[1:]))
        made.append([("system", text), ("user", halves)])
        tool = parts(("python", text), ("python_output", text), ("text", text[:2]))
        made.append([("user", "?"), ("assistant", tool + parts(("text", text[2:])))])
    return [conversation(turns) for turns in made]
