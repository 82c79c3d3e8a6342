"""Encoding by the `tokenizers` package: for other split patterns, and without a C++ compiler."""

from collections.abc import Iterable

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from nanochat.bpe.native import in_lists
from nanochat.bpe.pieces import Splitter
from nanochat.common import ConfigError

REMEMBERED = 1_000_000  # pieces whose ids are kept: most are words that come again


class LibraryEncoder:
    """NativeEncoder's twin. Our Splitter cuts, because the package's regular expressions overflow
    at long white space and know another Unicode; the package merges each new piece."""

    def __init__(self, tokenizer_json: str, split_pattern: str, dtype: type):
        self._dtype, self._splitter, self._known = dtype, Splitter(split_pattern), {}
        self._library = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._library.encode_special_tokens = True
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._library.pre_tokenizer = whole

    def encode(self, text: str) -> list[int]:
        if len(self._known) > REMEMBERED:
            self._known = {}
        known, pieces = self._known, [piece.decode() for piece in self._splitter.pieces(text)]
        new = [piece for piece in dict.fromkeys(pieces) if piece not in known]
        found = self._library.encode_batch_fast(new, add_special_tokens=False)
        known.update((piece, encoding.ids) for piece, encoding in zip(new, found, strict=True))
        return [i for piece in pieces for i in known[piece]]

    def encode_batch(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """`tokenizers` decides how many threads it uses."""
        parts = [np.empty(0, self._dtype)]
        for some in in_lists(texts):
            parts += [np.array(self.encode(text), self._dtype) for text in some]
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
