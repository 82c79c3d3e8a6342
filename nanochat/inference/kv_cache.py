"""Keys and values of the tokens that a model has already read, so that each new token costs one
token's work.

A sequence has a slot of the cache, and attention reads it there: nothing is gathered. Dimensions: N
tokens of one pass, of several sequences, one after another; R slots, each with room for S tokens; H
heads, Hkv key/value heads, K head_dim.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F

from nanochat.gpt import GPTConfig
from nanochat.inference.cpu_kernels import attend_singles, can_attend, rotate_and_keep

GROW_BY = 128  # room for tokens is allocated in multiples of this


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def padded_size(n: int) -> int:
    """Rows of a pass of n tokens: every size costs memory, for libraries keep a compiled product
    for each, so that few sizes are used.

    Example: [padded_size(n) for n in (3, 9, 70)] == [3, 16, 128]
    """
    return n if n <= 8 else round_up(n, 8 if n <= 64 else 64)


class TokenSpan(NamedTuple):
    """Tokens of one sequence in a pass: `length` of them, after `start` that slot `slot` holds."""

    slot: int
    start: int
    length: int


class KVCache:
    """Per layer, keys and values (R, Hkv, S, K). It grows when `reserve` asks for more.

    Example: cache = KVCache(config, "cpu", torch.float32); cache.reserve(2, 100);
    batch = AttentionBatch([TokenSpan(0, 0, 7), TokenSpan(1, 0, 5)], config, "cpu", cache);
    model.features(ids, batch)
    """

    def __init__(self, config: GPTConfig, device, dtype: torch.dtype):
        self.config, self.device, self.dtype = config, torch.device(device), dtype
        self.slots = self.room = 0  # R, S
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def reserve(self, slots: int, tokens: int) -> bool:
        """Makes room for `tokens` tokens in each of `slots` slots, keeping what is there; whether
        anything moved. Twice what there was at least, so that growing costs little in all."""
        if slots <= self.slots and tokens <= self.room:
            return False
        c, old_slots, old_room = self.config, self.slots, self.room
        if slots > old_slots:
            self.slots = max(slots, min(2 * old_slots, old_slots + 8))
        if tokens > old_room:
            most = round_up(c.sequence_len + 1, GROW_BY)
            self.room = max(round_up(tokens, GROW_BY), min(2 * old_room, most))
        shape = (self.slots, c.n_kv_head, self.room, c.head_dim)
        for tensors in (self.keys, self.values):
            for layer in range(c.n_layer):
                # zeros, because a masked NaN would still reach the output as 0 * NaN
                grown = torch.zeros(shape, dtype=self.dtype, device=self.device)
                if layer < len(tensors):
                    grown[:old_slots, :, :old_room] = tensors[layer]
                    tensors[layer] = grown
                else:
                    tensors.append(grown)
        return True

    def copy(self, source: int, target: int, length: int) -> None:
        """Slot `target` gets the first `length` tokens of slot `source`."""
        if source != target:
            for tensor in (*self.keys, *self.values):
                tensor[target, :, :length] = tensor[source, :, :length]


class Run(NamedTuple):
    """Single tokens, rows [row, row + count) of a pass, of neighbouring slots from `slot` on: one
    attention call reads `read` places of each; mask (count, 1, 1, read), none where all are
    visible."""

    row: int
    count: int
    slot: int
    read: int
    mask: torch.Tensor | None


class AttentionBatch:
    """What attention needs to know about one pass: `positions` (N,), and `attend` in each layer.

    `size` is the number of rows that the pass is padded to. Without a cache every span is a whole
    sequence, and nothing is kept.
    """

    def __init__(
        self, spans: Sequence[TokenSpan], config: GPTConfig, device, cache: KVCache | None = None
    ):
        assert cache is not None or all(span.start == 0 for span in spans)
        self.config, self.cache = config, cache
        self.device = torch.device(device)
        self.spans = spans
        self.tokens = sum(span.length for span in spans)
        self.size = padded_size(self.tokens)
        places = [p.start + i for p in spans for i in range(p.length)]
        self.positions = torch.tensor(
            places + [0] * (self.size - self.tokens), dtype=torch.int64, device=device
        )
        self.runs: list[Run] = []
        self.chunks: list[tuple[int, TokenSpan, torch.Tensor | None]] = []
        self.singles = 0  # rows, the first ones, that the CPU's own kernel takes care of
        if cache is not None and can_attend(self.device, cache.dtype, config.head_dim):
            lengths = [span.length for span in spans]
            self.singles = next((i for i, n in enumerate(lengths) if n > 1), len(lengths))
            self.single_slots = torch.tensor([p.slot for p in spans[: self.singles]])
            self.single_lengths = self.positions[: self.singles] + 1
        self._split()
        if cache is not None:
            assert all(p.slot < cache.slots and p.start + p.length <= cache.room for p in spans)
            slots = torch.tensor([p.slot for p in spans for _ in range(p.length)], device=device)
            self.index = flat_index(slots, self.positions[: self.tokens], cache)

    @classmethod
    def of_slots(cls, positions: torch.Tensor, read: int, cache: KVCache) -> "AttentionBatch":
        """One token, at positions[i], for each of the first slots; nothing is read on the host, so
        that a CUDA graph can hold it. `read` places are looked at, visible or not."""
        new = cls.__new__(cls)
        new.config, new.cache, new.device = cache.config, cache, cache.device
        new.size = new.tokens = len(positions)
        new.positions, new.chunks, new.singles = positions, [], 0
        visible = positions[:, None] >= torch.arange(read, device=cache.device)
        mask = as_bias(visible, cache.dtype)[:, None, None]
        new.runs = [Run(0, new.size, 0, read, mask)]
        new.index = flat_index(torch.arange(new.size, device=cache.device), positions, cache)
        return new

    def last_rows(self) -> list[int]:
        """The row of every span's last token."""
        ends, row = [], -1
        for span in self.spans:
            row += span.length
            ends.append(row)
        return ends

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Keeps k, v (N, Hkv, K); q (N, H, K) attends to all that its sequence read: (N, H K)."""
        N, H, K = q.shape
        if self.cache is not None:
            keys, values = self.cache.keys[layer], self.cache.values[layer]
            keys.view(-1, K).index_copy_(0, self.index, k[: self.tokens].reshape(-1, K))
            values.view(-1, K).index_copy_(0, self.index, v[: self.tokens].reshape(-1, K))
        if len(self.runs) == 1 and self.runs[0].count == N:
            return self._attend_run(self.runs[0], q, keys, values)
        out = q.new_zeros(N, H * K)
        if self.singles:
            places = self.single_slots, self.single_lengths
            mine = attend_singles(q[: self.singles], keys, values, *places)
            if self.singles == N:
                return mine
            out[: self.singles] = mine
        for run in self.runs:
            rows = slice(run.row, run.row + run.count)
            out[rows] = self._attend_run(run, q[rows], keys, values)
        for row, span, mask in self.chunks:
            rows = slice(row, row + span.length)
            if span.start == 0:
                mine = k[rows].transpose(0, 1), v[rows].transpose(0, 1)  # (Hkv, T, K)
            else:
                end = span.start + span.length
                mine = keys[span.slot, :, :end], values[span.slot, :, :end]
            y = self._sdpa(q[rows].transpose(0, 1)[None], *(t[None] for t in mine), mask)
            out[rows] = y[0].transpose(0, 1).flatten(1)
        return out

    def attend_at_once(self, layer: int, qkv: torch.Tensor, tables, eps: float) -> torch.Tensor:
        """The same from qkv (N, H + 2 Hkv, K) before it is rotated, where `singles` is all there
        is: tables are cos and sin of every position."""
        n, keys, values = self.singles, self.cache.keys[layer], self.cache.values[layer]
        places = self.single_slots, self.positions
        q = rotate_and_keep(qkv[:n], tables, *places, keys, values, eps)
        y = attend_singles(q, keys, values, self.single_slots, self.single_lengths)
        return y if n == self.size else F.pad(y, (0, 0, 0, self.size - n))

    def _attend_run(self, run: Run, q, keys, values) -> torch.Tensor:
        slots = slice(run.slot, run.slot + run.count)
        mine = keys[slots, :, : run.read], values[slots, :, : run.read]  # (count, Hkv, read, K)
        return self._sdpa(q[:, :, None], *mine, run.mask, causal=False).flatten(1)

    def _sdpa(self, q, k, v, mask: torch.Tensor | None, causal: bool = True) -> torch.Tensor:
        grouped = self.config.n_kv_head != self.config.n_head
        causal = causal and mask is None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )

    def _split(self) -> None:
        """Sorts the spans into runs of single tokens and longer chunks."""
        row, run = self.singles, []
        for span, following in pairwise([*self.spans[self.singles :], None]):
            single = self.cache is not None and span.length == 1
            if single:
                run.append(span)
                joins = following is not None and following.length == 1
                if not (joins and following.slot == span.slot + 1):
                    self.runs.append(self._make_run(row + 1 - len(run), run))
                    run = []
            else:
                self.chunks.append((row, span, self._chunk_mask(span)))
            row += span.length

    def _make_run(self, row: int, run: list[TokenSpan]) -> Run:
        read = max(span.start for span in run) + 1
        mask = None
        if any(span.start + 1 < read for span in run):
            visible = self.positions[row : row + len(run), None] >= torch.arange(
                read, device=self.device
            )
            mask = as_bias(visible, self.cache.dtype)[:, None, None]
        return Run(row, len(run), run[0].slot, read, mask)

    def _chunk_mask(self, span: TokenSpan) -> torch.Tensor | None:
        """(T, start + T): each token sees what came before it; None for a sequence's beginning."""
        if span.start == 0:
            return None
        shape = (span.length, span.start + span.length)
        visible = torch.ones(shape, dtype=torch.bool, device=self.device).tril(span.start)
        return as_bias(visible, self.cache.dtype)


def as_bias(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where a key is visible, -inf where not: made once a pass, not in each layer."""
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, float("-inf"))


def flat_index(slots: torch.Tensor, positions: torch.Tensor, cache: KVCache) -> torch.Tensor:
    """(N Hkv,): where the keys of N tokens lie in a layer's keys seen as (R Hkv S, K)."""
    heads = torch.arange(cache.config.n_kv_head, device=cache.device)
    row = slots[:, None] * cache.config.n_kv_head + heads  # (N, Hkv)
    return (row * cache.room + positions[:, None]).flatten()
