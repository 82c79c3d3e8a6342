"""Examples of CORE as rows of token ids: solved examples before the question, and where in each row
the scored tokens begin.

The formats are DCLM's (arXiv:2406.11794), rendered and cut as upstream nanochat does.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nanochat.evaluation.core_bundle import CoreTask

SHUFFLE_SEED, SHOTS_SEED = 1337, 1234


@dataclass(frozen=True)
class Row:
    """ids (n,) of a text after <|bos|>; ids[start:] are scored, start >= 1."""

    ids: np.ndarray
    start: int


@dataclass(frozen=True)
class Example:
    """A row for each option; for language modelling one."""

    rows: tuple[Row, ...]
    gold: int = 0
    cut: bool = False  # a row lost its oldest tokens to a short context
    merged: bool = False  # a token reaches from the context into the continuation


def subsample(rows: Sequence[dict], max_per_task: int | None = None) -> list[dict]:
    """The rows in shuffled order, at most max_per_task."""
    rows = list(rows)
    random.Random(SHUFFLE_SEED).shuffle(rows)
    return rows[:max_per_task]


def draw_shots(rows: Sequence[dict], index: int, shots: int) -> list[dict]:
    """The solved examples for rows[index]: never itself; all others where there are not enough."""
    others = [i for i in range(len(rows)) if i != index]
    chosen = random.Random(SHOTS_SEED + index).sample(others, min(shots, len(others)))
    return [rows[i] for i in chosen]


def render(task: CoreTask, row: dict) -> list[str]:
    """The text of each option; for language modelling, of context and continuation.

    Example: {"query": "1+1=", "choices": ["2", "3"], "gold": 0} -> ["1+1= 2", "1+1= 3"]
    """
    if task.kind == "multiple_choice":
        return [f"{row['query']}{task.delimiter}{choice}" for choice in row["choices"]]
    contexts = row["context_options"] if task.kind == "schema" else [row["context"].strip()]
    return [f"{context}{task.delimiter}{row['continuation']}" for context in contexts]


def prompts(task: CoreTask, row: dict, shots: Sequence[dict]) -> list[str]:
    """The texts to encode: one an option; for language modelling without and with the
    continuation."""
    before = "".join(f"{render(task, shot)[shot.get('gold', 0)]}\n\n" for shot in shots)
    texts = [f"{before}{text}" for text in render(task, row)]
    if task.kind == "language_modeling":
        # subtle: a blank at the end would be a token of its own, while before the continuation it
        # belongs to that one's first word
        without = f"{before}{row['context'].strip()}{task.delimiter}".strip()
        return [without, *texts]
    return texts


def common_prefix(rows: Sequence[np.ndarray]) -> int:
    """How many ids all rows begin with."""
    shortest = min(len(row) for row in rows)
    same = np.ones(shortest, dtype=bool)
    for row in rows[1:]:
        same &= row[:shortest] == rows[0][:shortest]
    return shortest if same.all() else int(same.argmin())


def scored_rows(kind: str, encoded: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """(rows, where the scored tokens of each begin), of the encoded `prompts`.

    Multiple choice: what follows the beginning that all choices share. Schema: the end that all
    options share. Language modelling: what the continuation adds. Never <|bos|>, at least a token.
    """
    if kind == "language_modeling":
        without, row = encoded
        return [row], [min(common_prefix([without, row]), len(row) - 1)]
    if kind == "schema":
        shared = common_prefix([row[::-1] for row in encoded])
        return list(encoded), [max(1, len(row) - max(1, shared)) for row in encoded]
    # subtle: where a choice begins another one, at least its last token is scored
    start = min(common_prefix(encoded), min(len(row) for row in encoded) - 1)
    return list(encoded), [start] * len(encoded)


def make_example(task: CoreTask, row: dict, encoded: Sequence[np.ndarray], context: int) -> Example:
    """An Example of rows of at most `context` ids; longer ones lose their oldest."""
    merged = task.kind == "language_modeling" and common_prefix(encoded) < len(encoded[0])
    rows = []
    for ids, start in zip(*scored_rows(task.kind, encoded), strict=True):
        lost = max(0, len(ids) - context)
        rows.append(Row(ids[lost:], max(1, start - lost)))
    cut = any(len(ids) > context for ids in encoded[-len(rows) :])
    return Example(tuple(rows), row.get("gold", 0), cut, merged)


def make_examples(
    task: CoreTask, rows: Sequence[dict], indices: Sequence[int], tokenizer, context: int
) -> list[Example]:
    """The examples rows[i] for i of `indices`, tokenized together, <|bos|> first."""
    texts = [prompts(task, rows[i], draw_shots(rows, i, task.shots)) for i in indices]
    ids, offsets = tokenizer.encode_ordinary_batch([text for some in texts for text in some])
    bos = np.array([tokenizer.bos], dtype=ids.dtype)
    encoded = (np.concatenate([bos, part]) for part in np.split(ids, offsets[1:-1]))
    return [
        make_example(task, rows[i], [next(encoded) for _ in some], context)
        for i, some in zip(indices, texts, strict=True)
    ]
