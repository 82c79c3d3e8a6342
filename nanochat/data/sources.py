"""Where text comes from: shards of a hub data set, local files, or the packaged default."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain, count, islice
from pathlib import Path

import pyarrow.parquet as pq

from nanochat.common import ConfigError, DataError, print0
from nanochat.data.hub import hub_file, hub_files
from nanochat.data.offline_corpus import documents, state_of_files
from nanochat.data.rows import TABLES, data_files, open_text, read_rows
from nanochat.files import base_dir, read_json, user_path, write_atomic

ALIASES = {
    "fineweb-edu": "karpathy/fineweb-edu-100b-shuffle",
    "climbmix": "karpathy/climbmix-400b-shuffle",
}
ALIAS_SHARDS = 240  # of an alias's train shards, unless more or fewer are asked for
PLAIN = (".txt", ".md")
LONGEST_PLAIN = 100_000  # characters of one document; a longer .txt or .md is cut at a line's end
HELD_OUT = 20  # one document in this many is validation, where no file is
PACKAGED_HELD_OUT = 50

WITHOUT_TEXT = "rows without text, left out"

Reader = Callable[[Path, Counter], Iterator[str]]


def file_texts(
    path: Path, counts: Counter, column: str, max_malformed: float | None
) -> Iterator[str]:
    """A file's documents: a table's column, or a .txt or .md file, cut where it is long. Counts
    what has no text; DataError for a table where no row has."""
    if path.name.lower().endswith(PLAIN):
        try:
            with open_text(path) as file:
                while text := file.read(LONGEST_PLAIN):
                    text += "" if text.endswith("\n") else file.readline(LONGEST_PLAIN)
                    if text.strip():
                        yield text
                    else:
                        counts[WITHOUT_TEXT] += 1
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        return
    found, without, columns = 0, 0, ()
    for row in read_rows(path, [column], max_malformed=max_malformed):
        text = row.get(column)
        if isinstance(text, str) and text.strip():
            found += 1
            yield text
        else:
            without += 1
            counts[WITHOUT_TEXT] += 1
            columns = columns or tuple(row)
    if without and not found:
        names = columns if path.suffix.lower() != ".parquet" else pq.read_schema(path).names
        raise DataError(
            f"{path}: none of its {without:,} rows has text in a column {column!r}; its columns "
            f"are {', '.join(names) or 'none'}. Name the one with the text: --column"
        )


def hold_out(texts: Iterable[str], held_out: bool) -> Iterator[str]:
    """One document in HELD_OUT, chosen by a hash of its place (held_out=True), or the others. Of
    fewer documents one is held out; of a single one, its end."""
    texts = iter(texts)
    for number in count():
        if not (block := list(islice(texts, HELD_OUT))):
            return
        if number == 0 and len(block) == 1:
            text = block[0]
            end = len(text.rstrip()) * (HELD_OUT - 1) // HELD_OUT
            near = end * 9 // 10, end
            cut = text.rfind("\n", *near) + 1 or text.rfind(" ", *near) + 1 or end
            yield text[cut:] if held_out else text[:cut]
            return
        digest = hashlib.blake2b(str(number).encode(), digest_size=8).digest()
        whole = len(block) == HELD_OUT or number == 0
        chosen = int.from_bytes(digest, "big") % len(block) if whole else None
        yield from (text for i, text in enumerate(block) if (i == chosen) == held_out)


@dataclass(frozen=True)
class Shard:
    """A piece of a source. fetch() downloads it, if need be; read(counts) yields its texts and
    counts what it leaves out; counts: what the last texts() came across."""

    name: str
    read: Callable[[Counter], Iterator[str]]
    fetch: Callable[[], Path | None] = lambda: None
    counts: Counter = field(default_factory=Counter)

    def texts(self, held_out: frozenset[int] = frozenset()) -> Iterator[str]:
        """The documents; held_out: hashes of those that are validation."""
        self.counts.clear()
        for text in self.read(self.counts):
            self.counts["documents"] += 1
            self.counts["documents with U+FFFD, which replaces invalid UTF-8"] += "\ufffd" in text
            self.counts["documents with the character NUL: not text, or UTF-16"] += "\0" in text
            self.counts["documents that are validation too"] += hash(text) in held_out
            yield text


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
        return getattr(self, split)

    @property
    def counts(self) -> Counter:
        """Documents, and what was replaced or left out, in all shards read so far."""
        return sum((shard.counts for shard in [*self.train, *self.val]), Counter())


def open_source(
    name: str,
    num_shards: int | None = None,
    column: str = "text",
    max_malformed: float | None = None,
) -> Source:
    """The source called `name`: "packaged", a folder or file, a hub id, "fineweb-edu", "climbmix";
    at most num_shards of its train shards; of tables, this column. max_malformed: see read_rows.
    DataError if it is not there or has no text.

    Example: open_source("packaged").shards("val")[0].texts()
    """
    if num_shards is not None and num_shards < 1:
        raise ConfigError(f"num_shards is {num_shards}; choose at least 1, or leave it out")
    path = user_path(name)
    read = partial(file_texts, column=column, max_malformed=max_malformed)
    if name == "packaged":
        source = packaged_source()
    elif path.is_file() or path.is_dir():
        source = local_source(path, read)
    elif name in ALIASES:
        source = hub_source(ALIASES[name], read)
        num_shards = num_shards or ALIAS_SHARDS
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        source = hub_source(name, read)
    else:
        raise DataError(
            f"data {name!r} is no folder, file or hub id (owner/name); also possible: packaged, "
            f"{', '.join(ALIASES)}"
        )
    train = source.train[:num_shards]
    if num_shards and num_shards != len(source.train):
        print0(f"{source.name}: {len(train)} of {len(source.train)} train shards are used")
    identity = source.fingerprint if column == "text" else digest(source.fingerprint, column)
    return replace(source, train=train, fingerprint=identity)


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def hub_source(repo_id: str, read: Reader) -> Source:
    """The Parquet shards of a hub data set, the last for validation; fetched when they are read.
    Their list is kept, so that a run whose shards are on this disk needs no network."""
    listing = base_dir() / "hub_listings" / (repo_id.replace("/", "--") + ".json")
    if not listing.exists():
        write_atomic(listing, json.dumps(hub_files(repo_id, "*.parquet")))
    names = read_json(listing, "Delete it")
    if len(names) < 2:
        raise DataError(
            f"{repo_id}: found {len(names)} .parquet files, expected 2 or more: one is validation"
        )

    def shard(name: str) -> Shard:
        fetch = partial(hub_file, repo_id, name)
        return Shard(name, lambda counts: read(fetch(), counts), fetch)

    shards = [shard(name) for name in names]
    return Source(repo_id, digest(repo_id, names), shards[:-1], shards[-1:])


def local_source(path: Path, read: Reader) -> Source:
    """A file, or all files of text under a folder; all .txt and .md files are one shard. Validation
    is the last of two or more tables, or else some documents."""
    endings = (*TABLES, *PLAIN)
    paths = data_files(path, endings) if path.is_dir() else [path]
    paths = [p for p in paths if p.name.lower().endswith(endings)]
    if not paths:
        raise DataError(f"{path} holds no text: expected *{', *'.join(endings)}")
    plain = [p for p in paths if p.name.lower().endswith(PLAIN)]
    tables = [p for p in paths if p not in plain]

    def texts(group: list[Path], counts: Counter) -> Iterator[str]:
        return chain.from_iterable(read(p, counts) for p in group)

    if len(tables) > 1:
        print0(f"{path}: validation is the last file, {tables[-1].name}")
        named = [(str(p.relative_to(path)), [p]) for p in tables]
        named.insert(-1, ("text-files", plain))
        shards = [Shard(name, partial(texts, group)) for name, group in named if group]
        train, val = shards[:-1], shards[-1:]
    else:
        print0(f"{path}: validation is one document in {HELD_OUT}, or the end of a single one")
        group = tables + plain
        train = [Shard("documents", lambda counts: hold_out(texts(group, counts), False))]
        val = [Shard("documents", lambda counts: hold_out(texts(group, Counter()), True))]
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    return Source(path.resolve().name, digest(stats), train, val)


def packaged_source() -> Source:
    """The text of installed packages; its digests say which documents are validation. It is read
    when a shard's text is asked for, and here only if its files are not those of the last time."""

    @cache
    def read() -> tuple[str, str, list[str], list[str]]:
        """(fingerprint, what was found, training documents, validation documents)."""
        counts, sides = Counter(), ([], [])
        texts = documents(counts)
        for mark, text in texts:
            sides[mark[-1] % PACKAGED_HELD_OUT == 0].append(text)
        listed = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
        found = f"{len(texts):,} documents; {listed}"
        return digest([mark.hex() for mark, _ in texts]), found, *sides

    path, files = base_dir() / "packaged_text.json", digest(state_of_files())
    kept = read_json(path, "Delete it") if path.exists() else {}
    if kept.get("files") != files:
        fingerprint, found, *_ = read()
        kept = {"files": files, "fingerprint": fingerprint, "found": found}
        if "packages missing" not in found:  # else they are to be named each time
            write_atomic(path, json.dumps(kept))
    print0(f"packaged text: {kept['found']}")
    train, val = (
        [Shard("packaged", lambda counts, side=side: iter(read()[side]))] for side in (2, 3)
    )
    return Source("packaged", kept["fingerprint"], train, val)
