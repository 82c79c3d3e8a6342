"""Encoding where core.cpp cannot be compiled: by the `tokenizers` package, with equal ids."""

from itertools import islice

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from nanochat.bpe.pieces import Splitter, as_bytes
from nanochat.bpe.reference import Pair, encode_piece, token_bytes
from nanochat.bpe.text_buffers import Texts, each_text
from nanochat.bpe.tokenizer_json import byte_alphabet
from nanochat.common import ConfigError

TEXTS_AT_ONCE = 1000
SLOW_PIECE = 256  # bytes
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
        self._whole = byte_level_bpe(merges, ids, None)

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
        known = {piece: self._encode_piece(piece) for piece in set(pieces)}
        return [i for piece in pieces for i in known[piece]]

    def _encode_piece(self, piece: bytes) -> list[int]:
        if len(piece) > SLOW_PIECE:  # reference.py would take the square of its length
            try:
                return self._whole.encode(piece.decode(), add_special_tokens=False).ids
            except UnicodeDecodeError:
                pass
        return [self._ids[i] for i in encode_piece(piece, self._merges)]


def byte_level_bpe(merges: list[Pair], ids: list[int], pattern: str | None) -> tokenizers.Tokenizer:
    """The merges as `tokenizers` takes them: byte strings spelled in its visible alphabet.

    pattern: what splits a text; None: a text is one piece.
    """
    alphabet = byte_alphabet()
    names = ["".join(alphabet[byte] for byte in token) for token in token_bytes(merges)]
    vocab = dict(zip(names, ids, strict=True))
    named = [(names[left], names[right]) for left, right in merges]
    fast = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=named))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pattern is None:
        fast.pre_tokenizer = byte_level
    else:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        fast.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return fast


# Where the engines of regular expressions differ: counted digits, marks, case, ends of lines.
PROBES = """1234567 12345 a1b22 x½ and ²³ 3.14 1,000
It's I'LL we'Ve d'S 'ſ o'clock "quoted" don''t
  two   three\ttab  \r\n\r\n \n\n  end
naïve Straße ÀÉÎ İı ǅ ﬁ e\u0301 नमस्ते 日本語テスト 한국어 עברית العربية ไทย 😀🏳️‍🌈
snake_case camelCase HTMLParser CONSTANT __init__ a==b!=c {[(<>)]} #$%&@ x=-1 //!
\u00a0\u2003\u3000."""


def refuse_ambiguous(pattern: str) -> None:
    """ConfigError unless `tokenizers`, which reads tokenizer.json elsewhere, splits as we do.

    Its regular expressions are Oniguruma's, ours those of the package regex: `{1,3}+` is possessive
    in one of them alone. Tried on PROBES, so a rare character may still be split in two ways.
    """
    splitter = Splitter(pattern)
    try:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    except Exception as error:  # the package raises nothing narrower
        raise ConfigError(
            f"split pattern {pattern!r}: the package tokenizers, by which others load a tokenizer, "
            f"does not take it: {error}"
        ) from error
    for probe in [*PROBES.splitlines(), PROBES, ""]:
        theirs = [piece.encode() for piece, _ in split.pre_tokenize_str(probe)]
        if (ours := splitter.pieces(probe)) != theirs:
            differing = next((p for p in zip(ours, theirs, strict=False) if p[0] != p[1]), None)
            raise ConfigError(
                f"split pattern {pattern!r} means two things: in {probe!r:.60} the package regex "
                f"and the package tokenizers, by which others load a tokenizer, cut differently: "
                f"{differing}. Write it so that both agree"
            )
