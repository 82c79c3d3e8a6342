"""Text cut into pieces by a regular expression, with the letters and numbers of Unicode 16.0.

The slow twin of the scanner in core.cpp, and the only splitter for patterns other than Llama-3's.
What is a letter grows with every version of Unicode, so installed packages differ: `regex` 2026.11
calls 17,480 more code points letters or numbers than tiktoken and `tokenizers` do. unicode_ranges.h
decides here, as it does in core.cpp.
"""

import re
from functools import cache
from pathlib import Path

import regex

from nanochat.common import ConfigError

# Llama-3's: llama.cpp knows it by name.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

RANGES = Path(__file__).with_name("unicode_ranges.h")
# A code point that no version will change stands for each class.
TYPICAL = {"LETTERS": "\u4e00", "NUMBERS": "\u2460", "": "\u2603"}


def unicode_ranges(name: str) -> list[tuple[int, int]]:
    """First and last code point of each range of LETTERS or NUMBERS in unicode_ranges.h."""
    body = re.search(rf"\b{name}\[\] = {{(.*?)}};", RANGES.read_text(), re.DOTALL)[1]
    numbers = [int(x, 16) for x in re.findall(r"0x([0-9a-f]+)", body)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


@cache
def changed_characters() -> tuple[re.Pattern | None, dict[str, str]]:
    """Characters that the installed `regex` puts into another class: (what finds them, stand-ins).

    A stand-in is of the class that unicode_ranges.h says. None: there are none, versions agree.
    """
    every = "".join(map(chr, range(0x110000)))
    stand_ins = {}
    for name, known in (("LETTERS", r"\p{L}"), ("NUMBERS", r"\p{N}")):
        expected = {chr(c) for a, b in unicode_ranges(name) for c in range(a, b + 1)}
        found = set(regex.findall(known, every))
        stand_ins |= dict.fromkeys(expected - found, TYPICAL[name])
        stand_ins |= {c: stand_ins.get(c, TYPICAL[""]) for c in found - expected}
    if not stand_ins:
        return None, {}
    return re.compile(f"[{''.join(sorted(stand_ins))}]"), stand_ins


def as_bytes(text: str | bytes) -> bytes:
    """UTF-8 of a text; a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


class Splitter:
    """Cuts texts by one pattern. Raises ConfigError for a pattern that does not compile.

    Example: Splitter(SPLIT_PATTERN).pieces("Hi there") == [b"Hi", b" there"]
    """

    def __init__(self, pattern: str):
        try:
            self._pattern = regex.compile(pattern)
        except regex.error as error:
            raise ConfigError(f"split pattern {pattern!r} does not compile: {error}") from error

    def pieces(self, text: str | bytes) -> list[bytes]:
        """The pieces, which together are the text: also what the pattern does not match is one.

        A byte that is not UTF-8 is a character of its own, neither letter, number nor space.
        """
        text = as_bytes(text).decode("utf-8", "surrogateescape")
        changed, stand_ins = changed_characters()
        seen = text if changed is None else changed.sub(lambda found: stand_ins[found[0]], text)
        cuts = {0, len(text)}
        for found in self._pattern.finditer(seen):
            cuts.update(found.span())
        cuts = sorted(cuts)
        slices = [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
        return [piece.encode("utf-8", "surrogateescape") for piece in slices]
