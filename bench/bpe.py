"""Speed and memory of byte-level BPE beside rustbpe, Hugging Face's tokenizers and tiktoken.

    python -m bench.bpe                            packaged text, and the code of installed packages
    python -m bench.bpe --english DATA --megabytes 400

DATA is what scripts.tok_train takes: a folder, a hub id, ... Needs the dev extra, and Linux. Checks
that merges and ids are equal, prints tables, writes bench/results/bpe-<machine>.json. Every
training is a process of its own, so that its peak memory is known; that includes the texts.
"""

import multiprocessing
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from bench.record import write_record
from nanochat.bpe import native
from nanochat.bpe.pieces import SPLIT_PATTERN
from nanochat.bpe.reference import token_bytes
from nanochat.configurator import cli
from nanochat.data.sources import open_source
from nanochat.hardware import peak_rss

CODE = (".py", ".pyi", ".h", ".hpp", ".cpp", ".c", ".cu", ".js", ".rs")


@dataclass(frozen=True)
class Config:
    english: str = "packaged"
    """English text: packaged, a folder or file, a hub id."""
    code: str = ""
    """Folder with source code; empty: where this Python's packages are installed."""
    megabytes: int = 200
    """Text of each kind, in millions of characters, at most."""
    vocab_size: int = 65536
    """Ids to train, the 256 bytes included."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads."""
    repeats: int = 3
    """Times that everything is measured; tables show medians."""
    long_chars: int = 2_000_000_000
    """Characters of the long training, the English text over and over; 0: none."""


# ---------------------------------------------------------------- texts


def code_texts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in CODE and path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")


def up_to(texts: Iterator[str], chars: float) -> Iterator[str]:
    """The first texts, until there are so many characters."""
    while chars > 0 and (text := next(texts, None)) is not None:
        chars -= len(text)
        yield text


def store(texts: Iterator[str], megabytes: int, path: Path) -> float:
    """Writes texts to a Parquet file for the processes that measure; returns their megabytes."""
    found = list(up_to(texts, megabytes * 1e6))
    table = pa.table({"text": pa.array(found, pa.large_string())})
    pq.write_table(table, path, row_group_size=1000)
    size = sum(len(text.encode()) for text in found) / 1e6
    print(f"{path.stem}: {len(found):,} texts, {size:.1f} MB")
    return size


def load(path: Path) -> list[str]:
    return pq.read_table(path)["text"].to_pylist()


def on_threads(threads: int, function: Callable, *arguments):
    """function(*arguments) in a process of its own, which may use so many processors."""
    processors = sorted(os.sched_getaffinity(0))[:threads]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, os.sched_setaffinity, (0, processors)) as pool:
        return pool.submit(function, *arguments).result()


# ---------------------------------------------------------------- training


def ours(texts: Iterator[str], vocab_size: int) -> list[bytes]:
    return token_bytes(native.train(native.core(), texts, vocab_size - 256))


def rustbpe(texts: Iterator[str], vocab_size: int) -> list[bytes]:
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(texts, vocab_size, pattern=SPLIT_PATTERN)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    return [bytes(token) for token, _ in ranks]


def tokenizers(texts: Iterator[str], vocab_size: int) -> list[bytes]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    fast = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator(texts, trainer)
    return []  # its ties go by another order, so its merges are not comparable


TRAINERS = {"nanochat": ours, "rustbpe": rustbpe, "tokenizers": tokenizers}


def train_once(path: Path, package: str, vocab_size: int, chars: int | None = None) -> dict:
    """Seconds, and this process's peak memory with the texts and after them; the tokens.

    chars: the texts over and over, until there are so many; None: each once.
    """
    native.core()  # compiled before the clock starts
    texts = load(path)
    before, start = peak_rss(), time.perf_counter()
    some = iter(texts) if chars is None else up_to(cycle(texts), chars)
    tokens = TRAINERS[package](some, vocab_size)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_bytes": peak_rss(), "texts_bytes": before, "tokens": tokens}


def measure_training(path: Path, megabytes: float, config: Config) -> list[dict]:
    """One row for each package and number of threads; the packages take turns."""
    runs = {(name, threads): [] for threads in config.threads for name in TRAINERS}
    for _ in range(config.repeats):
        for (name, threads), rows in runs.items():
            rows.append(on_threads(threads, train_once, path, name, config.vocab_size))
            print(f"training, {name}, {threads} threads: {rows[-1]['seconds']:.2f} s", flush=True)
    expected = next(iter(runs.values()))[0]["tokens"]
    found = []
    for (name, threads), rows in runs.items():
        assert name == "tokenizers" or all(row["tokens"] == expected for row in rows), name
        memory = {k: max(row[k] for row in rows) for k in ("peak_bytes", "texts_bytes")}
        seconds = [row["seconds"] for row in rows]
        found.append(summary(name, threads, seconds, megabytes) | memory)
    return found


def summary(package: str, threads: int, seconds: list[float], megabytes: float) -> dict:
    """A row of a table."""
    middle = statistics.median(seconds)
    row = {"package": package, "threads": threads, "seconds": middle, "all_seconds": seconds}
    return row | {"megabytes_per_second": megabytes / middle}


# ---------------------------------------------------------------- encoding


def measure_encoding(path: Path, megabytes: float, config: Config) -> list[dict]:
    """One row for each package and number of threads, all in this process; ids must be equal."""
    import tiktoken

    texts, core = load(path), native.core()
    merges = native.train(core, texts, config.vocab_size - 256)
    dtype = np.uint16 if config.vocab_size <= 65536 else np.uint32
    ranks = {token: i for i, token in enumerate(token_bytes(merges))}
    other = tiktoken.Encoding("x", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    runs = {(name, n): [] for n in config.threads for name in ("nanochat", "tiktoken")}
    for _ in range(config.repeats):
        for (name, threads), seconds in runs.items():
            fresh = native.NativeEncoder(core, merges, range(len(ranks)), dtype)  # a used one knows
            start = time.perf_counter()
            if name == "nanochat":
                ids, offsets = fresh.encode_batch(texts, threads)
            else:
                found = other.encode_ordinary_batch(texts, num_threads=threads)
            seconds.append(time.perf_counter() - start)
            print(f"encoding, {name}, {threads} threads: {seconds[-1]:.2f} s", flush=True)
            if name == "tiktoken" and len(seconds) == 1:
                parts = enumerate(found)
                assert all(np.array_equal(x, ids[offsets[i] : offsets[i + 1]]) for i, x in parts)
    return [summary(*key, seconds, megabytes) for key, seconds in runs.items()]


def time_one_text(path: Path, text: str) -> dict:
    """Microseconds of one call with a short text."""
    core = native.core()
    merges = native.train(core, load(path)[:200], 8192 - 256)
    encoder = native.NativeEncoder(core, merges, range(256 + len(merges)), np.uint32)
    seconds = []
    for _ in range(5000):
        start = time.perf_counter()
        encoder.encode(text)
        seconds.append(time.perf_counter() - start)
    return {"text": text, "microseconds": statistics.median(seconds) * 1e6}


# ---------------------------------------------------------------- the tables


def print_rows(title: str, rows: list[dict]) -> None:
    """A table; "nanochat is" compares each package with nanochat at equal threads."""
    table = Table("package", "threads", "seconds", "MB/s", "nanochat is", "peak", title=title)
    mine = {row["threads"]: row["seconds"] for row in rows if row["package"] == "nanochat"}
    for row in rows:
        peak = f"{row['peak_bytes'] / 2**20:,.0f} MiB" if "peak_bytes" in row else ""
        faster = row["seconds"] / mine[row["threads"]]
        numbers = (f"{row['seconds']:.3f}", f"{row['megabytes_per_second']:.1f}", f"{faster:.1f}x")
        table.add_row(row["package"], str(row["threads"]), *numbers, peak)
    Console().print(table)


def measure_long(path: Path, config: Config) -> list[dict]:
    """The long training, and one of a tenth, to show that memory stays flat."""
    threads, rows = max(config.threads), []
    for chars in (config.long_chars // 10, config.long_chars):
        row = on_threads(threads, train_once, path, "nanochat", config.vocab_size, chars)
        del row["tokens"]
        rows.append({**row, "chars": chars, "threads": threads})
        peak, before = row["peak_bytes"] / 2**20, row["texts_bytes"] / 2**20
        print(
            f"{chars:,} characters: {row['seconds']:.2f} s on {threads} threads, peak "
            f"{peak:,.0f} MiB, of it before {before:,.0f}"
        )
    return rows


def main(config: Config) -> None:
    report = {"megabytes": {}, "training": {}, "encoding": {}}
    shards = open_source(config.english).shards("train")
    texts = {
        "english": (text for shard in shards for text in shard.texts()),
        "code": code_texts(Path(config.code or sysconfig.get_path("purelib"))),
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.parquet" for name in texts}
        for name, path in paths.items():
            size = report["megabytes"][name] = store(texts[name], config.megabytes, path)
            title = f"{name}, {size:.1f} MB, vocabulary {config.vocab_size:,}"
            report["training"][name] = measure_training(path, size, config)
            print_rows(f"training: {title}", report["training"][name])
            rows = on_threads(max(config.threads), measure_encoding, path, size, config)
            report["encoding"][name] = rows
            print_rows(f"encoding: {title}", rows)
        english = paths["english"]
        report["one_text"] = on_threads(1, time_one_text, english, "Hello there, how are you?")
        print(f"one text: {report['one_text']}")
        if config.long_chars:
            report["long"] = measure_long(english, config)
    write_record("bpe", config, "cpu", report)


if __name__ == "__main__":
    cli(main, Config)
