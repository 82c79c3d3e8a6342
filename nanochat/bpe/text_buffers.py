"""Texts as addresses and lengths of UTF-8 in memory, a batch at a time: what core.cpp reads."""

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from nanochat.bpe.pieces import as_bytes

OBJECT = 64  # bytes that a string takes beside its characters, about
LONG = 1000  # characters from which a call to find them costs less than copying them
ASCII_ADDRESS = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(
    ("PyUnicode_AsUTF8", ctypes.pythonapi)
)
Texts = Iterable[str | bytes | pa.Array | pa.ChunkedArray]


@dataclass(frozen=True)
class Buffers:
    """addresses: uint64 (n,); lengths in bytes: int64 (n,); keep: what owns the memory."""

    addresses: np.ndarray
    lengths: np.ndarray
    keep: object

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def size(self) -> int:
        """Bytes of text."""
        return int(self.lengths.sum())


def of_texts(texts: list[str | bytes]) -> Buffers:
    """Strings and byte strings. A long ASCII string is read where it lies: it is UTF-8 already.

    subtle: of a string that is not ASCII, PyUnicode_AsUTF8 would keep a copy as long as it lives.
    """
    parts = [t if len(t) >= LONG and t.isascii() else as_bytes(t) for t in texts]
    pointers = (ctypes.c_void_p * len(parts))()
    # subtle: ctypes.cast would tie both, and the texts with them, into a cycle until the next gc.
    byte_strings = (ctypes.c_char_p * len(parts)).from_buffer(pointers)
    for i, part in enumerate(parts):
        if isinstance(part, bytes):
            byte_strings[i] = part
        else:
            pointers[i] = ASCII_ADDRESS(part)
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    return Buffers(np.frombuffer(pointers, dtype=np.uint64), lengths, parts)


def of_arrow(array: pa.Array) -> Buffers:
    """The values of a column of strings or binaries, where they lie; a null is an empty text."""
    array = with_long_offsets(array)
    _, offsets, data = array.buffers()
    if not len(array) or data is None:
        return Buffers(*(np.zeros(len(array), kind) for kind in (np.uint64, np.int64)), array)
    ends = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    lengths = np.diff(ends)
    if array.null_count:
        lengths[array.is_null().to_numpy(zero_copy_only=False)] = 0
    return Buffers(ends[:-1].astype(np.uint64) + np.uint64(data.address), lengths, array)


def with_long_offsets(array: pa.Array) -> pa.Array:
    """The array as large strings or large binaries; its text is not copied."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return array
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind):
        return array.cast(pa.large_binary())
    if pa.types.is_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return array.cast(pa.large_string())
    raise TypeError(f"found an Arrow array of {kind}; expected strings or binaries")


def chunks_of(array: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return array.chunks if isinstance(array, pa.ChunkedArray) else [array]


def several(texts: Texts) -> Texts:
    """The texts; one Arrow column becomes a list of it. TypeError for one text in their place."""
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"found one {type(texts).__name__}, expected several texts: give a list")
    return [texts] if isinstance(texts, (pa.Array, pa.ChunkedArray)) else texts


def each_text(texts: Texts) -> Iterator[str | bytes]:
    """The texts one by one, those of Arrow columns as bytes."""
    for text in several(texts):
        if isinstance(text, (pa.Array, pa.ChunkedArray)):
            for chunk in chunks_of(text):
                values = with_long_offsets(chunk).cast(pa.large_binary())
                yield from (value.as_py() or b"" for value in values)
        else:
            yield text


def batches(texts: Texts, most: int = 1 << 24) -> Iterator[Buffers]:
    """All texts in order, in batches of about `most` bytes; a longer text is a batch of its own."""
    parts, size = [], 0
    for text in several(texts):
        is_arrow = isinstance(text, (pa.Array, pa.ChunkedArray))
        if not is_arrow:
            parts.append(text)
            size += len(text) + OBJECT
        if parts and (size >= most or is_arrow):
            yield of_texts(parts)
            parts, size = [], 0
        if is_arrow:
            yield from map(of_arrow, chunks_of(text))
    if parts:
        yield of_texts(parts)
