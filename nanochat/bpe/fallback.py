"""Encoding by the `tokenizers` package: for other split patterns, and without a C++ compiler."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from nanochat.bpe.native import in_lists
from nanochat.bpe.pieces import Splitter, as_bytes
from nanochat.common import ConfigError

LONGEST = 30_000  # characters; the package's regular expressions overflow at longer white space


class LibraryEncoder:
    """A tokenizer.json as `tokenizers` reads it, with special tokens as text; see NativeEncoder."""

    def __init__(self, tokenizer_json: str, split_pattern: str, dtype: type):
        self._json, self._dtype = tokenizer_json, dtype
        self._splitter = Splitter(split_pattern)
        self._library = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._library.encode_special_tokens = True

    @cached_property
    def _of_pieces(self) -> tokenizers.Tokenizer:
        """The same tokenizer for texts that are one piece each."""
        library = tokenizers.Tokenizer.from_str(self._json)
        library.encode_special_tokens = True
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return library

    def encode(self, text: str) -> list[int]:
        """The ids of one text."""
        text = as_bytes(text).decode()
        if len(text) <= LONGEST:
            return self._library.encode(text, add_special_tokens=False).ids
        pieces = [piece.decode() for piece in self._splitter.pieces(text)]
        found = self._of_pieces.encode_batch_fast(pieces, add_special_tokens=False)
        return [i for encoding in found for i in encoding.ids]

    def encode_batch(
        self, texts: Iterable[str], num_threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids, offsets); `tokenizers` decides by itself how many threads it uses."""
        parts = [np.empty(0, self._dtype)]
        for some in in_lists(texts, 1_000_000):
            short = [as_bytes(text).decode() if len(text) <= LONGEST else "" for text in some]
            found = self._library.encode_batch_fast(short, add_special_tokens=False)
            for text, encoding in zip(some, found, strict=True):
                ids = encoding.ids if len(text) <= LONGEST else self.encode(text)
                parts.append(np.array(ids, self._dtype))
        return np.concatenate(parts), np.cumsum([len(part) for part in parts])


# Where the engines of regular expressions differ: counted digits, marks, case, ends of lines.
PROBES = """1234567 12345 a1b22 x½ and ²³ 3.14 1,000
It's I'LL we'Ve d'S 'ſ o'clock "quoted" don''t
  two   three\ttab  \r\n\r\n \n\n  end
naïve Straße ÀÉÎ İı ǅ ﬁ e\u0301 नमस्ते 日本語テスト 한국어 עברית العربية ไทย 😀🏳️‍🌈
snake_case camelCase HTMLParser CONSTANT __init__ a==b!=c {[(<>)]} #$%&@ x=-1 //!
\u00a0\u2003\u3000."""


def refuse_ambiguous(pattern: str) -> None:
    """ConfigError unless `tokenizers`, which reads tokenizer.json elsewhere, cuts PROBES as we do.
    Its regular expressions are Oniguruma's: `{1,3}+`, for example, is possessive only in ours."""
    splitter = Splitter(pattern)
    try:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    except Exception as error:  # the package raises nothing narrower
        raise ConfigError(
            f"split pattern {pattern!r}: the package tokenizers does not take it: {error}"
        ) from error
    for probe in [*PROBES.splitlines(), PROBES, ""]:
        theirs = [piece.encode() for piece, _ in split.pre_tokenize_str(probe)]
        if (ours := splitter.pieces(probe)) != theirs:
            raise ConfigError(
                f"split pattern {pattern!r}: the packages regex and tokenizers cut {probe!r:.60} "
                f"differently, into {ours!r:.200} and {theirs!r:.200}. Write it so that both agree"
            )
