"""Keys and values of the tokens that a model has already read, and attention to them.

A sequence has a slot of the cache, where attention reads it: nothing is gathered. Dimensions: N
tokens of one pass, sequence after sequence; R slots, each with room for S tokens; H heads, Hkv
key/value heads, K head_dim.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F

from nanochat.gpt import GPTConfig
from nanochat.inference.scheduler import Chunk

GROW_BY = 128  # room for tokens is allocated in multiples of this


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def padded_size(n: int) -> int:
    """Rows of a pass of n tokens: few sizes, because libraries keep a compiled product for each.

    Example: [padded_size(n) for n in (3, 9, 70)] == [3, 16, 128]
    """
    return n if n <= 8 else round_up(n, 8 if n <= 64 else 64)


class KVCache:
    """Per layer, keys and values (2, R, Hkv, S, K). It grows when `reserve` asks for more."""

    def __init__(self, config: GPTConfig, device, dtype: torch.dtype):
        self.config, self.device, self.dtype = config, torch.device(device), dtype
        self.slots = self.room = 0  # R, S
        shape = (2, 0, config.n_kv_head, 0, config.head_dim)
        self.layers = [torch.zeros(shape, dtype=dtype, device=device)] * config.n_layer
        self.addresses = [], []  # of each layer's keys, and values

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
        for i, old in enumerate(self.layers):
            _, R, Hkv, S, K = old.shape
            # zeros, because a masked NaN would still reach the output as 0 * NaN
            self.layers[i] = old.new_zeros(2, self.slots, Hkv, self.room, K)
            self.layers[i][:, :R, :, :S] = old
        self.addresses = tuple([layer[i].data_ptr() for layer in self.layers] for i in (0, 1))
        return True

    def copy(self, source: int, target: int, length: int) -> None:
        """Slot `target` gets the first `length` tokens of slot `source`."""
        for layer in self.layers:
            layer[:, target, :, :length] = layer[:, source, :, :length]


class AttentionCall(NamedTuple):
    """Rows that attend together: T tokens of one sequence, or one token (T = 1) of each of n
    neighbouring slots. They see at most the first `read` places of their slots.

    mask: (n, 1, T, read), added to the scores; None: the sequences begin here, which is causal.
    """

    rows: slice
    slots: slice
    read: int
    mask: torch.Tensor | None


class AttentionBatch:
    """What attention needs to know about one pass; made by `of_chunks` or `of_slots`.

    slots: of every token. positions: of every row; rows after the last token are padding. cache
    None: whole sequences, of which nothing is kept.
    """

    def __init__(self, cache: KVCache | None, slots: torch.Tensor, positions: torch.Tensor):
        self.cache, self.slots, self.positions = cache, slots, positions
        self.calls: list[AttentionCall] = []

    @classmethod
    def of_chunks(
        cls, chunks: Sequence[Chunk], device, cache: KVCache | None = None
    ) -> "AttentionBatch":
        """A pass over the tokens of these chunks."""
        slots = [chunk.slot for chunk in chunks for _ in chunk.tokens]
        places = [chunk.start + i for chunk in chunks for i in range(len(chunk.tokens))]
        places += [0] * (padded_size(len(places)) - len(places))
        slots, positions = (torch.tensor(numbers, device=device) for numbers in (slots, places))
        batch = cls(cache, slots, positions)

        def call_of(i: int) -> tuple[bool, int]:
            """The same for single tokens in neighbouring slots, and for no other chunks."""
            return chunks[i].single, chunks[i].slot - i if chunks[i].single else i

        row = 0
        for _, group in groupby(range(len(chunks)), call_of):
            some = [chunks[i] for i in group]
            end, slot = row + sum(len(chunk.tokens) for chunk in some), some[0].slot
            read = max(chunk.start + len(chunk.tokens) for chunk in some)
            batch._add_call(slice(row, end), slice(slot, slot + len(some)), read)
            row = end
        return batch

    @classmethod
    def of_slots(cls, positions: torch.Tensor, read: int, cache: KVCache) -> "AttentionBatch":
        """One token, at positions[i], for each of the first slots; `read` places are looked at,
        visible or not. Nothing is read on the host, so that a CUDA graph can hold it."""
        n = len(positions)
        batch = cls(cache, torch.arange(n, device=cache.device), positions)
        batch._add_call(slice(0, n), slice(0, n), read)
        return batch

    def _add_call(self, rows: slice, slots: slice, read: int) -> None:
        positions = self.positions[rows].view(slots.stop - slots.start, 1, -1, 1)
        mask = None
        if read > positions.shape[2]:
            visible = positions >= torch.arange(read, device=positions.device)
            mask = as_bias(visible, self.cache.dtype)
        self.calls.append(AttentionCall(rows, slots, read, mask))

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Keeps k, v (N, Hkv, K); q (N, H, K) attends to all that its sequence read: (N, H K)."""
        tokens, grouped, outputs = len(self.slots), k.shape[1] != q.shape[1], []
        if self.cache is not None:
            keys, values = self.cache.layers[layer]
            places = self.positions[:tokens]
            keys[self.slots, :, places], values[self.slots, :, places] = k[:tokens], v[:tokens]
        for rows, slots, read, mask in self.calls:
            shape = slots.stop - slots.start, -1  # (n, T)
            mine = [t[rows].unflatten(0, shape).transpose(1, 2) for t in (q, k, v)]
            if self.cache is not None:
                mine[1:] = keys[slots, :, :read], values[slots, :, :read]  # (n, Hkv, read, K)
            y = F.scaled_dot_product_attention(
                *mine, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
            )  # (n, H, T, K)
            outputs.append(y.transpose(1, 2).flatten(2).flatten(0, 1))
        if tokens < len(q):
            outputs.append(q.new_zeros(len(q) - tokens, q[0].numel()))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def as_bias(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where a key is visible, -inf where not: made once a pass, not in each layer."""
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, float("-inf"))
