"""Speed and memory of byte-level BPE beside rustbpe, Hugging Face's tokenizers and tiktoken.

    python -m bench.bpe                            packaged text, and the code of installed packages
    python -m bench.bpe --english DATA --megabytes 400

DATA is what scripts.tok_train takes: a folder, a hub id, ... Needs the dev extra. Checks that
merges and ids are equal, prints tables, writes bench/results/bpe-<machine>.json. Every training is
a process of its own, so that its peak memory is known; that includes the texts.
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
from nanochat.bpe import encoder as bpe
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


def limited(texts: Iterator[str], megabytes: int) -> list[str]:
    """The first texts, until there are so many million characters."""
    found, size = [], 0
    for text in texts:
        found.append(text)
        size += len(text)
        if size >= megabytes * 1e6:
            break
    return found


def code_texts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in CODE and path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")


def store(folder: Path, config: Config) -> dict[str, tuple[Path, dict]]:
    """Each kind of text as a Parquet file for the processes that measure, and what it holds."""
    english = (t for shard in open_source(config.english).shards("train") for t in shard.texts())
    code = code_texts(Path(config.code or sysconfig.get_path("purelib")))
    stored = {}
    for name, texts in (("english", english), ("code", code)):
        start = time.perf_counter()
        found = limited(texts, config.megabytes)
        seconds = time.perf_counter() - start
        path = folder / f"{name}.parquet"
        table = pa.table({"text": pa.array(found, pa.large_string())})
        pq.write_table(table, path, row_group_size=1000)
        size = sum(len(text.encode()) for text in found)
        stored[name] = path, {"texts": len(found), "bytes": size, "reading_seconds": seconds}
        print(f"{name}: {len(found):,} texts, {size / 1e6:.1f} MB, read in {seconds:.2f} s")
    return stored


def load(path: Path) -> list[str]:
    return pq.read_table(path)["text"].to_pylist()


# ---------------------------------------------------------------- training


def ours(texts: list[str], vocab_size: int, threads: int) -> list[bytes]:
    return token_bytes(bpe.train(texts, vocab_size, num_threads=threads))


def rustbpe(texts: list[str], vocab_size: int, threads: int) -> list[bytes]:
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), vocab_size, pattern=SPLIT_PATTERN)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    return [bytes(token) for token, _ in ranks]


def tokenizers(texts: list[str], vocab_size: int, threads: int) -> list[bytes]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    fast = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator(iter(texts), trainer)
    return []  # its ties go by another order, so its merges are not comparable


def train_once(path: Path, train: Callable, vocab_size: int, threads: int) -> dict:
    """Seconds, and this process's peak memory with the texts and after them; the tokens."""
    bpe.train(["compile it"], 256)
    texts = load(path)
    before = peak_rss()
    start = time.perf_counter()
    tokens = train(texts, vocab_size, threads)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_bytes": peak_rss(), "texts_bytes": before, "tokens": tokens}


def train_arrow(path: Path, vocab_size: int, threads: int) -> dict:
    """From the Parquet file's columns, one row group after another; reading is timed too."""
    bpe.train(["compile it"], 256)
    start = time.perf_counter()
    with pq.ParquetFile(path) as file:
        columns = (batch["text"] for batch in file.iter_batches(1000, columns=["text"]))
        tokens = token_bytes(bpe.train(columns, vocab_size, num_threads=threads))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_bytes": peak_rss(), "texts_bytes": 0, "tokens": tokens}


def train_long(path: Path, vocab_size: int, threads: int, chars: int) -> dict:
    """The texts over and over, until there are `chars` characters."""
    bpe.train(["compile it"], 256)
    texts = load(path)
    before = peak_rss()

    def repeated(left: int = chars) -> Iterator[str]:
        for text in cycle(texts):
            yield text[:left]
            left -= len(text)
            if left <= 0:
                return

    start = time.perf_counter()
    bpe.train(repeated(), vocab_size, num_threads=threads)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_bytes": peak_rss(), "texts_bytes": before, "chars": chars}


def apart(threads: int, function: Callable, *arguments) -> dict:
    """function(*arguments) in a process of its own, which may use so many threads."""
    os.environ.update(RAYON_NUM_THREADS=str(threads), RAYON_RS_NUM_THREADS=str(threads))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure_training(path: Path, megabytes: float, config: Config) -> list[dict]:
    """One row for each package and number of threads; the packages take turns."""
    methods = {"nanochat": (train_once, ours), "nanochat, Arrow": (train_arrow,)}
    methods |= {"rustbpe": (train_once, rustbpe), "tokenizers": (train_once, tokenizers)}
    runs = {(name, threads): [] for threads in config.threads for name in methods}
    for _ in range(config.repeats):
        for (name, threads), rows in runs.items():
            function, *how = methods[name]
            rows.append(apart(threads, function, path, *how, config.vocab_size, threads))
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


def encode_all(path: Path, megabytes: float, config: Config) -> list[dict]:
    """One row for each package and number of threads, all in this process; ids must be equal."""
    import tiktoken

    texts = load(path)
    merges = bpe.train(texts, config.vocab_size)
    dtype = np.uint16 if config.vocab_size <= 65536 else np.uint32
    ranks = {token: i for i, token in enumerate(token_bytes(merges))}
    other = tiktoken.Encoding("x", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    times = config.repeats * len(config.threads)
    fresh = [bpe.Encoder(merges, dtype=dtype) for _ in range(times)]  # one that was used is faster
    methods = {
        "nanochat": lambda n: fresh.pop().encode_batch(texts, n),
        "tiktoken": lambda n: other.encode_ordinary_batch(texts, num_threads=n),
    }
    runs = {(name, threads): [] for threads in config.threads for name in methods}
    for _ in range(config.repeats):
        for (name, threads), seconds in runs.items():
            start = time.perf_counter()
            found = methods[name](threads)
            seconds.append(time.perf_counter() - start)
            print(f"encoding, {name}, {threads} threads: {seconds[-1]:.2f} s", flush=True)
            if name == "nanochat":
                ids, offsets = found
            elif len(seconds) == 1:
                parts = enumerate(found)
                assert all(np.array_equal(x, ids[offsets[i] : offsets[i + 1]]) for i, x in parts)
            del found
    return [summary(*key, seconds, megabytes) for key, seconds in runs.items()]


def time_one_text(path: Path, text: str) -> dict:
    """Microseconds of one call with a short text."""
    encoder = bpe.Encoder(bpe.train(load(path)[:200], 8192))
    seconds = []
    for _ in range(5000):
        start = time.perf_counter()
        encoder.encode(text)
        seconds.append(time.perf_counter() - start)
    return {"text": text, "microseconds": statistics.median(seconds) * 1e6}


# ---------------------------------------------------------------- the tables


def print_rows(title: str, rows: list[dict]) -> None:
    """A table; "faster" compares each package with nanochat at equal threads."""
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
        row = apart(threads, train_long, path, config.vocab_size, threads, chars)
        rows.append({**row, "threads": threads})
        peak, before = row["peak_bytes"] / 2**20, row["texts_bytes"] / 2**20
        print(
            f"{chars:,} characters: {row['seconds']:.2f} s on {threads} threads, peak "
            f"{peak:,.0f} MiB, of it before {before:,.0f}"
        )
    return rows


def main(config: Config) -> None:
    report = {"corpora": {}, "training": {}, "encoding": {}}
    with tempfile.TemporaryDirectory() as folder:
        stored = store(Path(folder), config)
        for name, (path, corpus) in stored.items():
            size = corpus["bytes"] / 1e6
            title = f"{name}, {size:.1f} MB, vocabulary {config.vocab_size:,}"
            report["corpora"][name] = corpus
            report["training"][name] = measure_training(path, size, config)
            print_rows(f"training: {title}", report["training"][name])
            rows = apart(max(config.threads), encode_all, path, size, config)
            report["encoding"][name] = rows
            print_rows(f"encoding: {title}", rows)
        english = stored["english"][0]
        report["one_text"] = apart(1, time_one_text, english, "Hello there, how are you?")
        print(f"one text: {report['one_text']}")
        if config.long_chars:
            report["long"] = measure_long(english, config)
    write_record("bpe", config, "cpu", report)


if __name__ == "__main__":
    cli(main, Config)
