"""Wordings: one question in the many ways that people type it.

A question is built around a *core phrase*, which a .jsonl file gives in one of these forms:

    "What is the capital of {x}?"         a question
    "Name the capital of {x}."            a request: a verb of wordings.jsonl first, "." last
    "... what the capital of {x} is"      a clause, for a lead such as "Can you tell me ...?"
    "... the capital of {x}"              a noun phrase, for a lead such as "What is ...?"
    "Capital of {x}"                      a fragment: a slot, and no mark or verb
    "Hello!"                              a remark, which takes no lead, opener or tail

Around it come, each at a rate of its own so that most questions stay plain, the layers of
wordings.jsonl: an opener ("Hi, "), a lead, a tail ("thanks"). Then the ways of the keyboard:
abbreviations, a slip, a missing mark, small letters. Only the letter case touches what fills a
{slot}; slips and abbreviations do not.

A row of such a file is {"kind", "prompts", "held_out"}: the core phrases to train with, and those
that only the test split asks with.

For another language, put a wordings.jsonl of your own into the folder of your files: rows of the
same kinds as in tasks/wordings.jsonl, of which none must be there. "verb" has the words that begin
a request, "question word" those that begin a clause.
"""

import random
import re
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from pathlib import Path

from nanochat.common import DataError, print0
from nanochat.data.rows import read_rows

LAYERS_FILE = Path(__file__).with_name("wordings.jsonl")
KINDS = ("opener", "clause", "noun", "request", "tail", "verb", "question word")
RATES = {"opener": 0.15, "lead": 0.3, "tail": 0.12, "mark": 0.4, "abbreviation": 0.05, "slip": 0.06}
LETTER_CASES = {"as is": 59, "small first": 10, "small": 26, "capitals": 5}
MARKS = {"as is": 66, "none": 28, "double": 3, "spaced": 3}
END_MARKS, OPENING_MARKS = ".?!。？！؟", "¿¡"
SLOT = re.compile(r"\{[^{}]*\}")
ABBREVIATIONS = {
    r"\bwhat(?:'s| is)\b": "whats",
    r"\byou\b": "u",
    r"\byour\b": "ur",
    r"\bare\b": "r",
    r"\bplease\b": "pls",
    r"\bi'(?=m|d)": "i",
    r"\b(do|ca)n't\b": r"\1nt",
    r"\bwant to\b": "wanna",
    r"\bthanks\b": "thx",
}


def read_phrases(path: Path) -> dict[str, dict]:
    """The rows of a file of core phrases by their kind."""
    return {row["kind"]: row for row in read_rows(path)}


@cache
def read_wordings(path: Path = LAYERS_FILE) -> dict[str, list[str]]:
    """The layers of a wordings.jsonl by their kind, [] where it has none; DataError for a row that
    is of another form."""

    def check(row: dict, where: str) -> dict:
        kind, texts = row.get("kind"), row.get("prompts")
        if kind not in KINDS:
            raise DataError(f"{where}: kind {kind!r}, expected one of {', '.join(KINDS)}")
        if not isinstance(texts, list) or not all(isinstance(t, str) and t for t in texts):
            raise DataError(f"{where}: prompts {texts!r:.60}, expected a list of texts")
        if kind in ("clause", "noun", "request") and any(t.count("...") < 1 for t in texts):
            raise DataError(f"{where}: a lead without a place, expected ... in each {kind}")
        return row

    rows = {row["kind"]: row["prompts"] for row in read_rows(path, check=check)}
    return {kind: rows.get(kind, []) for kind in KINDS}


def wordings_beside(path: Path) -> dict[str, list[str]]:
    """The layers of the wordings.jsonl in the folder of a file of phrases; without one, English."""
    beside = path.absolute().with_name(LAYERS_FILE.name)
    if beside == LAYERS_FILE.absolute():
        return read_wordings()
    if beside.exists():
        return read_wordings(beside)
    print0(f"{path}: asked with English openers and leads; a {beside.name} beside it has others")
    return read_wordings()


def spread(index: int) -> float:
    """The index-th of a sequence that fills 0 to 1 evenly, at whatever length: multiples of the
    golden ratio. Phrases drawn at random would leave some out and repeat others too often."""
    return index * 0.6180339887498949 % 1


def draw_phrase(
    row: dict, split: str, rng: random.Random, place: float | None = None
) -> tuple[str, str]:
    """(core phrase, phrasing): in training one of the prompts, "trained", at random or where
    `place` says, 0 the first and 1 the last; the first are the commonest and drawn most. In the
    test split one of the prompts or of those held out, "new", half each, all equally often."""
    if split == "train":  # the k-th in proportion to about k^(-1/3)
        place = rng.random() if place is None else place
        return row["prompts"][int(len(row["prompts"]) * place**1.5)], "trained"
    phrasing = rng.choice(("trained", "new"))
    return rng.choice(row["prompts" if phrasing == "trained" else "held_out"]), phrasing


def form(phrase: str, wordings: dict[str, list[str]] | None = None) -> str:
    """clause, noun, question, request, fragment or remark: see the top of this file."""
    wordings = wordings or read_wordings()
    if phrase.startswith("... "):
        first = re.match(r"\w*", phrase.removeprefix("... "))[0]
        return "clause" if first in wordings["question word"] else "noun"
    if phrase.endswith(("?", "？", "؟")):
        return "question"
    if phrase.endswith((".", "。")) and phrase.split()[0].lower() in wordings["verb"]:
        return "request"
    return "remark" if phrase[-1] in END_MARKS or "{" not in phrase else "fragment"


def compose(
    phrase: str,
    rng: random.Random,
    layers: tuple[str, ...] = ("opener", "tail"),
    wordings: dict[str, list[str]] | None = None,
    /,
    **slots: str,
) -> str:
    """A question around the core phrase, its slots filled; `layers` are those that suit it, of
    `wordings`, by default the English ones.

    compose("... the capital of {x}", rng, x="Peru") may be "hey, can u tell me the capital of Peru"
    """
    english = wordings is None or wordings is read_wordings()
    wordings = wordings or read_wordings()
    kind, text = form(phrase, wordings), phrase.removeprefix("... ")
    layers = [name for name in layers if wordings[name] and kind != "remark"]
    if kind in ("clause", "noun") and not wordings[kind]:
        raise DataError(f"{phrase!r} is a {kind}, but the wordings.jsonl beside it has no {kind}")
    if kind in ("clause", "noun") or (kind == "request" and rng.random() < RATES["lead"]):
        lead = rng.choice(wordings[kind] or ["..."])
        text = lead.replace("...", small_first(text.rstrip(".")), 1)
    if kind == "fragment" and rng.random() < RATES["mark"]:
        text += "?" * (not text.endswith("?"))
    if "opener" in layers and rng.random() < RATES["opener"]:
        opener = rng.choice(wordings["opener"])
        text = opener + (text if opener.endswith(("! ", ". ")) else small_first(text))
    if "tail" in layers and rng.random() < RATES["tail"]:
        text = with_tail(text, rng.choice(wordings["tail"]))
    text = change_mark(text, rng)
    if rng.random() < RATES["abbreviation"] and english:
        text = in_carrier(text, abbreviate)
    if rng.random() < RATES["slip"]:
        text = slip(text, rng)
    return change_case(text.format(**slots), rng)


def with_tail(text: str, tail: str) -> str:
    """with_tail("Why?", ", please") == "Why, please?"; a sentence comes behind the mark."""
    mark = text[-1] if text[-1] in ".?。？؟" else ""
    if tail[0] in ", ":
        return text.removesuffix(mark) + tail + mark
    return f"{text} {tail}" if mark else f"{text}, {small_first(tail)}"


def small_first(text: str) -> str:
    return text if re.match(r"I\b", text) else text[:1].lower() + text[1:]


def draw_weighted(rates: dict[str, int], rng: random.Random) -> str:
    """One of the texts, by weight; as rng.choices, which takes five times as long."""
    drawn, ends = rng.random() * sum(rates.values()), accumulate(rates.values())
    return next(text for text, end in zip(rates, ends, strict=True) if drawn < end)


def change_mark(text: str, rng: random.Random) -> str:
    """The end mark as it is, left out, twice, or after a space; with it goes an opening one."""
    how, bare = draw_weighted(MARKS, rng), text.rstrip(END_MARKS)
    mark = text[len(bare) :]
    if not mark or not bare or how == "as is":
        return text
    if how == "none":
        return in_carrier(bare.rstrip(), lambda part: re.sub(f"[{OPENING_MARKS}]", "", part))
    return bare.rstrip() + {"double": mark * 2, "spaced": " " + mark}[how]


def change_case(text: str, rng: random.Random) -> str:
    how = draw_weighted(LETTER_CASES, rng)
    if how == "small first":
        return small_first(text)
    return {"small": text.lower(), "capitals": text.upper()}.get(how, text)


def in_carrier(text: str, change: Callable[[str], str]) -> str:
    """`text` with its parts outside {slots} changed."""
    parts = re.split(rf"({SLOT.pattern})", text)
    return "".join(part if part.startswith("{") else change(part) for part in parts)


def abbreviate(text: str) -> str:
    for pattern, short in ABBREVIATIONS.items():
        text = re.sub(pattern, short, text, flags=re.I)
    return text


def slip(text: str, rng: random.Random) -> str:
    """One word of five letters or more, outside the slots, with two letters swapped, one left out
    or one typed twice; never its first."""
    carrier = SLOT.sub(lambda slot: " " * len(slot[0]), text)
    words = list(re.finditer(r"(?<![\w'])[^\W\d_]{5,}(?![\w'])", carrier))
    if not words:
        return text
    word = rng.choice(words)
    i = rng.randrange(word.start() + 1, word.end() - 1)
    typed = rng.choice((text[i + 1] + text[i], text[i + 1], text[i] + text[i : i + 2]))
    return text[:i] + typed + text[i + 2 :]
