"""Whole documents in order, for bits per byte that others can compare."""

import numpy as np

from nanochat.data.packing import split_documents
from nanochat.data.token_shards import TokenShards


class DocumentRows:
    """A source of rows (see dataloader.py) in which every token of every document is a target once.

    A document that is longer than the context is read in windows of `max_length` tokens; the first
    begins with <|bos|>, each other with the last token of the window before. This is how
    lm-evaluation-harness takes a rolling log-likelihood. No text is padded away, and no document
    stands beside another.
    """

    fixed_length = False

    def __init__(self, shards: TokenShards, max_length: int):
        self.max_length = max_length
        self.windows = []  # (shard, start, length, the token before)
        for shard in shards.shards:
            begins = set(shard.offsets.tolist())
            starts, lengths = split_documents(shard.offsets, max_length)
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
                before = shards.bos if start in begins else int(shard.tokens[start - 1])
                self.windows.append((shard, start, length, before))

    def __len__(self) -> int:
        return len(self.windows)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets), int64 (length,)."""
        shard, start, length, before = self.windows[index % len(self)]
        targets = shard.tokens[start : start + length].astype(np.int64)
        return np.concatenate([[before], targets[:-1]]), targets
