"""Keys and values of the tokens that a model has already read, and attention to them.

A sequence has a slot of the cache, where attention reads it: nothing is gathered. Dimensions: N
tokens of one pass, sequence after sequence; R slots, each with room for S tokens; H heads, Hkv
key/value heads, K head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from typing import NamedTuple

import torch
import torch.nn.functional as F

from nanochat.gpt import GPTConfig

GROW_BY = 128  # room for tokens is allocated in multiples of this


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def padded_size(n: int) -> int:
    """Rows of a pass of n tokens: few sizes, because libraries keep a compiled product for each.

    Example: [padded_size(n) for n in (3, 9, 70)] == [3, 16, 128]
    """
    return n if n <= 8 else round_up(n, 8 if n <= 64 else 64)


class KVCache:
    """Per layer, keys and values (R, Hkv, S, K). It grows when `reserve` asks for more."""

    def __init__(self, config: GPTConfig, device, dtype: torch.dtype):
        self.config, self.device, self.dtype = config, torch.device(device), dtype
        self.slots = self.room = 0  # R, S
        shape = (0, config.n_kv_head, 0, config.head_dim)
        empty = torch.zeros(shape, dtype=dtype, device=device)
        self.keys, self.values = [empty] * config.n_layer, [empty] * config.n_layer

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def reserve(self, slots: int, tokens: int) -> bool:
        """Makes room for `tokens` tokens in each of `slots` slots, or more, so as to grow seldom;
        keeps what is there. Returns whether anything moved."""
        if slots <= self.slots and tokens <= self.room:
            return False
        if slots > self.slots:
            self.slots = max(slots, min(2 * self.slots, self.slots + 8))
        if tokens > self.room:
            most = round_up(self.config.sequence_len + 1, GROW_BY)
            self.room = max(round_up(tokens, GROW_BY), min(2 * self.room, most))
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                R, Hkv, S, K = old.shape
                # zeros, because a masked NaN would still reach the output as 0 * NaN
                tensors[layer] = old.new_zeros(self.slots, Hkv, self.room, K)
                tensors[layer][:R, :, :S] = old
        return True

    def copy(self, source: int, target: int, length: int) -> None:
        """Slot `target` gets the first `length` tokens of slot `source`."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]


class TokenSpan(NamedTuple):
    """Tokens of one sequence in a pass: `length` of them, after `start` that slot `slot` holds."""

    slot: int
    start: int
    length: int


class Chunk(NamedTuple):
    """The rows of one span, for one attention call; mask (T, start + T), None for a sequence's
    beginning, which is causal."""

    rows: slice
    span: TokenSpan
    mask: torch.Tensor | None


class Run(NamedTuple):
    """Rows of single tokens in neighbouring slots: one attention call reads `read` places of each;
    mask (rows, 1, 1, read), None where all are visible."""

    rows: slice
    slots: slice
    read: int
    mask: torch.Tensor | None


@dataclass
class AttentionBatch:
    """What attention needs to know about one pass; made by `of_spans` or `of_slots`.

    positions: (size,), of every row. The rows come in this order: runs, chunks, padding after the
    first `tokens`.
    """

    config: GPTConfig
    cache: KVCache | None
    positions: torch.Tensor
    tokens: int
    index: torch.Tensor | None = None  # (tokens Hkv,): where their keys and values are kept
    runs: list[Run] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    last_rows: list[int] = field(default_factory=list)  # of each span

    @classmethod
    def of_spans(
        cls, spans: Sequence[TokenSpan], config: GPTConfig, device, cache: KVCache | None = None
    ) -> "AttentionBatch":
        """A pass over these spans, single tokens first, by slot; without a cache, whole sequences
        of which nothing is kept."""
        places = [span.start + i for span in spans for i in range(span.length)]
        tokens = len(places)
        positions = torch.tensor(places + [0] * (padded_size(tokens) - tokens), device=device)
        batch = cls(config, cache, positions, tokens)
        singles = 0
        if cache is not None:
            slots = torch.tensor([s.slot for s in spans for _ in range(s.length)], device=device)
            batch.index = flat_index(slots, positions[:tokens], cache)
            singles = len(list(takewhile(lambda span: span.length == 1, spans)))
            for _, group in groupby(range(singles), key=lambda i: spans[i].slot - i):
                some = list(group)
                rows, slot = slice(some[0], some[-1] + 1), spans[some[0]].slot
                read = max(spans[i].start for i in some) + 1
                mask = None
                if any(spans[i].start + 1 < read for i in some):
                    mask = single_masks(positions[rows], read, cache.dtype)
                batch.runs.append(Run(rows, slice(slot, slot + len(some)), read, mask))
        row = 0
        for i, span in enumerate(spans):
            if i >= singles:
                shape, mask = (span.length, span.start + span.length), None
                if span.start:
                    visible = torch.ones(shape, dtype=torch.bool, device=device).tril(span.start)
                    mask = as_bias(visible, cache.dtype)
                batch.chunks.append(Chunk(slice(row, row + span.length), span, mask))
            row += span.length
            batch.last_rows.append(row - 1)
        return batch

    @classmethod
    def of_slots(cls, positions: torch.Tensor, read: int, cache: KVCache) -> "AttentionBatch":
        """One token, at positions[i], for each of the first slots; `read` places are looked at,
        visible or not. Nothing is read on the host, so that a CUDA graph can hold it."""
        n = len(positions)
        run = Run(slice(n), slice(n), read, single_masks(positions, read, cache.dtype))
        index = flat_index(torch.arange(n, device=cache.device), positions, cache)
        return cls(cache.config, cache, positions, n, index, runs=[run])

    @property
    def size(self) -> int:
        return len(self.positions)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Keeps k, v (N, Hkv, K); q (N, H, K) attends to all that its sequence read: (N, H K)."""
        (N, H, K), parts = q.shape, []
        if self.cache is not None:
            keys, values = self.cache.keys[layer], self.cache.values[layer]
            keys.view(-1, K).index_copy_(0, self.index, k[: self.tokens].reshape(-1, K))
            values.view(-1, K).index_copy_(0, self.index, v[: self.tokens].reshape(-1, K))
        for rows, slots, read, mask in self.runs:
            mine = keys[slots, :, :read], values[slots, :, :read]  # (rows, Hkv, read, K)
            parts.append(self._sdpa(q[rows, :, None], *mine, mask, causal=False).flatten(1))
        for rows, span, mask in self.chunks:
            end = span.start + span.length
            mine = k[rows].transpose(0, 1), v[rows].transpose(0, 1)  # (Hkv, T, K)
            if span.start:
                mine = keys[span.slot, :, :end], values[span.slot, :, :end]
            one = q[rows].transpose(0, 1)[None], *(t[None] for t in mine)
            y = self._sdpa(*one, mask, causal=mask is None)  # (1, H, T, K)
            parts.append(y[0].transpose(0, 1).flatten(1))
        if self.tokens < N:
            parts.append(q.new_zeros(N - self.tokens, H * K))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _sdpa(self, q, k, v, mask: torch.Tensor | None, causal: bool) -> torch.Tensor:
        grouped = self.config.n_kv_head != self.config.n_head
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )


def as_bias(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where a key is visible, -inf where not: made once a pass, not in each layer."""
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, float("-inf"))


def single_masks(positions: torch.Tensor, read: int, dtype: torch.dtype) -> torch.Tensor:
    """(N, 1, 1, read): what single tokens at positions (N,) see."""
    visible = positions[:, None] >= torch.arange(read, device=positions.device)
    return as_bias(visible, dtype)[:, None, None]


def flat_index(slots: torch.Tensor, positions: torch.Tensor, cache: KVCache) -> torch.Tensor:
    """(N Hkv,): where the keys of N tokens lie in a layer's keys seen as (R Hkv S, K)."""
    heads = torch.arange(cache.config.n_kv_head, device=cache.device)
    row = slots[:, None] * cache.config.n_kv_head + heads  # (N, Hkv)
    return (row * cache.room + positions[:, None]).flatten()
