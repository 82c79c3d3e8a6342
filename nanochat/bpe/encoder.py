"""Byte-level BPE: learning merges from text, and text into ids.

reference.py is the whole of it in plain Python. core.cpp does the same, hundreds of times faster;
it is compiled at first use, and where it cannot be, Python and the `tokenizers` package do the
work, with equal results. In both, ids 0..255 are the bytes and merge i makes id 256 + i.
"""

import os
from collections.abc import Sequence

import numpy as np

from nanochat.bpe import native, reference
from nanochat.bpe.fallback import FallbackEncoder
from nanochat.bpe.pieces import SPLIT_PATTERN
from nanochat.bpe.reference import Pair
from nanochat.bpe.text_buffers import Texts, each_text
from nanochat.common import ConfigError, print0, progress

MOST_THREADS = 4096


def train(
    texts: Texts,
    vocab_size: int,
    split_pattern: str = SPLIT_PATTERN,
    num_threads: int | None = None,
) -> list[Pair]:
    """The merges, in order, as pairs of ids: vocab_size - 256, or fewer if the text has no more.

    texts: strings, byte strings, or Arrow arrays of them, whose memory is read where it lies. What
    is kept is a count of each different word. Of equally frequent pairs the smallest comes first.
    Raises ConfigError for a size below 256, a negative number of threads (None and 0: one for each
    processor) or a pattern that does not compile.
    Example: train(["low lower lowest"], 259) == [(108, 111), (256, 119), (32, 257)]
    """
    if vocab_size < 256:
        raise ConfigError(f"vocabulary size {vocab_size} has no room for the 256 bytes")
    num_threads = checked_threads(num_threads)
    core, wanted = native.core(), vocab_size - 256
    if core is not None:
        merges = native.train(core, texts, wanted, split_pattern, num_threads)
    else:
        merges = train_slowly(texts, wanted, split_pattern)
    if len(merges) < wanted:
        print0(
            f"bpe: after {len(merges):,} of {wanted:,} merges the text has no pair of tokens left; "
            f"more text would give more"
        )
    return merges


def checked_threads(num_threads: int | None) -> int:
    """How many threads are meant; ConfigError for what is no number of them."""
    if num_threads is None or (num_threads == 0 and isinstance(num_threads, int)):
        usable = getattr(os, "sched_getaffinity", None)  # on Linux
        return len(usable(0)) if usable else os.cpu_count() or 1
    if not isinstance(num_threads, int) or not 0 < num_threads <= MOST_THREADS:
        raise ConfigError(
            f"num_threads is {num_threads!r}; give 1 to {MOST_THREADS:,}, or None for all "
            f"processors"
        )
    return num_threads


def train_slowly(texts: Texts, max_merges: int, split_pattern: str) -> list[Pair]:
    """train() by reference.py."""
    with progress("counting words", None, "texts") as advance:

        def counted():
            for text in each_text(texts):
                yield text
                advance(1)

        words = reference.count_words(counted(), split_pattern)
    with progress("learning merges", max_merges) as advance:
        return reference.learn_merges(words, max_merges, advance)


class Encoder:
    """Text to ids, by merges that `train` returned; safe to use by many threads at once.

    ids: what is written for each of the 256 + len(merges) ids, where that is another number; dtype
    of the arrays: uint16 or uint32. Raises ConfigError for another one, ids that it has no room
    for, and a pattern that does not compile.
    Example: Encoder([(104, 105)]).encode("hi!") == [256, 33]
    """

    def __init__(
        self,
        merges: Sequence[Pair],
        split_pattern: str = SPLIT_PATTERN,
        ids: Sequence[int] | None = None,
        dtype: type = np.uint32,
    ):
        if np.dtype(dtype) not in (np.uint16, np.uint32):
            raise ConfigError(f"ids are uint16 or uint32, found {np.dtype(dtype)}")
        ids = range(256 + len(merges)) if ids is None else ids
        if len(ids) != 256 + len(merges) or max(ids) > np.iinfo(dtype).max:
            raise ConfigError(
                f"{len(merges)} merges need {256 + len(merges)} ids up to {np.iinfo(dtype).max}; "
                f"found {len(ids)} up to {max(ids)}"
            )
        self._given = list(merges), split_pattern, list(ids), dtype
        core = native.core()
        parts = list(merges), list(ids), split_pattern
        self._encoder = native.NativeEncoder(core, *parts) if core else FallbackEncoder(*parts)
        self._dtype = dtype

    def __reduce__(self):
        return Encoder, self._given

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of one text. A lone surrogate counts as U+FFFD; bytes need not be UTF-8."""
        return self._encoder.encode(text)

    def encode_batch(
        self, texts: Texts, num_threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids, offsets), flat: those of text i are ids[offsets[i]:offsets[i + 1]].

        texts as for `train`; a null of an Arrow array is an empty text.
        """
        return self._encoder.encode_batch(texts, self._dtype, checked_threads(num_threads))
