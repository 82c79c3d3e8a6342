"""Where text comes from: shards of a hub data set, a local folder, or the packaged default."""

import gzip
import hashlib
import io
import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from nanochat.common import ConfigError, DataError, base_dir, print0
from nanochat.packaged import documents

ALIASES = {
    "fineweb-edu": "karpathy/fineweb-edu-100b-shuffle",
    "climbmix": "karpathy/climbmix-400b-shuffle",
}
JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")
ATTEMPTS = 6  # per file, with waits of 1, 2, 4, ... seconds
HELD_OUT = 50  # one document in this many is validation, where there is no file of its own for it


# ---------------------------------------------------------------- the hub


def with_retries(what: str, action: Callable[[], object], attempts: int = ATTEMPTS):
    """action(), tried again after network faults; DataError with every way out when it stays so."""
    import httpx
    from huggingface_hub import errors

    faults = (OSError, httpx.HTTPError, errors.HfHubHTTPError, errors.LocalEntryNotFoundError)
    for attempt in range(attempts):
        try:
            return action()
        except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
            if not isinstance(error, errors.LocalEntryNotFoundError):
                raise DataError(f"{what}: the hub says that it does not exist: {error}") from error
            last = error
        except (*faults, DataError) as error:
            last = error
        if attempt + 1 < attempts:
            print0(f"{what}: {type(last).__name__}, trying again in {2**attempt} s")
            time.sleep(2**attempt)
    endpoint = os.environ.get("HF_ENDPOINT", "the default hub")
    raise DataError(
        f"{what}: not to be had from {endpoint} after {attempts} tries: {last}. Check the network, "
        f"name a mirror in HF_ENDPOINT, or work offline: a local folder instead of the hub id, or "
        f"--data=packaged"
    ) from last


def hub_file(repo_id: str, filename: str, repo_type: str = "dataset") -> Path:
    """A file of the hub on this disk, downloaded if it is not there, continued if cut short.

    A Parquet file is accepted only if it can be read; HF_ENDPOINT names another hub. Raises
    DataError that says what was tried, and the offline way.
    """
    from huggingface_hub import hf_hub_download

    again = False

    def fetch() -> Path:
        nonlocal again
        path = Path(hf_hub_download(repo_id, filename, repo_type=repo_type, force_download=again))
        again = True  # a file that does not check is fetched anew
        if path.suffix == ".parquet":
            check_parquet(path)
        return path

    return with_retries(f"{repo_id}/{filename}", fetch)


def hub_files(repo_id: str, pattern: str = "*", repo_type: str = "dataset") -> list[str]:
    """Names of the files of a hub repository that match a glob, sorted."""
    from huggingface_hub import HfApi

    names = with_retries(repo_id, lambda: HfApi().list_repo_files(repo_id, repo_type=repo_type))
    return sorted(name for name in names if fnmatch(name, pattern))


def check_parquet(path: Path) -> None:
    """Reads the footer and the place of every row group; DataError when the file is cut short."""
    try:
        metadata = pq.read_metadata(path)
        size = path.stat().st_size
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                if chunk.data_page_offset + chunk.total_compressed_size > size + 4:
                    raise DataError(f"{path}: row group {group} lies beyond the end of the file")
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is no readable Parquet file: {error}") from error


# ---------------------------------------------------------------- files


def open_text(path: Path) -> io.TextIOBase:
    """A possibly compressed file as lines of UTF-8; invalid bytes come out as U+FFFD."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace")
    if path.suffix == ".zst":
        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"))
        return io.TextIOWrapper(reader, encoding="utf-8", errors="replace")
    return path.open(encoding="utf-8", errors="replace")


def read_rows(path: Path | str, columns: list[str] | None = None) -> Iterator[dict]:
    """The rows of a .parquet or .jsonl[.gz|.zst] file, in bounded memory.

    Raises DataError that names the file, and the line of a malformed row.
    """
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                if columns:
                    columns = [name for name in columns if name in file.schema_arrow.names]
                for batch in file.iter_batches(1024, columns=columns):
                    yield from batch.to_pylist()
            return
        with open_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{path}:{number}: found a {type(row).__name__}, no object")
                    yield row
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: no valid JSON ({error}); one object a line") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a text column holds invalid UTF-8: {error}") from error
    except (OSError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


# ---------------------------------------------------------------- sources


@dataclass(frozen=True)
class Shard:
    """A piece of a source: its texts, and where they are from.

    fetch() makes it local and returns the file, if it is one; read(file) yields its texts or None
    for a row without text. keep(i) chooses documents by number, for a split inside one file.
    """

    name: str
    fetch: Callable[[], Path | None]
    read: Callable[[Path | None], Iterator[str | None]]
    counts: Counter
    keep: Callable[[int], bool] = lambda number: True

    def texts(self) -> Iterator[str]:
        """The documents; rows without text and replaced characters are counted in `counts`."""
        for number, text in enumerate(self.read(self.fetch())):
            if not self.keep(number):
                continue
            if not isinstance(text, str) or not text.strip():
                self.counts["rows without text"] += 1
                continue
            self.counts["documents"] += 1
            if "\ufffd" in text:
                self.counts["documents with replaced invalid UTF-8"] += 1
            yield text


@dataclass(frozen=True)
class Source:
    """Text in shards. `counts` grows while shards are read."""

    name: str
    fingerprint: str
    train: list[Shard]
    val: list[Shard]
    counts: Counter = field(default_factory=Counter)

    def shards(self, split: str) -> list[Shard]:
        """Shards of "train" or "val"."""
        return {"train": self.train, "val": self.val}[split]


def fingerprint(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_texts(path: Path, column: str) -> Iterator[str | None]:
    """The texts of a file; a .txt or .md file is one document."""
    if path.suffix in (".txt", ".md"):
        try:
            yield path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
    else:
        for row in read_rows(path, [column]):
            yield row.get(column)


def open_source(name: str, *, num_shards: int | None = None, column: str = "text") -> Source:
    """The source called `name`: "packaged", a local folder, a hub id, "fineweb-edu" or "climbmix".

    num_shards: how many train shards of a hub data set are used, at most; its last is validation.
    """
    if name == "packaged":
        return packaged_source()
    if Path(name).expanduser().is_dir():
        return folder_source(Path(name).expanduser(), column)
    repo_id = ALIASES.get(name, name)
    if repo_id.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DataError(
            f"data {name!r} is no folder here, and no hub id (owner/name); "
            f"also possible: packaged, {', '.join(ALIASES)}"
        )
    return hub_source(repo_id, num_shards, column)


def hub_source(repo_id: str, num_shards: int | None, column: str) -> Source:
    """The Parquet shards of a hub data set. Shards are fetched when they are read.

    The list is kept under the base folder, so that a run whose shards are local needs no network.
    """
    listing = base_dir() / "hub_listings" / (repo_id.replace("/", "--") + ".json")
    if listing.exists():
        names = json.loads(listing.read_text())
    else:
        names = hub_files(repo_id, "*.parquet")
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text(json.dumps(names))
    if len(names) < 2:
        raise DataError(f"{repo_id} has {len(names)} Parquet shards; at least 2 are needed")
    if num_shards is not None and num_shards < 1:
        raise ConfigError(f"num_shards is {num_shards}; choose at least 1")
    counts: Counter = Counter()

    def shard(name: str) -> Shard:
        return Shard(
            name, lambda: hub_file(repo_id, name), lambda path: file_texts(path, column), counts
        )

    train = [shard(name) for name in names[:-1][:num_shards]]
    mark = fingerprint(repo_id, names)
    return Source(repo_id, mark, train, [shard(names[-1])], counts)


def folder_source(folder: Path, column: str) -> Source:
    """All text files under a folder: the last Parquet or JSON-lines file is validation, or, where
    there are fewer than two, every fiftieth document."""
    suffixes = (".parquet", *JSONL, ".txt", ".md")
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name.endswith(suffixes))
    if not paths:
        raise DataError(f"{folder} holds no text: found no file named *{', *'.join(suffixes)}")
    counts: Counter = Counter()
    tables = [p for p in paths if p.suffix not in (".txt", ".md")]
    plain = [p for p in paths if p.suffix in (".txt", ".md")]
    stats = [(p.relative_to(folder), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]

    def shard(path: Path, keep=lambda number: True) -> Shard:
        name = path.relative_to(folder).as_posix()
        return Shard(name, lambda: path, lambda file: file_texts(file, column), counts, keep)

    def together(keep) -> Shard:
        texts = lambda _: (t for path in plain for t in file_texts(path, column))  # noqa: E731
        return Shard("text-files", lambda: None, texts, counts, keep)

    if len(tables) > 1:
        print0(f"{folder}: {tables[-1].name} is the validation split")
        train, val = [shard(path) for path in tables[:-1]], [shard(tables[-1])]
        train += [together(lambda number: True)] if plain else []
    else:
        print0(f"{folder}: every {HELD_OUT}th document is the validation split")
        kept = lambda number: number % HELD_OUT != 0  # noqa: E731
        held = lambda number: number % HELD_OUT == 0  # noqa: E731
        train, val = [shard(p, kept) for p in tables], [shard(p, held) for p in tables]
        train += [together(kept)] if plain else []
        val += [together(held)] if plain else []
    return Source(folder.name or "folder", fingerprint(stats), train, val, counts)


def packaged_source() -> Source:
    """The text of installed packages: one document in fifty, by its digest, is validation."""
    counts: Counter = Counter()
    found = documents(counts)
    for what, number in counts.items():
        if number:
            print0(f"packaged text: {number:,} {what}")
    mark = hashlib.sha256(b"".join(digest for digest, _ in found)).hexdigest()
    splits = []
    for held_out in (False, True):
        texts = [text for digest, text in found if (digest[-1] % HELD_OUT == 0) == held_out]
        read = lambda _, texts=texts: iter(texts)  # noqa: E731
        splits.append([Shard("packaged", lambda: None, read, counts)])
    return Source("packaged", mark, *splits, counts)
