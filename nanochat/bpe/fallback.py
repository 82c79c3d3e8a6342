"""Encoding where core.cpp cannot be compiled: by the `tokenizers` package, with equal ids."""

from itertools import islice

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from nanochat.bpe.buffers import Texts, each_text
from nanochat.bpe.pieces import Splitter, as_bytes
from nanochat.bpe.reference import Pair, encode_piece, token_bytes
from nanochat.tokenizer_json import byte_alphabet

TEXTS_AT_ONCE = 1000
LONGEST = 100_000  # bytes; the package's regular expressions overflow at longer white space


class FallbackEncoder:
    """Text to ids without the core; what NativeEncoder is with it.

    Texts that `tokenizers` cannot take, not UTF-8 or very long, are encoded as reference.py does.
    """

    def __init__(self, merges: list[Pair], ids: list[int], split_pattern: str):
        self._splitter = Splitter(split_pattern)
        self._merges = {pair: 256 + i for i, pair in enumerate(merges)}
        self._ids = ids
        self._fast = byte_level_bpe(merges, ids, split_pattern)

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of one text."""
        return self._encode_some([text])[0]

    def encode_batch(
        self, texts: Texts, dtype: np.dtype, num_threads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids, offsets) as NativeEncoder's; `tokenizers` decides by itself how many threads."""
        texts, parts = each_text(texts), [np.empty(0, dtype)]
        while some := list(islice(texts, TEXTS_AT_ONCE)):
            parts += [np.array(found, dtype) for found in self._encode_some(some)]
        return np.concatenate(parts), np.cumsum([len(part) for part in parts])

    def _encode_some(self, texts: list[str | bytes]) -> list[list[int]]:
        found, easy = {}, {}
        for i, text in enumerate(map(as_bytes, texts)):
            try:
                decoded = text.decode()
            except UnicodeDecodeError:
                decoded = None
            if decoded is None or len(text) > LONGEST:
                found[i] = self._encode_slowly(text)
            else:
                easy[i] = decoded
        fast = self._fast.encode_batch(list(easy.values()), add_special_tokens=False)
        found |= {i: encoding.ids for i, encoding in zip(easy, fast, strict=True)}
        return [found[i] for i in range(len(texts))]

    def _encode_slowly(self, text: bytes) -> list[int]:
        pieces = self._splitter.pieces(text)
        known = {piece: encode_piece(piece, self._merges) for piece in set(pieces)}
        return [self._ids[i] for piece in pieces for i in known[piece]]


def byte_level_bpe(merges: list[Pair], ids: list[int], pattern: str) -> tokenizers.Tokenizer:
    """The merges as `tokenizers` takes them: byte strings spelled in its visible alphabet."""
    alphabet = byte_alphabet()
    names = ["".join(alphabet[byte] for byte in token) for token in token_bytes(merges)]
    vocab = dict(zip(names, ids, strict=True))
    named = [(names[left], names[right]) for left, right in merges]
    fast = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=named))
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return fast
