"""core.cpp, called: the fast twin of reference.py, for Llama-3's split pattern.

Every call leaves Python's lock, so that threads of the core and of Python run beside it.
"""

import ctypes
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_char_p, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from nanochat.bpe.pieces import SPLIT_PATTERN, as_bytes
from nanochat.bpe.reference import Pair
from nanochat.common import progress
from nanochat.cpp import Source, cpp_compiler, load

BATCH = 1 << 24  # characters of text that are handed to the core at once
MERGES_AT_ONCE = 500  # between two steps of the progress bar
LONG = 1_000_000  # characters of a text that is cut into portions
COPIED = 1000  # characters up to which a copy costs less than a call to find the text
ASCII_ADDRESS = ctypes.PYFUNCTYPE(c_void_p, ctypes.py_object)(
    ("PyUnicode_AsUTF8", ctypes.pythonapi)
)
SOURCE = Source(
    "bpe",
    tuple(Path(__file__).with_name(n) for n in ("core.cpp", "scanner.h", "unicode_ranges.h")),
    ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    {
        "error": ([], c_char_p),
        "split": ([c_char_p, c_int64, c_void_p], c_int64),
        "trainer": ([], c_void_p),
        "trainer_free": ([c_void_p], None),
        "count": ([c_void_p, c_void_p, c_void_p, c_int64, c_int], c_int),
        "learn": ([c_void_p, c_int64, c_void_p], c_int64),
        "encoder": ([c_void_p, c_int64, c_void_p], c_void_p),
        "encoder_free": ([c_void_p], None),
        "encode": ([c_void_p, c_char_p, c_int64, c_void_p], c_int64),
        "encode_batch": ([*[c_void_p] * 3, c_int64, c_int, c_int, c_void_p, c_void_p], c_int64),
    },
)
INSTEAD = (
    "plain Python learns the merges, in a hundred times the time, and the package `tokenizers` "
    "encodes"
)


def checked(core, result):
    """`result`, unless it is the null pointer or negative number of a failure: then RuntimeError
    with the core's reason."""
    if result is None or result < 0:
        raise RuntimeError(f"nanochat.bpe: {core.error().decode()}")
    return result


class Owned:
    """A pointer to what the core made, freed when nothing refers to it any more.

    subtle: a thread may still work with it when its caller was interrupted (its reference keeps
    it) or the interpreter ends (then it is not freed).
    """

    def __init__(self, address: int, free: Callable[[int], None]):
        self._as_parameter_ = address
        weakref.finalize(self, free, address).atexit = False


@cache
def core(split_pattern: str = SPLIT_PATTERN) -> SimpleNamespace | None:
    """The functions of core.cpp, compiled at first use; None where Python has to do the work: for
    another pattern, and, with a printed line, without a compiler."""
    return load(SOURCE, cpp_compiler(), INSTEAD) if split_pattern == SPLIT_PATTERN else None


class Batch:
    """Texts as the core takes them: addresses, lengths in bytes and their number.

    subtle: a long ASCII string, which is UTF-8 already, is read where it lies; of any other
    PyUnicode_AsUTF8 would keep a copy as long as it lives.
    """

    def __init__(self, texts: list[str]):
        parts = [t if len(t) >= COPIED and t.isascii() else as_bytes(t) for t in texts]
        addresses = (c_void_p * len(parts))()
        of_bytes = (c_char_p * len(parts)).from_buffer(addresses)
        for i, part in enumerate(parts):
            if isinstance(part, bytes):
                of_bytes[i] = part
            else:
                addresses[i] = ASCII_ADDRESS(part)
        self.lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        self.arguments = addresses, self.lengths.ctypes.data, len(parts)
        self._keep = parts


def in_lists(texts: Iterable[str], chars: int = BATCH) -> Iterator[list[str]]:
    """The texts in lists of about `chars` characters."""
    if isinstance(texts, str):
        raise TypeError("found one str, expected several texts: give a list")
    some, size = [], 0
    for text in texts:
        some.append(text)
        size += len(text) + 64  # bytes that a string takes beside its characters
        if size >= chars:
            yield some
            some, size = [], 0
    if some:
        yield some


def ahead(work: Callable, items: Iterable) -> Iterator:
    """map(work, items), with work in a thread of its own while the next items are made.

    subtle: one item always waits, so that work need not wait for the interpreter's lock.
    """
    pending = deque()
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def usable_processors() -> int:
    usable = getattr(os, "sched_getaffinity", None)  # on Linux
    return len(usable(0)) if usable else os.cpu_count() or 1


def train(
    core, texts: Iterable[str], max_merges: int, num_threads: int | None = None
) -> list[Pair]:
    """reference.py's learn_merges of count_words of the texts, of which only a few batches are in
    memory at a time."""
    trainer = Owned(checked(core, core.trainer()), core.trainer_free)
    threads = num_threads or usable_processors()

    def count(batch: Batch) -> int:
        checked(core, core.count(trainer, *batch.arguments, threads))
        return int(batch.lengths.sum())

    with progress("counting words", None, "bytes") as advance:
        for size in ahead(count, map(Batch, in_lists(texts))):
            advance(size)
    pairs, done = np.empty((max_merges, 2), np.uint32), 0
    with progress("learning merges", max_merges) as advance:
        while done < max_merges:
            most = min(MERGES_AT_ONCE, max_merges - done)
            new = checked(core, core.learn(trainer, most, pairs[done:].ctypes.data))
            done += new
            advance(new)
            if new < most:  # no pair is left
                break
    return [tuple(pair) for pair in pairs[:done].tolist()]


class NativeEncoder:
    """Text to ids by the core, for any number of threads at once. ids: of the bytes and merges."""

    def __init__(self, core, merges: Sequence[Pair], ids: Sequence[int], dtype: type):
        self._core, self._dtype = core, np.dtype(dtype)
        pairs = np.array(merges, dtype=np.uint32).reshape(-1, 2)
        names = np.array(ids, dtype=np.uint32)
        made = core.encoder(pairs.ctypes.data, len(pairs), names.ctypes.data)
        self._encoder = Owned(checked(core, made), core.encoder_free)

    def encode(self, text: str) -> list[int]:
        if len(text) > LONG:
            return self.encode_batch([text])[0].tolist()
        data = as_bytes(text)
        out = np.empty(len(data) + 2, np.uint32)
        count = self._core.encode(self._encoder, data, len(data), out.ctypes.data)
        return out[: checked(self._core, count)].tolist()

    def encode_batch(
        self, texts: Iterable[str], num_threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As Tokenizer.encode_ordinary_batch."""
        threads = num_threads or usable_processors()

        def encode(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
            # Room for an id a byte; what is not written costs addresses, but no memory.
            ids = np.empty(batch.lengths.sum(), self._dtype)
            counts = np.empty_like(batch.lengths)
            out = self._dtype.itemsize, ids.ctypes.data, counts.ctypes.data
            used = self._core.encode_batch(self._encoder, *batch.arguments, threads, *out)
            return ids[: checked(self._core, used)], counts

        nothing = np.empty(0, self._dtype), np.zeros(1, np.int64)
        ids, counts = zip(nothing, *ahead(encode, map(Batch, in_lists(texts))), strict=True)
        return np.concatenate(ids), np.cumsum(np.concatenate(counts))
