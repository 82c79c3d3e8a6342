"""Text cut into pieces by a regular expression, with the letters and numbers of Unicode 16.0.

The slow twin of scanner.h, and the splitter of other patterns than Llama-3's. Every version of
Unicode has more letters: `regex` 2026.11 has 17,480 more letters and numbers than tiktoken and
`tokenizers`. Here, as in scanner.h, unicode_ranges.h decides.
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
def stand_ins() -> dict[int, str]:
    """For each code point that the installed `regex` classes otherwise than unicode_ranges.h does,
    a character of the right class."""
    every, found = "".join(map(chr, range(0x110000))), {}
    for name, known in (("LETTERS", r"\p{L}"), ("NUMBERS", r"\p{N}")):
        expected = {c for a, b in unicode_ranges(name) for c in range(a, b + 1)}
        matched = set(map(ord, regex.findall(known, every)))
        found |= dict.fromkeys(expected - matched, TYPICAL[name])
        found |= {c: found.get(c, TYPICAL[""]) for c in matched - expected}
    return found


def as_bytes(text: str) -> bytes:
    """UTF-8 of a text; a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD."""
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

    def pieces(self, text: str) -> list[bytes]:
        """The pieces, which together are the text: what the pattern does not match is one too."""
        text = as_bytes(text).decode()
        matched = text if text.isascii() else text.translate(stand_ins())  # of equal length
        cuts = {0, len(text)}
        for found in self._pattern.finditer(matched):
            cuts.update(found.span())
        cuts = sorted(cuts)
        return [text[a:b].encode() for a, b in zip(cuts, cuts[1:], strict=False)]
