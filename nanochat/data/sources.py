"""Where text comes from: shards of a hub data set, local files, or the packaged default."""

import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import ConfigError, DataError, print0
from nanochat.data.hub import hub_file, hub_files
from nanochat.data.offline_corpus import documents
from nanochat.files import base_dir, write_atomic

ALIASES = {
    "fineweb-edu": "karpathy/fineweb-edu-100b-shuffle",
    "climbmix": "karpathy/climbmix-400b-shuffle",
}
ALIAS_SHARDS = 240  # of an alias's train shards, unless more or fewer are asked for
TABLES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
PLAIN = (".txt", ".md")
LONGEST_PLAIN = 100_000  # characters of one document; a longer .txt or .md is cut at a line's end
HELD_OUT = 20  # one document in this many is validation, where no file is
PACKAGED_HELD_OUT = 50


# ---------------------------------------------------------------- files


def open_text(path: Path) -> io.TextIOBase:
    """A possibly compressed file as lines of UTF-8; invalid bytes come out as U+FFFD."""
    how = {"encoding": "utf-8-sig", "errors": "replace"}
    if path.suffix == ".gz":
        return gzip.open(path, "rt", **how)
    if path.suffix == ".zst":
        # subtle: unlike zstandard's reader, Arrow's raises at the end of a file that was cut.
        return io.TextIOWrapper(pa.input_stream(str(path), compression="zstd"), **how)
    return path.open(**how)


def read_rows(path: Path | str, columns: list[str] | None = None) -> Iterator[dict]:
    """The rows of a .parquet or .jsonl[.gz|.zst] file, in bounded memory; columns: of Parquet.
    DataError names the file, and the line of a malformed row."""
    path, number = Path(path), 0
    try:
        if path.suffix == ".parquet":
            yield from read_parquet(path, columns)
            return
        with open_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(
                            f"{path}:{number}: found {type(row).__name__}, expected an object"
                        )
                    yield row
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: expected one JSON object a line; {error}") from error
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_parquet(path: Path, columns: list[str] | None) -> Iterator[dict]:
    """Rows of a Parquet file; columns that it does not have are left out."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1024, columns=columns):
            try:
                yield from batch.to_pylist()
            except UnicodeDecodeError:  # raised before the first row
                values = {
                    name: [x and x.decode(errors="replace") for x in column.cast("binary").tolist()]
                    if pa.types.is_string(column.type)
                    else column.to_pylist()
                    for name, column in zip(batch.schema.names, batch.columns, strict=True)
                }
                yield from pa.RecordBatch.from_pydict(values).to_pylist()


def file_texts(path: Path) -> Iterator[str | None]:
    """A file's documents: a table's column `text`, None for a row without it; a .txt or .md file
    whole, but cut where it is long."""
    if not path.name.endswith(PLAIN):
        for row in read_rows(path, ["text"]):
            yield row.get("text")
        return
    try:
        with open_text(path) as file:
            while text := file.read(LONGEST_PLAIN):
                yield text if text.endswith("\n") else text + file.readline(LONGEST_PLAIN)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


# ---------------------------------------------------------------- sources


def hold_out(rows: Iterable, held_out: bool) -> Iterator:
    """One row in HELD_OUT, chosen by a hash of its place (held_out=True), or the others. Of fewer
    rows one is held out; of a single one, none."""
    rows = iter(rows)
    for number in count():
        block = list(islice(rows, HELD_OUT))
        if not block:
            return
        digest = hashlib.blake2b(str(number).encode(), digest_size=8).digest()
        whole = len(block) == HELD_OUT or (number == 0 and len(block) > 1)
        chosen = int.from_bytes(digest, "big") % len(block) if whole else None
        yield from (row for i, row in enumerate(block) if (i == chosen) == held_out)


@dataclass(frozen=True)
class Shard:
    """A piece of a source. fetch() downloads it, if need be; read() yields its texts, None for a
    row without text; counts: what the last texts() came across."""

    name: str
    read: Callable[[], Iterator[str | None]]
    fetch: Callable[[], Path | None] = lambda: None
    counts: Counter = field(default_factory=Counter)

    def texts(self) -> Iterator[str]:
        """The documents. Raises DataError if there are rows, but none of them has text."""
        self.counts.clear()
        for text in self.read():
            if not isinstance(text, str) or not text.strip():
                self.counts["rows without text, left out"] += 1
                continue
            self.counts["documents"] += 1
            if "\ufffd" in text:
                self.counts["documents with U+FFFD, which replaces invalid UTF-8"] += 1
            yield text
        if self.counts and not self.counts["documents"]:
            raise DataError(
                f"{self.name}: none of its {self.counts.total():,} rows has text in a column `text`"
            )


def fetched(shards: list[Shard]) -> Iterator[Shard]:
    """The shards in order, each when it is on this disk, while the next four are downloaded."""
    pool, arrivals = ThreadPoolExecutor(4), []
    try:
        for i, shard in enumerate(shards):
            arrivals += [pool.submit(later.fetch) for later in shards[len(arrivals) : i + 5]]
            arrivals[i].result()
            yield shard
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Source:
    """Text in shards."""

    name: str
    fingerprint: str
    train: list[Shard]
    val: list[Shard]

    def shards(self, split: str) -> list[Shard]:
        """Shards of "train" or "val"."""
        return {"train": self.train, "val": self.val}[split]

    @property
    def counts(self) -> Counter:
        """Documents, and what was replaced or left out, in all shards read so far."""
        return sum((shard.counts for shard in [*self.train, *self.val]), Counter())


def open_source(name: str, num_shards: int | None = None) -> Source:
    """The source called `name`: "packaged", a folder or file, a hub id, "fineweb-edu", "climbmix";
    at most num_shards of its train shards. DataError if it is not there or has no text.

    Example: open_source("packaged").shards("val")[0].texts()
    """
    if num_shards is not None and num_shards < 1:
        raise ConfigError(f"num_shards is {num_shards}; choose at least 1, or leave it out")
    path = Path(name).expanduser()
    if name == "packaged":
        source = packaged_source()
    elif path.exists():
        source = local_source(path)
    elif name in ALIASES:
        source = hub_source(ALIASES[name])
        num_shards = num_shards or ALIAS_SHARDS
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        source = hub_source(name)
    else:
        raise DataError(
            f"data {name!r} is no folder, file or hub id (owner/name); also possible: packaged, "
            f"{', '.join(ALIASES)}"
        )
    train = source.train[:num_shards]
    if num_shards and num_shards != len(source.train):
        print0(f"{source.name}: {len(train)} of {len(source.train)} train shards are used")
    return replace(source, train=train)


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def hub_source(repo_id: str) -> Source:
    """The Parquet shards of a hub data set, the last for validation; fetched when they are read.
    Their list is kept, so that a run whose shards are on this disk needs no network."""
    listing = base_dir() / "hub_listings" / (repo_id.replace("/", "--") + ".json")
    if not listing.exists():
        write_atomic(listing, json.dumps(hub_files(repo_id, "*.parquet")))
    names = json.loads(listing.read_text(encoding="utf-8"))
    if len(names) < 2:
        raise DataError(
            f"{repo_id}: found {len(names)} .parquet files, expected 2 or more: one is validation"
        )

    def shard(name: str) -> Shard:
        fetch = lambda: hub_file(repo_id, name)  # noqa: E731
        return Shard(name, lambda: file_texts(fetch()), fetch)

    shards = [shard(name) for name in names]
    return Source(repo_id, digest(repo_id, names), shards[:-1], shards[-1:])


def local_source(path: Path) -> Source:
    """A file, or all files of text under a folder; all .txt and .md files are one shard. Validation
    is the last of two or more tables, or else some documents."""
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    paths = [p for p in found if p.name.endswith((*TABLES, *PLAIN))]
    kinds = f"*{', *'.join((*TABLES, *PLAIN))}"
    if not paths:
        raise DataError(f"{path} holds no text: found {len(found)} files, expected {kinds}")
    if len(paths) < len(found):
        print0(f"{path}: {len(found) - len(paths)} files that are not {kinds} are left out")
    tables = [p for p in paths if p.name.endswith(TABLES)]
    plain = [p for p in paths if p.name.endswith(PLAIN)]

    def read(group: list[Path]) -> Callable[[], Iterator[str | None]]:
        return lambda: (text for p in group for text in file_texts(p))

    if len(tables) > 1:
        print0(f"{path}: validation is the last file, {tables[-1].name}")
        named = [(str(p.relative_to(path)), [p]) for p in tables[:-1]]
        named += [("text-files", plain)] if plain else []
        train = [Shard(name, read(group)) for name, group in named]
        val = [Shard(str(tables[-1].relative_to(path)), read(tables[-1:]))]
    else:
        print0(f"{path}: validation is one document in {HELD_OUT}")
        texts = read(tables + plain)
        train, val = (
            [Shard("documents", lambda side=side: hold_out(texts(), side))]
            for side in (False, True)
        )
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    return Source(path.resolve().name, digest(stats), train, val)


def packaged_source() -> Source:
    """The text of installed packages; its digests say which documents are validation."""
    counts = Counter()
    found = documents(counts)
    listed = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
    print0(f"packaged text: {len(found):,} documents; {listed}")
    sides = [[], []]
    for mark, text in found:
        sides[mark[-1] % PACKAGED_HELD_OUT == 0].append(text)
    train, val = ([Shard("packaged", lambda side=side: iter(side))] for side in sides)
    return Source("packaged", digest([mark.hex() for mark, _ in found]), train, val)
