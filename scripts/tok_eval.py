"""Compares the tokenizer with GPT-2's and GPT-4's: characters per token by kind of text.

    python -m scripts.tok_eval
    python -m scripts.tok_eval --text=./my.txt

The others' vocabularies come from this disk: tiktoken's cache, packages that ship it, or the
hub's cache; else tiktoken downloads them. Without --text the counts are kept for the report.
"""

import inspect
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer as LibraryTokenizer

from nanochat.common import print0
from nanochat.configurator import cli
from nanochat.data.sources import open_source
from nanochat.files import base_dir, write_atomic
from nanochat.report.evaluations import TOKENIZER_RECORD, tokenizer_table
from nanochat.report.page import print_table
from nanochat.tokenizer import Tokenizer

# tiktoken's name; a repository with the same; its files in a cache, SHA-1 of their addresses.
OTHERS = {
    "GPT-2": ("gpt2", "openai-community/gpt2", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee "
              "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"),
    "GPT-4": ("cl100k_base", "Xenova/gpt-4", "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"),
}  # fmt: skip
SHIPPED = ("llama_index/core/_static/tiktoken_cache", "litellm/litellm_core_utils/tokenizers")
LONGEST = 1_000_000


@dataclass(frozen=True)
class Config:
    tokenizer: Path | None = None
    """Folder with the tokenizer; unset: tokenizer/ under the base folder."""
    text: Path | None = None
    """A file or folder of your own text, to measure on it."""
    column: str = "text"
    """Of tables: the one with the text."""
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


def own_texts(config: Config) -> dict[str, str]:
    """Up to LONGEST characters of --text: of what training would read, and of what is held out."""
    source, texts = open_source(str(config.text), column=config.column), {}
    for split, part in (("train", ""), ("val", ", held out")):
        text = ""
        for document in (text for shard in source.shards(split) for text in shard.texts()):
            text += document[: LONGEST - len(text)] + "\n"
            if len(text) >= LONGEST:
                break
        texts |= {f"{source.name}{part}": text} if text else {}
    return texts


# In a process of its own, with nothing else imported: a download has no time limit.
COUNT_TOKENS = """
import json, sys, tiktoken
encode = tiktoken.get_encoding(sys.argv[1]).encode_ordinary
print(json.dumps([len(encode(text)) for text in json.load(sys.stdin)]))
"""


def counts_of(name: str, texts: list[str], timeout: float) -> list[int] | str:
    """Token counts by one of OTHERS, from this disk or downloaded, or why there are none."""
    encoding, repository, files = OTHERS[name]
    own = (os.environ.get(key) for key in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"))
    folders = [*filter(None, own), Path(tempfile.gettempdir(), "data-gym-cache")]
    folders += [Path(sysconfig.get_path("purelib"), folder) for folder in SHIPPED]
    found = [Path(f) for f in folders if all(Path(f, file).exists() for file in files.split())]
    cached = try_to_load_from_cache(repository, "tokenizer.json")
    if isinstance(cached, str):
        encode = LibraryTokenizer.from_file(cached).encode
        return [len(encode(text, add_special_tokens=False).ids) for text in texts]
    command = [sys.executable, "-c", COUNT_TOKENS, encoding]
    folder = {"TIKTOKEN_CACHE_DIR": str(found[0])} if found else {}
    try:
        counted = subprocess.run(
            command, input=json.dumps(texts), env=os.environ | folder, timeout=timeout,
            capture_output=True, text=True,
        )  # fmt: skip
        if counted.returncode == 0:
            return json.loads(counted.stdout)
        why = counted.stderr.strip().rpartition("\n")[2].partition(":")[0]  # the error's name
    except subprocess.TimeoutExpired:
        why = f"not downloaded within {timeout:g} s"
    places = ", ".join(map(str, [*folders, f"the hub's cache of {repository}"]))
    return f"it is not in {places}; and tiktoken does not give {encoding!r}: {why}"


def main(config: Config) -> None:
    folder = config.tokenizer or base_dir() / "tokenizer"
    tokenizer = Tokenizer.load(folder)
    texts = own_texts(config) if config.text else samples()
    columns = {"ours": [len(tokenizer.encode_ordinary(text)) for text in texts.values()]}
    for name in OTHERS if config.compare else ():
        columns[name] = counts_of(name, list(texts.values()), config.timeout)
        if isinstance(columns[name], str):
            print0(f"{name} is not compared: {columns.pop(name)}")
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
    if not config.text:
        write_atomic(folder / TOKENIZER_RECORD, json.dumps(record, indent=1) + "\n")
    print_table(tokenizer_table(record))


if __name__ == "__main__":
    cli(main, Config)
