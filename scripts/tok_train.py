"""Trains the tokenizer on the text that the model will be trained on.

python -m scripts.tok_train
python -m scripts.tok_train --data=fineweb-edu
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

from nanochat.common import ConfigError, print0
from nanochat.configurator import cli
from nanochat.data.sources import fetched, open_source
from nanochat.files import base_dir, write_atomic
from nanochat.tokenizer import SPLIT_PATTERN, Tokenizer
from tasks.catalog import mixture

VAL_CHARS = 1_000_000  # of validation text, at most, that the tokenizer is measured on
CONVERSATIONS, TIMES = 10_000, 12  # of a mixture, each text
RECORD = "training.json"  # beside tokenizer.json: the settings and the data that gave it


@dataclass(frozen=True)
class Config:
    data: str = "packaged"
    """Text to learn from: packaged, a folder or file, a hub id, fineweb-edu or climbmix."""
    column: str = "text"
    """Of tables: the one with the text."""
    num_shards: int | None = None
    """Train shards of the data that may be read; unset: as many as max_chars needs."""
    max_malformed: float = 0.0
    """Share of the rows that may be malformed; they are left out and counted."""
    vocab_size: int = 65536
    """Number of ids, special and unused ones included; a multiple of 64."""
    max_chars: int = 2_000_000_000
    """Characters to learn from, at most."""
    mixture: str = ""
    """Also learn from 10,000 conversations, as in mid_train, each text 12 times in three cases."""
    whole_numbers: bool = False
    """Make each number of two or three digits one token: 990 ids."""
    doc_cap: int = 10_000
    """Characters of one document, at most, so that a few long ones do not rule."""
    split_pattern: str = SPLIT_PATTERN
    """Regular expression of the pieces of text within which bytes are merged."""
    out: Path | None = None
    """Folder to write to; unset: tokenizer/ under the base folder."""
    resume: bool = False
    """Do nothing if the folder holds what these settings gave on this data, whatever the
    conversations are by now."""


def conversation_texts(conversations: Iterable[dict]) -> Iterator[str]:
    """What is said in them, TIMES times in each of three letter cases; tool calls are left out."""
    for message in (m for conversation in conversations for m in conversation["messages"]):
        if isinstance(text := message["content"], str):
            yield from (text, text.lower(), text.upper()) * TIMES


def capped(documents: Iterable[str], doc_cap: int, max_chars: int, read: Counter) -> Iterator[str]:
    """The beginnings of documents, until max_chars are reached; counted in `read`."""
    for document in documents:
        if read["characters"] >= max_chars:
            return
        text = document[: min(doc_cap, max_chars - read["characters"])]
        read.update(documents=1, characters=len(text))
        yield text


def main(config: Config) -> None:
    for name in ("max_chars", "doc_cap"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; choose at least 1")
    source = open_source(config.data, config.num_shards, config.column, config.max_malformed)
    folder = config.out or base_dir() / "tokenizer"
    try:  # now, not when all is learned
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}") from error
    settings = {k: v for k, v in asdict(config).items() if k not in ("out", "resume")}
    record = json.dumps({**settings, "data_fingerprint": source.fingerprint}, indent=1) + "\n"
    path = folder / RECORD
    if config.resume and path.exists() and path.read_text(encoding="utf-8") == record:
        print0(f"{folder} already holds this tokenizer, {Tokenizer.load(folder).fingerprint}")
        return
    documents = (text for shard in fetched(source.shards("train")) for text in shard.texts())
    read, start = Counter(), time.monotonic()
    texts = capped(documents, config.doc_cap, config.max_chars, read)
    if config.mixture:
        chats = mixture(config.mixture, "train", 42, (), config.max_malformed)
        count = min(len(chats), CONVERSATIONS)
        texts = chain(texts, conversation_texts(chats[i] for i in range(count)))
        print0(f"tokenizer: learns from {count:,} conversations, too")
    if config.whole_numbers:  # made last, for they must outweigh what was read
        numbers = (f"{n} " * max(2000, read["characters"] // 15_000) for n in range(1000))
        texts = chain(texts, numbers)
    tokenizer = Tokenizer.train(texts, config.vocab_size, config.split_pattern)
    seconds = time.monotonic() - start
    documents.close()

    path.unlink(missing_ok=True)
    tokenizer.save(folder)
    write_atomic(path, record)
    for what in sorted(source.counts.keys() - {"documents"}):
        print0(f"{source.name}: {source.counts[what]:,} {what}")
    print0(
        f"tokenizer: {tokenizer.vocab_size:,} ids, {len(tokenizer.merges):,} merges, learned from "
        f"{read['characters']:,} characters in {read['documents']:,} documents, in {seconds:.1f} s"
    )
    whole = sum(len(tokenizer.encode_ordinary(str(n))) == 1 for n in range(1000))
    print0(f"numbers below 1,000 in one token: {whole:,}")
    held_out = (text for shard in source.shards("val") for text in shard.texts())
    texts = list(capped(islice(held_out, 100_000), VAL_CHARS, VAL_CHARS, Counter()))
    chars, tokens = sum(map(len, texts)), len(tokenizer.encode_ordinary_batch(texts)[0])
    measured = f"{chars / tokens:.3f} characters per token, of {chars:,}" if tokens else "none"
    print0(f"validation text: {measured}")
    print0(f"fingerprint {tokenizer.fingerprint}\nsaved in {folder}")


if __name__ == "__main__":
    cli(main, Config)
