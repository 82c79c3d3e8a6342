"""Text, tokenized once: flat ids with document offsets, in mapped files or in memory.

A folder under $NANOCHAT_BASE_DIR/tokens is named after the source, the tokenizer's fingerprint and
the data's. Shard 7 is train-00007.uint16 or .uint32 (the ids, without <|bos|>), with .offsets.npy
(written last) and a plan for each row length, .plan512.npy.
"""

import contextlib
import io
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from nanochat.bpe.native import ahead, in_lists
from nanochat.common import DataError, barrier, on_rank0, rank_and_world
from nanochat.conversation import render_batch, validate
from nanochat.data.packing import plan_rows
from nanochat.data.sources import Shard, Source, fetched
from nanochat.files import base_dir, locked, write_atomic
from nanochat.tokenizer import Tokenizer

OFFSETS = "offsets.npy"
CHUNK_CHARS = 4_000_000  # text in memory while it is tokenized
CHUNK_CONVERSATIONS = 2_000
SECONDS_BETWEEN_LINES = 10


@dataclass(frozen=True)
class TokenShard:
    """Documents as ids: document i is tokens[offsets[i]:offsets[i + 1]]. mask: 1 at tokens that
    loss is taken on. path: the shard's file name without suffix, if it is on disk."""

    tokens: np.ndarray
    offsets: np.ndarray
    mask: np.ndarray | None = None
    path: Path | None = None

    def plan(self, row_tokens: int) -> np.ndarray:
        """plan_rows() of this shard, kept beside its file."""
        if self.path is None:
            return plan_rows(self.offsets, row_tokens)
        path = _file(self.path, f"plan{row_tokens}.npy")
        if not path.exists():
            _write_array(path, plan_rows(self.offsets, row_tokens))
        return _read_array(path)


@dataclass(frozen=True)
class TokenShards:
    """The shards of one source and split; turn_end: the id after an assistant's turn, in chats."""

    name: str
    shards: list[TokenShard]
    bos: int
    turn_end: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents, <|bos|> not counted."""
        return sum(int(shard.offsets[-1]) for shard in self.shards)

    def documents(self) -> Iterator[bytes]:
        """The ids of each document, as bytes."""
        for shard in self.shards:
            yield from (shard.tokens[a:b].tobytes() for a, b in pairwise(shard.offsets))


def tokenize_conversations(
    conversations: Iterable[dict], tokenizer: Tokenizer, *, name: str
) -> TokenShards:
    """Renders conversations into one shard in memory, with the loss mask of fine-tuning; rank 0 for
    all. DataError names `name` and the number of a malformed conversation."""

    def render_all() -> TokenShard:
        parts, numbered = [], enumerate(conversations, start=1)
        while chunk := list(islice(numbered, CHUNK_CONVERSATIONS)):
            for i, conversation in chunk:
                validate(conversation, f"{name}, conversation {i}")
            ids, offsets, mask = render_batch([one for _, one in chunk], tokenizer)
            keep = np.ones(len(ids), dtype=bool)
            keep[offsets[:-1]] = False  # <|bos|>: rows put it back
            parts.append((ids[keep], mask[keep], np.diff(offsets) - 1))
        if not parts:
            raise DataError(f"{name}: found no conversation, expected at least one")
        ids, masks, lengths = zip(*parts, strict=True)
        return TokenShard(np.concatenate(ids), _offsets(lengths), np.concatenate(masks))

    turn_end = tokenizer.special("<|assistant_end|>")
    return TokenShards(name, [on_rank0(render_all)], tokenizer.bos, turn_end)


def tokenize_source(
    source: Source, tokenizer: Tokenizer, split: str, local_data: bool = False
) -> TokenShards:
    """Opens the shards of a source, after tokenizing those that are not yet on disk: on rank 0, or
    with local_data on one rank of each node, while the others wait."""
    shards = source.shards(split)
    if not shards:
        raise DataError(f"{source.name}: found no {split} shard, expected at least one")
    name = f"{source.name} ({split})"
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", source.name).strip("-.")[:80]
    data = f"{slug}-{tokenizer.fingerprint[:12]}-{source.fingerprint[:12]}"
    folder = base_dir() / "tokens" / data
    paths = [folder / f"{split}-{i:05d}" for i in range(len(shards))]
    rank, _ = rank_and_world()
    if (int(os.environ.get("LOCAL_RANK", rank)) if local_data else rank) == 0:
        with locked(folder):
            pairs = zip(shards, paths, strict=True)
            if missing := [(s, path) for s, path in pairs if not _file(path, OFFSETS).exists()]:
                others = source.shards("val") if split == "train" else []
                held_out = frozenset(hash(text) for shard in others for text in shard.texts())
                _tokenize_shards(missing, len(shards), tokenizer, name, held_out)
                for what in sorted(source.counts.keys() - {"documents"}):
                    print(f"{source.name}: {source.counts[what]:,} {what} so far", flush=True)
    barrier()
    opened = [_open(path, tokenizer.id_dtype) for path in paths]
    return TokenShards(name, opened, tokenizer.bos)


def _tokenize_shards(
    missing: list[tuple[Shard, Path]],
    num_shards: int,
    tokenizer: Tokenizer,
    name: str,
    held_out: frozenset[int],
) -> None:
    """Tokenizes shards while the next are downloaded; prints how far and how fast."""
    done, documents, empty, tokens = num_shards - len(missing), 0, 0, 0
    start = last = time.monotonic()

    def report() -> str:
        speed = tokens / max(time.monotonic() - start, 1e-9)
        counts = f"{documents:,} documents, {tokens:,} tokens, {speed:,.0f} tokens/s"
        return f"tokenizing {name}: {done} of {num_shards} shards, {counts}"

    with contextlib.closing(fetched([shard for shard, _ in missing])) as arrived:
        for shard, (_, path) in zip(arrived, missing, strict=True):
            partial, lengths = path.with_name(f".{path.name}.partial"), []
            try:
                with open(partial, "wb") as file:
                    chunks = in_lists(shard.texts(held_out), CHUNK_CHARS)
                    for ids, offsets in ahead(tokenizer.encode_ordinary_batch, chunks):
                        file.write(ids.tobytes())
                        lengths.append(np.diff(offsets))
                        documents += len(offsets) - 1
                        empty += int((lengths[-1] == 0).sum())
                        tokens += len(ids)
                        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
                            last = time.monotonic()
                            print(report(), flush=True)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, _file(path, tokenizer.id_dtype.name))
                _write_array(_file(path, OFFSETS), _offsets(lengths))
            except OSError as error:
                raise DataError(
                    f"{path.parent} cannot be written while tokenizing {shard.name}: {error}. Make "
                    f"room, or point NANOCHAT_BASE_DIR elsewhere; finished shards are kept"
                ) from error
            finally:
                partial.unlink(missing_ok=True)
            done += 1
    print(f"{report()}; {empty:,} documents were empty", flush=True)


def _file(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}.{ending}")


def _offsets(lengths: Iterable[np.ndarray]) -> np.ndarray:
    """int64 (documents + 1,) from the documents' lengths, chunk by chunk."""
    return np.concatenate([[0], np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]))])


def _write_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getvalue())


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it, and it is made again") from error


def _open(path: Path, dtype: np.dtype) -> TokenShard:
    """Maps a shard into memory; raises DataError when its two files do not belong together."""
    file, offsets = _file(path, dtype.name), _read_array(_file(path, OFFSETS))
    found = file.stat().st_size if file.exists() else 0
    expected = int(offsets[-1]) * dtype.itemsize
    if found != expected or not file.exists():
        raise DataError(
            f"{file}: found {found:,} bytes, expected {expected:,}; delete "
            f"{_file(path, OFFSETS)}, and the shard is made again"
        )
    # An empty file cannot be mapped. subtle: a np.memmap is sliced more slowly than an array.
    tokens = np.asarray(np.memmap(file, dtype=dtype, mode="r")) if found else np.empty(0, dtype)
    return TokenShard(tokens, offsets, path=path)
