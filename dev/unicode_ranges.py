"""Writes nanochat/bpe/unicode_ranges.h: what Unicode 16.0 calls letters, numbers and white space.

    pip install regex==2024.11.6; python dev/unicode_ranges.py > nanochat/bpe/unicode_ranges.h

That version of `regex` has Unicode 16.0, as tiktoken 0.14, rustbpe 0.1 and tokenizers 0.23 do. Run
it again only to move to another version, which changes how text is split: a tokenizer's ids too.
"""

import importlib.metadata
from itertools import groupby

import regex

EXPECTED = "2024.11.6"
CLASSES = {"LETTERS": r"\p{L}", "NUMBERS": r"\p{N}", "SPACES": r"\s"}


def ranges(pattern: str) -> list[int]:
    """First and last code point of each range of characters that match, one after another."""
    every = "".join(map(chr, range(0x110000)))
    points = [ord(c) for c in regex.findall(pattern, every)]
    flat = []
    for _, group in groupby(enumerate(points), key=lambda pair: pair[1] - pair[0]):
        run = [point for _, point in group]
        flat += [run[0], run[-1]]
    return flat


def lines(numbers: list[int], width: int = 100) -> list[str]:
    """The numbers in hexadecimal, as many a line as fit."""
    found = ["   "]
    for number in numbers:
        word = f" 0x{number:x},"
        if len(found[-1]) + len(word) > width:
            found.append("   ")
        found[-1] += word
    return found


def main() -> None:
    found = importlib.metadata.version("regex")
    if found != EXPECTED:
        raise SystemExit(f"regex {found} is installed; expected {EXPECTED}, see this file's head")
    print(
        "// Made by dev/unicode_ranges.py from regex 2024.11.6: Unicode 16.0. First and last code"
    )
    print(
        "// point of each range of \\p{L}, \\p{N} and \\s. Included by core.cpp, read by pieces.py."
    )
    for name, pattern in CLASSES.items():
        print(f"static const uint32_t {name}[] = {{")
        print("\n".join(lines(ranges(pattern))))
        print("};")


if __name__ == "__main__":
    main()
