"""core.cpp, called: the fast twin of reference.py.

Every call leaves Python's lock, so that threads of the core and of Python run beside it.
"""

import ctypes
import os
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from ctypes import c_char_p, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np

from nanochat.bpe.pieces import SPLIT_PATTERN, Splitter, as_bytes
from nanochat.bpe.reference import Pair
from nanochat.bpe.text_buffers import Buffers, Texts, batches, each_text, of_texts
from nanochat.common import ConfigError, print0, progress
from nanochat.cpp import Source, cpp_compiler, load

MERGES_AT_ONCE = 500  # between two steps of the progress bar
LONG = 1_000_000  # characters of a text that is cut into portions
SOURCE = Source(
    "bpe",
    tuple(Path(__file__).with_name(n) for n in ("core.cpp", "scanner.h", "unicode_ranges.h")),
    ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread"),
)
INSTEAD = (
    "the Python reference is used: training then takes about 1.5 s a megabyte and encoding 0.4 s, "
    "a hundred times as long"
)
WORDS_AT_ONCE = 1_000_000  # different words that Python counts before the core takes them over

# What each function of the core takes and returns.
SIGNATURES = {
    "bpe_error": ([], c_char_p),
    "bpe_split": ([c_char_p, c_int64, c_void_p], c_int64),
    "bpe_counter": ([], c_void_p),
    "bpe_counter_free": ([c_void_p], None),
    "bpe_count": ([c_void_p, c_void_p, c_void_p, c_int64, c_int], c_int),
    "bpe_add": ([c_void_p, c_void_p, c_void_p, c_void_p, c_int64], c_int),
    "bpe_learner": ([c_void_p], c_void_p),
    "bpe_learner_free": ([c_void_p], None),
    "bpe_learn": ([c_void_p, c_int64, c_void_p], c_int64),
    "bpe_encoder": ([c_void_p, c_int64, c_void_p], c_void_p),
    "bpe_encoder_free": ([c_void_p], None),
    "bpe_encode": ([c_void_p, c_char_p, c_int64, c_int, c_void_p], c_int64),
    "bpe_encoded": ([c_int], c_void_p),
    "bpe_encode_batch": ([c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int, c_int], c_int),
    "bpe_encoded_ids": ([c_void_p], c_void_p),
    "bpe_encoded_bytes": ([c_void_p], c_int64),
    "bpe_encoded_counts": ([c_void_p, c_void_p], None),
    "bpe_encoded_free": ([c_void_p], None),
}


class Core:
    """The library's functions; one that fails raises RuntimeError with the core's reason."""

    def __init__(self, library: ctypes.CDLL):
        for name, (arguments, result) in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result
            setattr(self, name.removeprefix("bpe_"), function)

    def checked(self, result):
        """`result`, unless it is the null pointer or negative number that stands for failure."""
        if result is None or result < 0:
            raise RuntimeError(f"nanochat.bpe: {self.error().decode()}")
        return result


class Owned:
    """What the core made, freed when nothing refers to it any more; passed to it as a pointer.

    subtle: a thread may be at work with it after its caller was interrupted, or while the
    interpreter ends. That thread's reference keeps it, and at the end it is not freed.
    """

    def __init__(self, address: int, free: Callable[[int], None]):
        self._as_parameter_ = address
        weakref.finalize(self, free, address).atexit = False


def core() -> Core | None:
    """core.cpp, or None where Python has to do: then one line has said why.

    NANOCHAT_BPE=python forces that. Raises ConfigError for another value of the variable.
    """
    wanted = os.environ.get("NANOCHAT_BPE", "")
    if wanted not in ("", "python"):
        raise ConfigError(f"NANOCHAT_BPE={wanted!r} is unknown; choose python, or leave it unset")
    return _core(wanted, cpp_compiler())


@cache
def _core(wanted: str, compiler: str | None) -> Core | None:
    """core(), once a process: so a line is printed once."""
    if wanted == "python":
        print0(f"bpe: NANOCHAT_BPE=python, so {INSTEAD}")
        return None
    library = load(SOURCE, compiler, INSTEAD)
    return Core(library) if library else None


def split(core: Core, text: str | bytes) -> list[bytes]:
    """A text's pieces by SPLIT_PATTERN: the scanner, to be held against Splitter.pieces."""
    data = as_bytes(text)
    ends = np.empty(len(data), np.int64)
    ends = ends[: core.split(data, len(data), ends.ctypes.data)].tolist()
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def ahead(work: Callable, items: Iterable, num_threads: int) -> Iterator:
    """map(work, items); with several threads, the next items are made while work is at one.

    subtle: one item waits while work is at another, so that work never waits for the interpreter's
    lock between two of them.
    """
    if num_threads == 1:
        yield from map(work, items)
        return
    pending: deque[Future] = deque()
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


# ---------------------------------------------------------------- training


def train(
    core: Core, texts: Texts, max_merges: int, split_pattern: str, num_threads: int
) -> list[Pair]:
    """reference.learn_merges of reference.count_words of the texts."""
    counter = Owned(core.checked(core.counter()), core.counter_free)
    with progress("counting words", None, "bytes") as advance:
        if split_pattern == SPLIT_PATTERN:
            count_by_core(core, counter, texts, num_threads, advance)
        else:
            count_by_regex(core, counter, texts, split_pattern, advance)
    learner = Owned(core.checked(core.learner(counter)), core.learner_free)
    return learn_merges(core, learner, max_merges)


def count_by_core(
    core: Core, counter: Owned, texts: Texts, num_threads: int, advance: Callable[[int], None]
) -> None:
    """Splits and counts in the core; of the texts only two batches are in memory at a time."""

    def count(batch: Buffers) -> int:
        addresses, lengths = batch.addresses.ctypes.data, batch.lengths.ctypes.data
        core.checked(core.count(counter, addresses, lengths, len(batch), num_threads))
        return batch.size

    for size in ahead(count, batches(texts), num_threads):
        advance(size)


def count_by_regex(
    core: Core, counter: Owned, texts: Texts, split_pattern: str, advance: Callable[[int], None]
) -> None:
    """Splits and counts in Python, as the pattern is not the core's; the core adds it up."""
    splitter, words = Splitter(split_pattern), Counter()

    def hand_over() -> None:
        batch = of_texts(list(words))
        weights = np.fromiter(words.values(), dtype=np.uint64, count=len(words))
        addresses, lengths = batch.addresses.ctypes.data, batch.lengths.ctypes.data
        core.checked(core.add(counter, addresses, lengths, weights.ctypes.data, len(words)))
        words.clear()

    for text in each_text(texts):
        words.update(splitter.pieces(text))
        if len(words) > WORDS_AT_ONCE:
            hand_over()
        advance(len(text))
    hand_over()


def learn_merges(core: Core, learner: Owned, max_merges: int) -> list[Pair]:
    """Merges from the words that the learner was made of, a few hundred at a call."""
    pairs = np.empty((max_merges, 2), np.uint32)
    done = 0
    with progress("learning merges", max_merges) as advance:
        while done < max_merges:
            most = min(MERGES_AT_ONCE, max_merges - done)
            new = core.checked(core.learn(learner, most, pairs[done:].ctypes.data))
            done += new
            advance(new)
            if new < most:  # no pair is left
                break
    return [tuple(pair) for pair in pairs[:done].tolist()]


# ---------------------------------------------------------------- encoding


class NativeEncoder:
    """Text to ids by the core. What Encoder does where there is a compiler."""

    def __init__(self, core: Core, merges: list[Pair], ids: list[int], split_pattern: str):
        self._core = core
        self._splitter = None if split_pattern == SPLIT_PATTERN else Splitter(split_pattern)
        pairs = np.array(merges, dtype=np.uint32).reshape(-1, 2)
        names = np.array(ids, dtype=np.uint32)
        made = core.encoder(pairs.ctypes.data, len(pairs), names.ctypes.data)
        self._encoder = Owned(core.checked(made), core.encoder_free)

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of one text."""
        if self._splitter is not None or len(text) > LONG:
            return self.encode_batch([text], np.uint32, 1)[0].tolist()
        data = as_bytes(text)
        out = np.empty(len(data) + 2, np.uint32)
        count = self._core.encode(self._encoder, data, len(data), 1, out.ctypes.data)
        return out[: self._core.checked(count)].tolist()

    def encode_batch(
        self, texts: Texts, dtype: np.dtype, num_threads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids, offsets): those of text i are ids[offsets[i]:offsets[i + 1]]."""
        if self._splitter is None:
            ids, counts = self._encode_all(batches(texts), dtype, num_threads, split=True)
        else:
            pieces_of = []  # how many pieces each text has

            def pieces() -> Iterator[Buffers]:
                for some in portions(each_text(texts)):
                    found = [self._splitter.pieces(text) for text in some]
                    pieces_of.extend(map(len, found))
                    yield of_texts([piece for pieces in found for piece in pieces])

            ids, counts = self._encode_all(pieces(), dtype, num_threads, split=False)
            counts = np.diff(ends(counts)[ends(np.array(pieces_of, np.int64))])
        return ids, ends(counts)

    def _encode_all(
        self, all_texts: Iterable[Buffers], dtype: np.dtype, num_threads: int, split: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids, how many each text has). The ids stay where the core has written them."""
        core = self._core
        made = core.encoded(np.dtype(dtype).itemsize)
        encoded = Owned(core.checked(made), core.encoded_free)

        def add(batch: Buffers) -> int:
            addresses, lengths = batch.addresses.ctypes.data, batch.lengths.ctypes.data
            arguments = addresses, lengths, len(batch), num_threads, split
            core.checked(core.encode_batch(self._encoder, encoded, *arguments))
            return len(batch)

        counts = np.empty(sum(ahead(add, all_texts, num_threads)), np.int64)
        core.encoded_counts(encoded, counts.ctypes.data)
        address = core.checked(core.encoded_ids(encoded))
        memory = (ctypes.c_byte * core.encoded_bytes(encoded)).from_address(address)
        memory.owner = encoded  # as long as there is an array of it
        return np.frombuffer(memory, dtype), counts


def ends(counts: np.ndarray) -> np.ndarray:
    """0, and the sums of the first 1, 2, ... counts: int64 (n + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def portions(texts: Iterable[str | bytes], most: int = 1 << 20) -> Iterator[list[str | bytes]]:
    """The texts in lists of about `most` characters."""
    some, size = [], 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size >= most:
            yield some
            some, size = [], 0
    if some:
        yield some
