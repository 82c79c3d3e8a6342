"""The tokenizer: byte-level BPE, nine special tokens, one form on disk (Hugging Face's).

Ids 0..255 are the bytes, then come the merges in the order they were learned, then unused ids, and
last the special tokens. bpe/reference.py shows how merges are learned and used; bpe/core.cpp,
compiled at first use, does it hundreds of times faster.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from nanochat.bpe import native, reference
from nanochat.bpe.fallback import LibraryEncoder, refuse_ambiguous
from nanochat.bpe.pieces import SPLIT_PATTERN
from nanochat.bpe.tokenizer_json import VOCAB_MULTIPLE, Parts, read_parts, to_json, visible_merges
from nanochat.common import ConfigError, DataError, print0, progress
from nanochat.files import write_atomic

SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)


class Tokenizer:
    """Text to ids and back. Made by `Tokenizer.train` or `Tokenizer.load`.

    Of the ids below vocab_size, those that are in neither parts.ids nor special_ids stay unused.
    """

    def __init__(self, parts: Parts):
        self.parts = parts
        self.split_pattern, self.merges, ids, self.special_ids, self.vocab_size = parts
        self.id_dtype = np.dtype(np.uint16 if self.vocab_size <= 65536 else np.uint32)
        if core := native.core(self.split_pattern):
            number = {bytes([byte]): byte for byte in range(256)}  # as nanochat.bpe counts
            number |= {a + b: 256 + i for i, (a, b) in enumerate(self.merges)}
            pairs = [(number[a], number[b]) for a, b in self.merges]
            used_ids = [ids[token] for token in number]
            self._encoder = native.NativeEncoder(core, pairs, used_ids, self.id_dtype)
        else:
            self._encoder = LibraryEncoder(to_json(parts), self.split_pattern, self.id_dtype)
        names = sorted(self.special_ids, key=len, reverse=True)  # the longest that fits
        self._specials = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
        self._bytes = [b""] * self.vocab_size  # what each id decodes to; unused ids to nothing
        for token, token_id in ids.items():
            self._bytes[token_id] = token
        for name, token_id in self.special_ids.items():
            self._bytes[token_id] = name.encode()

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, split_pattern: str = SPLIT_PATTERN
    ) -> "Tokenizer":
        """Learns merges from `texts` until the vocabulary is full or the text has no pair left.

        vocab_size counts special and unused ids too. With another split pattern, plain Python
        learns; ConfigError for one that does not compile or that `tokenizers` reads otherwise.
        Example: Tokenizer.train(["low lower lowest"], 320).decode([104, 105]) == "hi"
        """
        smallest = -(-(256 + len(SPECIAL_TOKENS) + 1) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        if vocab_size % VOCAB_MULTIPLE or vocab_size < smallest:
            nearest = max(smallest, round(vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE)
            raise ConfigError(
                f"vocabulary size {vocab_size}: expected a multiple of {VOCAB_MULTIPLE}, at least "
                f"{smallest}. Nearest: {nearest}"
            )
        room = vocab_size - len(SPECIAL_TOKENS)
        if split_pattern != SPLIT_PATTERN:
            refuse_ambiguous(split_pattern)
        if core := native.core(split_pattern):
            pairs = native.train(core, texts, room - 256)
        else:
            with progress("counting words", None, "texts") as advance:
                words = reference.count_words(texts, split_pattern, advance)
            with progress("learning merges", room - 256) as advance:
                pairs = reference.learn_merges(words, room - 256, advance)
        tokens = reference.token_bytes(pairs)
        merges = [(tokens[left], tokens[right]) for left, right in pairs]
        if unused := room - len(tokens):
            print0(
                f"tokenizer: {unused:,} of {vocab_size:,} ids stay unused: after {len(pairs):,} "
                f"merges the text has no pair of tokens left. More text would give more"
            )
        ids = {token: token_id for token_id, token in enumerate(tokens)}
        specials = {name: room + i for i, name in enumerate(SPECIAL_TOKENS)}
        return cls(Parts(split_pattern, merges, ids, specials, vocab_size))

    def texts(self, **settings) -> dict[str, str]:
        """The texts of tokenizer.json and tokenizer_config.json, by name: equal tokenizers give
        equal texts. settings: more of tokenizer_config.json."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|bos|>",
            "eos_token": "<|assistant_end|>",
            "pad_token": "<|bos|>",
            "padding_side": "left",  # in a batch, too, an answer follows its prompt
            "clean_up_tokenization_spaces": False,
            **settings,
        }
        config_text = json.dumps(config, indent=2) + "\n"
        return {"tokenizer.json": to_json(self.parts), "tokenizer_config.json": config_text}

    def save(self, folder: Path | str) -> None:
        for name, text in self.texts().items():
            write_atomic(Path(folder) / name, text)

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """Reads folder/tokenizer.json."""
        path = Path(folder) / "tokenizer.json"
        remedy = "train a tokenizer with `python -m scripts.tok_train`"
        if not path.exists():
            raise DataError(f"{path} does not exist; {remedy}")
        parts = read_parts(path)
        try:
            merged = list(parts.ids.values())[256:]
            if len(merged) != len(parts.merges) or merged != sorted(merged):
                raise ValueError("the ids of the merges do not rise in the order of the merges")
            if missing := [name for name in SPECIAL_TOKENS if name not in parts.special_ids]:
                raise ValueError(f"it has no {', '.join(missing)}")
            return cls(parts)
        except (KeyError, ValueError, RuntimeError) as error:
            raise DataError(f"{path}: {error!r:.300}. Restore the file, or {remedy}") from error

    def encode(self, text: str) -> list[int]:
        """Ids of what the programmer wrote: "<|bos|>" is the special token; nothing is added."""
        ids = []
        for i, part in enumerate(self._specials.split(text)):
            ids += [self.special_ids[part]] if i % 2 else self.encode_ordinary(part)
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of what a user or a data set wrote: "<|bos|>" is seven ordinary characters. A lone
        surrogate becomes U+FFFD."""
        return self._encoder.encode(text)

    def encode_ordinary_batch(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of N texts as (ids, offsets): text i is ids[offsets[i]:offsets[i + 1]].

        ids is flat, uint16 (uint32 above 65,536 ids); offsets is int64 (N + 1,). On all processors.
        """
        return self._encoder.encode_batch(texts)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for: special tokens give their names, unused ids nothing."""
        ids = list(ids)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            wrong = next(i for i in ids if not 0 <= i < self.vocab_size)
            hint = "; -1 marks a target without loss" if wrong == -1 else ""
            raise DataError(f"{wrong} is no id: they go from 0 to {self.vocab_size - 1}{hint}")
        return b"".join(self._bytes[i] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def pieces(self) -> list[str]:
        """The text of every id that is neither special nor unused."""
        return [self.decode([i]) for i in sorted(self.parts.ids.values())]

    def special(self, name: str) -> int:
        """The id of a special token such as "<|user_start|>"."""
        if name not in self.special_ids:
            raise KeyError(f"no special token {name!r}; there are {', '.join(self.special_ids)}")
        return self.special_ids[name]

    @property
    def bos(self) -> int:
        """The id of <|bos|>, which every document starts with."""
        return self.special_ids["<|bos|>"]

    def token_bytes(self) -> np.ndarray:
        """Bytes of text each id stands for: int64 (vocab_size,), 0 for special and unused ids."""
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        for token, token_id in self.parts.ids.items():
            counts[token_id] = len(token)
        return counts

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what decides the ids: split pattern, merges, special tokens."""
        merges = visible_merges(self.merges)
        identity = {"split": self.split_pattern, "merges": merges, "specials": self.special_ids}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
