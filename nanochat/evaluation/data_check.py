"""What a text holds, before anything is trained on it: scripts, damage, secrets, repetition.

Memory is bounded: of large data some documents are compared, chosen by their text, so that copies
stay together.
"""

import hashlib
import io
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path

import numpy as np

from nanochat.common import DataError, progress
from nanochat.files import read_json
from nanochat.tokenizer import Tokenizer

WINDOW, BANDS, ROWS = 32, 8, 8  # bytes of a piece; minima of its hashes, in bands
MOST_PIECES = 4096  # of a document: those with the smallest hashes
MOST_DOCUMENTS, MOST_LINES, MOST_CHARACTERS = 1_000_000, 200_000, 20_000_000  # that are kept
LONGEST = 10_000  # characters of a document in the sample
SHOWN = 3  # examples

Part = tuple[str, Callable[[Counter], Iterator[str]]]  # a file's name, and its reader; see Shard


@cache
def rules() -> dict:
    return read_json(Path(__file__).with_name("data_check.json"))


@cache
def script_table() -> np.ndarray:
    """(0x110000,): the number of each character's script, from 1; 0 for others."""
    table = np.zeros(0x110000, np.uint8)
    for number, ranges in enumerate(rules()["scripts"].values(), start=1):
        for start, end in ranges:
            table[start:end] = number
    return table


def count_scripts(text: str) -> Counter:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    counts = np.bincount(script_table()[codes]).tolist()
    names = ["other", *rules()["scripts"]]
    return Counter({name: n for name, n in zip(names, counts, strict=False) if n})


def language(text: str) -> str:
    """The one with the most common words in the text; "unknown" below one word in twenty."""
    words = text[:2000].lower().split()
    found = Counter(filter(None, map(rules()["words"].get, words)))
    best, count = max(found.items(), key=lambda item: item[1], default=("unknown", 0))
    return best if 20 * count >= len(words) else "unknown"


class Duplicates:
    """Documents that repeat an earlier one, or share 80% of its pieces (MinHash, Broder 1997)."""

    def __init__(self):
        self.odd = np.random.default_rng(0).integers(2**63, size=64, dtype=np.uint64) * 2 + 1
        self.rows = np.empty((MOST_DOCUMENTS, 3 + BANDS), np.uint64)
        self.count = self.level = 0  # one in 2**level is kept

    def add(self, number: int, key: int, text: str) -> None:
        data = " ".join(text.lower().split()).encode("utf-8", "replace")
        h = np.frombuffer(data.ljust(WINDOW, b"\0"), np.uint8).astype(np.uint64) + 1
        width = 1
        while width < WINDOW:  # h[i]: of the bytes i .. i + width
            h = h[:-width] + h[width:] * np.uint64(pow(0x9E3779B97F4A7C15, width, 2**64))
            width *= 2
        h = (h ^ (h >> 29)) * np.uint64(0xBF58476D1CE4E5B9)
        h ^= h >> 32
        if len(h) > MOST_PIECES:
            h = np.partition(h, MOST_PIECES)[:MOST_PIECES]
        minima = (h * self.odd[:, None]).min(1)
        if int(minima[0]) % 2**self.level:
            return
        bands = (minima * self.odd).reshape(BANDS, ROWS).sum(1)
        self.rows[self.count] = (number, minima[0], key, *bands)
        self.count += 1
        while self.count == MOST_DOCUMENTS:
            self.level += 1
            kept = self.rows[self.rows[:, 1] % 2**self.level == 0]
            self.count = len(kept)
            self.rows[: self.count] = kept

    def found(self) -> dict[str, list[tuple[int, int]]]:
        """(document, an earlier one) of each that is kept: "exact" and "near"."""
        rows, earlier = self.rows[: self.count], np.full((2, self.count), -1)
        for column in range(2, rows.shape[1]):
            _, first, group = np.unique(rows[:, column], return_index=True, return_inverse=True)
            first, side = first[group], int(column > 2)
            new = (first < np.arange(self.count)) & (earlier[side] < 0)
            earlier[side][new] = first[new]
        earlier[1][earlier[0] >= 0] = -1
        return {
            name: [(int(rows[i, 0]), int(rows[found[i], 0])) for i in np.flatnonzero(found >= 0)]
            for name, found in zip(("exact", "near"), earlier, strict=True)
        }


def read_quietly(read: Callable, notes: list[str]) -> Iterator[str]:
    """What read() yields; what it prints, and the error that ends it, become notes."""
    texts, printed, text, done = iter(read()), io.StringIO(), None, object()
    while text is not done:
        with redirect_stdout(printed):
            try:
                text = next(texts, done)
            except DataError as error:
                print(f"training would stop here: {error}")
                text = done
        if text is not done:
            yield text
    notes += printed.getvalue().splitlines()


def check(parts: Iterable[Part]) -> tuple[dict, list[str]]:
    """(report, sample): what is in all documents, and some of them."""
    patterns = {name: re.compile(pattern) for name, pattern in rules()["findings"].items()}
    counts, scripts, languages, lines = Counter(), Counter(), Counter(), Counter()
    findings: dict[str, dict] = {}
    names, starts, notes = [], [], []
    duplicates = Duplicates()
    sample, sampled, level = {}, 0, 0  # one in 2**level, by its key

    def place(number: int) -> str:
        part = bisect_right(starts, number) - 1
        return f"{names[part]}, document {number - starts[part] + 1:,}"

    with progress("checking", None, "documents") as advance:
        for name, read in parts:
            names.append(name)
            starts.append(counts["documents"])
            for text in read_quietly(partial(read, counts), notes):
                number, data = counts["documents"], text.encode("utf-8", "replace")
                key = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
                counts.update(documents=1, characters=len(text), bytes=len(data))
                scripts.update(count_scripts(text))
                languages[language(text)] += 1
                duplicates.add(number, key, text)
                if not key % 2**level and key not in sample:
                    sample[key] = text[:LONGEST]
                    sampled += len(sample[key])
                if sampled > MOST_CHARACTERS and len(sample) > 1:
                    level += 1
                    sample = {k: kept for k, kept in sample.items() if not k % 2**level}
                    sampled = sum(map(len, sample.values()))
                for what, pattern in patterns.items():
                    if match := pattern.search(text):
                        found = findings.setdefault(what, {"documents": 0, "examples": []})
                        found["documents"] += 1
                        if len(found["examples"]) < SHOWN:
                            found["examples"].append(f"{place(number)}: {match[0][:6]!r}")
                lines.update(line for line in map(str.strip, text.split("\n")) if len(line) > 20)
                if len(lines) > MOST_LINES:
                    lines = Counter(dict(lines.most_common(MOST_LINES // 2)))
                advance()
    for kind, pairs in duplicates.found().items():
        if pairs:
            what = f"{kind} duplicates of earlier ones, among {duplicates.count:,} compared"
            examples = [f"{place(a)} = {place(b)}" for a, b in pairs[:SHOWN]]
            findings[what] = {"documents": len(pairs), "examples": examples}
    repeated = [(n, line) for line, n in lines.most_common() if n > 2]
    notes += [f"{n:,} times the same line: {line[:60]}" for n, line in repeated[:SHOWN]]
    report = {"scripts": dict(scripts.most_common()), "languages": dict(languages.most_common())}
    report |= {"files": len(names), **counts, "findings": findings, "notes": notes}
    report["repeated_characters"] = sum((n - 1) * len(line) for n, line in repeated)
    return report, list(sample.values())


def fertility(tokenizer: Tokenizer, texts: list[str]) -> dict[str, dict[str, int]]:
    """Characters, words and tokens of the lines that are mostly in each script."""
    lines: dict[str, list[str]] = {}
    for line in (line for text in texts for line in text.splitlines(keepends=True)):
        scripts = count_scripts(line)
        del scripts["other"]
        lines.setdefault(max(scripts, key=scripts.get, default="other"), []).append(line)
    return {
        script: {
            "characters": sum(map(len, found)),
            "words": sum(len(line.split()) for line in found),
            "tokens": len(tokenizer.encode_ordinary_batch(found)[0]),
        }
        for script, found in lines.items()
    }
