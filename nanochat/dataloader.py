"""Rows of ids from token shards, and endless batches of rows that one integer resumes.

A source of rows has row(i) -> (inputs, targets) for every i >= 0, max_length, and fixed_length
(whether every row has max_length ids). Which row stands where is a pure function of (seed, epoch,
shards): PackedRows for training on text and packed conversations, PaddedRows for fine-tuning with
one conversation a row.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from nanochat.common import ConfigError, DataError, print0
from nanochat.data.packing import (
    cut_at_turns,
    cut_tokens,
    pad_widths,
    padding_share,
    row_bounds,
    shuffled,
)
from nanochat.data.token_shards import (
    TokenShard,
    TokenShards,
    tokenize_conversations,
    tokenize_source,
)

__all__ = [
    "Batch",
    "PackedRows",
    "PaddedRows",
    "batches",
    "tokenize_conversations",
    "tokenize_source",
]

NO_LOSS = -1


@dataclass(frozen=True)
class Batch:
    """inputs, targets: (B, T) int64; a target of -1 has no loss. weights: (B, T) float32, a factor
    on each target's loss, or None."""

    inputs: torch.Tensor
    targets: torch.Tensor
    counted: int | None = None  # targets that have one, counted before the batch went to a GPU
    weights: torch.Tensor | None = None

    @property
    def num_targets(self) -> int:
        return int((self.targets >= 0).sum()) if self.counted is None else self.counted


class _Window(NamedTuple):
    """The rows first..last-1 of the endless sequence: the rows of some shards, mixed."""

    first: int
    last: int
    order: np.ndarray
    row_ends: list[int]  # of the shards, in the order before mixing
    shards: list[tuple[TokenShard, np.ndarray, np.ndarray]]  # shard, plan, row_bounds(plan)


class PackedRows:
    """Rows of T + 1 ids, filled with pieces of documents that each begin with <|bos|>.

    Each epoch has all rows once. The shards are shuffled, and the rows of `mix_shards` shards at a
    time among themselves, so the first steps need the plans of those shards only.

    mask_loss: no loss outside the shards' mask, nor on the <|bos|> between conversations.
    """

    fixed_length = True

    def __init__(
        self,
        shards: TokenShards,
        row_tokens: int,
        seed: int,
        mask_loss: bool = False,
        mix_shards: int = 16,
    ):
        if shards.num_tokens == 0:
            raise DataError(f"{shards.name}: found no token, expected at least one document")
        if mask_loss and any(shard.mask is None for shard in shards.shards):
            raise ConfigError(
                f"{shards.name}: text has no loss mask; mask_loss is for conversations"
            )
        self.shards = shards
        self.max_length = self.row_tokens = row_tokens
        self.seed = seed
        self.mask_loss = mask_loss
        self.mix_shards = mix_shards
        self._num_rows: dict[int, int] = {}
        self._num_pieces: dict[int, int] = {}
        self._window: _Window | None = None

    def __len__(self) -> int:
        """Rows of an epoch; plans all shards."""
        return sum(self._count(k) for k in range(len(self.shards.shards)))

    @property
    def padding_share(self) -> float:
        """The share of places in the rows that hold nothing."""
        num_rows = len(self)
        num_pieces = sum(self._num_pieces.values())
        return padding_share(self.shards.num_tokens, num_pieces, num_rows, self.row_tokens)

    @property
    def cut_share(self) -> float:
        """The share of tokens that stand in another row than their document's beginning."""
        cut = sum(cut_tokens(shard.offsets, self.row_tokens) for shard in self.shards.shards)
        return cut / self.shards.num_tokens

    def describe(self) -> str:
        """One line: rows, and what packing cost."""
        return (
            f"{len(self):,} rows of {self.row_tokens} tokens: {self.padding_share:.2%} padding, "
            f"{self.cut_share:.2%} of tokens continue a document that began in another row"
        )

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets), int64 (T,), of row `index` >= 0 of the endless sequence."""
        window = self._window
        if window is None or not window.first <= index < window.last:
            window = self._window = self._find(index)
        position = int(window.order[index - window.first])
        k = bisect_right(window.row_ends, position)
        shard, plan, bounds = window.shards[k]
        row = position - (window.row_ends[k - 1] if k else 0)
        return self._fill(shard, plan[bounds[row] : bounds[row + 1]])

    def _fill(self, shard: TokenShard, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = np.full(self.row_tokens + 1, self.shards.bos, dtype=np.int64)
        loss = np.zeros(self.row_tokens + 1, dtype=bool)
        end = 0
        for start, length, _ in pieces.tolist():
            begin, end = end + 1, end + 1 + length  # one place is left for <|bos|>
            ids[begin:end] = shard.tokens[start : start + length]
            if self.mask_loss:
                loss[begin:end] = shard.mask[start : start + length]
        if not self.mask_loss:
            loss[:end] = True
        return ids[:-1], np.where(loss[1:], ids[1:], NO_LOSS)

    def _count(self, k: int) -> int:
        if k not in self._num_rows:
            plan = self.shards.shards[k].plan(self.row_tokens)
            self._num_pieces[k] = len(plan)
            self._num_rows[k] = int(plan[-1, 2]) + 1 if len(plan) else 0
        return self._num_rows[k]

    def _find(self, index: int) -> _Window:
        """The window that row `index` is in; in the first epoch no shard after it is looked at."""
        epoch, first = 0, 0
        while True:
            order = shuffled(len(self.shards.shards), self.seed, epoch, 0).tolist()
            for i in range(0, len(order), self.mix_shards):
                group = order[i : i + self.mix_shards]
                last = first + sum(self._count(k) for k in group)
                if index < last:
                    return self._open(
                        first, last, group, shuffled(last - first, self.seed, epoch, 1, i)
                    )
                first = last
            epoch = index // len(self)
            first = epoch * len(self)

    def _open(self, first: int, last: int, group: list[int], order: np.ndarray) -> _Window:
        shards = []
        for k in group:
            shard = self.shards.shards[k]
            plan = shard.plan(self.row_tokens)
            shards.append((shard, plan, row_bounds(plan)))
        row_ends = np.cumsum([self._count(k) for k in group]).tolist()
        return _Window(first, last, order, row_ends, shards)


class PaddedRows:
    """One conversation a row, loss on what the assistant says; rows differ in length.

    A step's rows are a random sample of all conversations. Only inside the step are they sorted,
    longest first, so that a micro-batch holds rows of similar length, and ranks get micro-batches
    of similar length at the same time. A conversation is kept up to the last turn of the assistant
    that fits into seq_len inputs. `counts` says how many were cut there, and how many dropped
    because not one turn fits, or because there is none.
    """

    fixed_length = False

    def __init__(self, conversations: TokenShards, seq_len: int, seed: int, rows_per_step: int):
        self.max_length = seq_len
        self.seed = seed
        self.rows_per_step = rows_per_step
        self.bos = conversations.bos
        (self.shard,) = conversations.shards
        turn_ends = np.flatnonzero(self.shard.tokens == conversations.turn_end) + 1
        self._starts, self._ends, self.counts = cut_at_turns(self.shard.offsets, turn_ends, seq_len)
        counts = ", ".join(f"{n:,} {what}" for what, n in self.counts.items())
        print0(f"{conversations.name}: {counts} (rows of up to {seq_len:,} tokens)")
        if not len(self):
            raise DataError(
                f"{conversations.name}: no conversation has an assistant's turn within {seq_len:,} "
                f"tokens; expected at least one. Take longer rows, or look at the data"
            )
        self._epochs: dict[int, np.ndarray] = {}  # the orders that the step below needs
        self._step: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self._starts)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets), int64 (length,), of row `index` >= 0 of the endless sequence."""
        step, place = divmod(index, self.rows_per_step)
        if step != self._step[0]:
            self._step = (step, self._longest_first(step))
        k = self._step[1][place]
        start, end = self._starts[k], self._ends[k]
        targets = self.shard.tokens[start:end].astype(np.int64)
        inputs = np.concatenate([[self.bos], targets[:-1]])
        return inputs, np.where(self.shard.mask[start:end], targets, NO_LOSS)

    def _longest_first(self, step: int) -> np.ndarray:
        """The conversations of a step: the next rows_per_step of the shuffled epochs, sorted."""
        indices = np.arange(step * self.rows_per_step, (step + 1) * self.rows_per_step)
        epochs, places = np.divmod(indices, len(self))  # a step may reach into the next epoch
        known, self._epochs = self._epochs, {}
        for epoch in np.unique(epochs).tolist():
            if (order := known.get(epoch)) is None:
                order = shuffled(len(self), self.seed, epoch, 0)
            self._epochs[epoch] = order
        rows = np.array([self._epochs[e][i] for e, i in zip(epochs, places, strict=True)])
        return rows[np.argsort(self._starts[rows] - self._ends[rows], kind="stable")]


# ---------------------------------------------------------------- batches


def batches(
    rows,
    *,
    rows_per_step: int,
    device_batch_size: int,
    cursor: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    pad_id: int = 0,
) -> Iterator[Batch]:
    """This rank's micro-batches, without end.

    rows_per_step / (device_batch_size * world_size) of them are a step; step n (0, 1, ...) has the
    rows from cursor + n * rows_per_step on, over all ranks. A micro-batch is padded to the smallest
    of `pad_widths` that holds its longest row. On CUDA a thread prepares the whole next step, which
    is copied while the device computes. Raises ConfigError when the sizes do not divide.
    Example: 8 rows a step on 2 ranks, 2 at once: rank 1 gets rows [2, 3], [6, 7], [10, 11], ...
    """
    at_once = device_batch_size * world_size
    if at_once < 1:
        raise ConfigError(f"device batch size: found {device_batch_size}, expected at least 1")
    if rows_per_step < 1 or rows_per_step % at_once:
        below = rows_per_step // at_once * at_once
        nearest = f"{below} or {below + at_once}" if below > 0 else f"{at_once}"
        raise ConfigError(
            f"rows per step: found {rows_per_step}, expected a multiple of device batch size "
            f"{device_batch_size} x {world_size} ranks = {at_once}. Nearest: {nearest}"
        )

    widths = [rows.max_length] if rows.fixed_length else pad_widths(rows.max_length)

    def prepare() -> Iterator[Batch]:
        first = cursor + rank * device_batch_size
        while True:
            pairs = [rows.row(i) for i in range(first, first + device_batch_size)]
            yield _collate(pairs, widths, pad_id)
            first += at_once

    device = torch.device(device)
    if device.type == "cuda":
        return _ahead(prepare(), device, rows_per_step // at_once)
    return (_move(batch, device) for batch in prepare())


def _collate(pairs: list[tuple[np.ndarray, np.ndarray]], widths: list[int], pad_id: int) -> Batch:
    longest = max(len(inputs) for inputs, _ in pairs)
    width = next(width for width in widths if width >= longest)
    inputs = np.full((len(pairs), width), pad_id, dtype=np.int64)
    targets = np.full((len(pairs), width), NO_LOSS, dtype=np.int64)
    for i, (row_inputs, row_targets) in enumerate(pairs):
        inputs[i, : len(row_inputs)] = row_inputs
        targets[i, : len(row_targets)] = row_targets
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))


def _move(batch: Batch, device: torch.device) -> Batch:
    inputs, targets = (t.to(device, non_blocking=True) for t in (batch.inputs, batch.targets))
    return Batch(inputs, targets, batch.num_targets)


def _ahead(prepared: Iterator[Batch], device: torch.device, depth: int) -> Iterator[Batch]:
    """Batches on a CUDA device, copied from pinned memory; a thread makes the next `depth`."""
    # subtle: a thread starts out on device 0, where pinning would open a context from every rank.
    index = torch.cuda.current_device() if device.index is None else device.index

    def next_pinned() -> Batch:
        batch = next(prepared)
        return Batch(batch.inputs.pin_memory(), batch.targets.pin_memory(), batch.num_targets)

    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(index,)) as pool:
        pending = deque(pool.submit(next_pinned) for _ in range(depth))
        while True:
            pending.append(pool.submit(next_pinned))
            yield _move(pending.popleft().result(), device)
