"""Compares the tokenizer with GPT-2's and GPT-4's: characters per token by kind of text.

    python -m scripts.tok_eval

The others' vocabularies are downloaded by tiktoken (pip install tiktoken); without it, or without a
network, this says so, and shows ours. The counts are kept beside the tokenizer, for the report.
"""

import inspect
import json
import multiprocessing
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from nanochat.common import print0
from nanochat.configurator import cli
from nanochat.files import base_dir, write_atomic
from nanochat.report.evaluations import TOKENIZER_RECORD, tokenizer_table
from nanochat.report.page import print_table
from nanochat.tokenizer import Tokenizer

OTHERS = {"GPT-2": "gpt2", "GPT-4": "cl100k_base"}


@dataclass(frozen=True)
class Config:
    tokenizer: Path | None = None
    """Folder with the tokenizer; unset: tokenizer/ under the base folder."""
    compare: bool = True
    """Whether to compare with GPT-2's and GPT-4's tokenizers."""
    timeout: float = 20.0
    """Seconds that tiktoken may take to get each of their vocabularies."""


def samples() -> dict[str, str]:
    """A text of each kind: those of tokenizer_texts.md, and the code of Python's json module."""
    file = resources.files("nanochat.evaluation") / "tokenizer_texts.md"
    _, *parts = re.split(r"^# (.+)\n", file.read_text(encoding="utf-8"), flags=re.M)
    texts = {kind: text.strip() for kind, text in zip(parts[::2], parts[1::2], strict=True)}
    code = inspect.getsource(json) + inspect.getsource(json.decoder)
    return texts | {"code": code.strip()}


def count_tokens(encoding: str, texts: list[str], answer) -> None:
    """Puts the token counts of `texts`, or what went wrong, into the queue `answer`."""
    try:
        import tiktoken

        encode = tiktoken.get_encoding(encoding).encode_ordinary
        answer.put([len(encode(text)) for text in texts])
    except Exception as error:  # whatever the download raised is told, not hidden
        answer.put(type(error).__name__)


def counts_of(encoding: str, texts: list[str], timeout: float) -> list[int] | str:
    """Token counts by one of tiktoken's own encodings, or why there are none.

    In a process of its own: tiktoken's download has no time limit that could be set.
    """
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=count_tokens, args=(encoding, texts, answer), daemon=True)
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        return f"not downloaded within {timeout:g} s"
    return "its process ended early" if answer.empty() else answer.get()


def main(config: Config) -> None:
    folder = config.tokenizer or base_dir() / "tokenizer"
    tokenizer = Tokenizer.load(folder)
    texts = samples()
    length: Callable[[str], int] = lambda text: len(tokenizer.encode_ordinary(text))  # noqa: E731
    columns = {"ours": [length(text) for text in texts.values()]}
    for name, encoding in OTHERS.items() if config.compare else ():
        found = counts_of(encoding, list(texts.values()), config.timeout)
        if isinstance(found, str):
            print0(f"{name} ({encoding}) is not compared: tiktoken does not give it ({found})")
        else:
            columns[name] = found
    record = {
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "texts": [
            {
                "kind": kind,
                "characters": len(text),
                "tokens": {name: counts[i] for name, counts in columns.items()},
            }
            for i, (kind, text) in enumerate(texts.items())
        ],
    }
    write_atomic(folder / TOKENIZER_RECORD, json.dumps(record, indent=1) + "\n")
    print_table(tokenizer_table(record))


if __name__ == "__main__":
    cli(main, Config)
