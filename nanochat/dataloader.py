"""Rows of ids from token shards, and endless batches of rows that one integer resumes.

Rows have row(i) -> (inputs, targets) for every i >= 0, max_length, and fixed_length (whether every
row has max_length ids). Their order is a pure function of (seed, epoch, shards). PackedRows are for
text and midtraining, PaddedRows for fine-tuning.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch

from nanochat.common import ConfigError, DataError, print0, rank_and_world
from nanochat.data.packing import cut_at_turns, of_epochs, pad_widths, row_bounds, shuffled
from nanochat.data.token_shards import TokenShards, tokenize_source  # noqa: F401

NO_LOSS = -1
MIXED_SHARDS = 16


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


class PackedRows:
    """Rows of T + 1 ids, filled with pieces of documents that each begin with <|bos|>.

    Each epoch has all rows once. The shards are shuffled, and the rows of MIXED_SHARDS shards at a
    time among themselves, so that the first steps need only their plans. mask_loss: no loss outside
    the shards' mask, nor on the <|bos|> between conversations.
    """

    fixed_length = True

    def __init__(self, shards: TokenShards, row_tokens: int, seed: int, mask_loss: bool = False):
        if shards.num_tokens == 0:
            raise DataError(
                f"{shards.name}: found no token, expected at least one document. Add text: of two "
                f"documents one is for validation, of a single one the end"
            )
        if mask_loss and any(shard.mask is None for shard in shards.shards):
            raise ConfigError(f"{shards.name}: mask_loss is for conversations; text has no mask")
        self.shards, self.max_length, self.seed = shards, row_tokens, seed
        self.mask_loss = mask_loss
        self._sizes = {}  # (rows, pieces) of the shards seen so far
        # The window: rows first..last-1 of the endless sequence, each as (shard, begin and end of
        # its pieces in the shard's plan).
        self._first = self._last = 0
        self._rows = np.empty((0, 3), np.int64)
        self._plans = {}

    def __len__(self) -> int:
        """Rows of an epoch; plans all shards."""
        return sum(self._size(k)[0] for k in range(len(self.shards.shards)))

    def describe(self) -> str:
        """One line: rows, and what packing cost."""
        T, num_tokens, num_rows = self.max_length, self.shards.num_tokens, len(self)
        num_pieces = sum(pieces for _, pieces in self._sizes.values())
        padding = 1 - (num_tokens + num_pieces) / (num_rows * (T + 1))
        lengths = np.concatenate([np.diff(shard.offsets) for shard in self.shards.shards])
        cut = np.maximum(lengths - T, 0).sum() / num_tokens
        return (
            f"{num_rows:,} rows of {T} tokens: {padding:.2%} padding, "
            f"{cut:.2%} of tokens continue a document that began in another row"
        )

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets), each int64 (T,)."""
        if not self._first <= index < self._last:
            self._move_window(index)
        k, first_piece, last_piece = self._rows[index - self._first].tolist()
        shard = self.shards.shards[k]
        ids = np.full(self.max_length + 1, self.shards.bos, dtype=np.int64)
        loss = np.full(self.max_length + 1, not self.mask_loss)
        end = 0
        for start, length, _ in self._plans[k][first_piece:last_piece].tolist():
            begin, end = end + 1, end + 1 + length  # one place is left for <|bos|>
            ids[begin:end] = shard.tokens[start : start + length]
            if self.mask_loss:
                loss[begin:end] = shard.mask[start : start + length]
        loss[end:] = False
        return ids[:-1], np.where(loss[1:], ids[1:], NO_LOSS)

    def _size(self, k: int) -> tuple[int, int]:
        if k not in self._sizes:
            plan = self.shards.shards[k].plan(self.max_length)
            self._sizes[k] = len(row_bounds(plan)) - 1, len(plan)
        return self._sizes[k]

    def _move_window(self, index: int) -> None:
        """To where row `index` is; in the first epoch, later shards are not needed."""
        epoch, first = 0, 0
        while True:
            order = shuffled(len(self.shards.shards), self.seed, epoch, 0).tolist()
            for i in range(0, len(order), MIXED_SHARDS):
                group = order[i : i + MIXED_SHARDS]
                last = first + sum(self._size(k)[0] for k in group)
                if index < last:
                    self._first, self._last = first, last
                    self._plans = {k: self.shards.shards[k].plan(self.max_length) for k in group}
                    bounds = [(k, row_bounds(plan)) for k, plan in self._plans.items()]
                    rows = [np.stack([np.full(len(b) - 1, k), b[:-1], b[1:]], 1) for k, b in bounds]
                    mixed = shuffled(last - first, self.seed, epoch, 1, i)
                    self._rows = np.concatenate(rows)[mixed]
                    return
                first = last
            epoch = index // len(self)
            first = epoch * len(self)


class PaddedRows:
    """One conversation a row, loss on what the assistant says; rows differ in length.

    A step's rows are a random sample of all conversations, sorted longest first, so that a
    micro-batch holds rows of similar length. A conversation is kept up to the last turn of the
    assistant that fits into seq_len inputs; `counts`: how many were cut or dropped.
    """

    fixed_length = False

    def __init__(self, conversations: TokenShards, seq_len: int, seed: int, rows_per_step: int):
        self.max_length, self.seed, self.rows_per_step = seq_len, seed, rows_per_step
        self.bos = conversations.bos
        (self.shard,) = conversations.shards
        turn_ends = np.flatnonzero(self.shard.tokens == conversations.turn_end) + 1
        self._starts, self._ends, self.counts = cut_at_turns(self.shard.offsets, turn_ends, seq_len)
        counts = ", ".join(f"{n:,} {what}" for what, n in self.counts.items())
        print0(f"{conversations.name}: {counts} (rows of up to {seq_len:,} tokens)")
        if not len(self):
            raise DataError(
                f"{conversations.name}: no conversation has a turn of the assistant within "
                f"{seq_len:,} tokens. Take longer rows"
            )
        self._step = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self._starts)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets), each int64 (length,)."""
        n = self.rows_per_step
        step, place = divmod(index, n)
        if step != self._step[0]:  # which may reach into the next epoch
            rows = of_epochs(len(self), step * n, n, self.seed)
            longest_first = np.argsort(self._starts[rows] - self._ends[rows], kind="stable")
            self._step = step, rows[longest_first]
        k = self._step[1][place]
        start, end = self._starts[k], self._ends[k]
        targets = self.shard.tokens[start:end].astype(np.int64)
        inputs = np.concatenate([[self.bos], targets[:-1]])
        return inputs, np.where(self.shard.mask[start:end], targets, NO_LOSS)


def batches(
    rows,
    *,
    rows_per_step: int,
    device_batch_size: int,
    cursor: int = 0,
    device: torch.device | str = "cpu",
    pad_id: int = 0,
) -> Iterator[Batch]:
    """This rank's micro-batches, without end.

    rows_per_step / (device_batch_size * ranks) of them are a step; step n (0, 1, ...) has the rows
    from cursor + n * rows_per_step on, over all ranks. On CUDA a thread prepares the whole next
    step, which is copied while the device computes.
    Example: 8 rows a step on 2 ranks, 2 at once: rank 1 gets rows [2, 3], [6, 7], [10, 11], ...
    """
    rank, world_size = rank_and_world()
    at_once = device_batch_size * world_size
    assert rows_per_step % at_once == 0, f"{rows_per_step} rows do not divide by {at_once}"
    widths = [rows.max_length] if rows.fixed_length else pad_widths(rows.max_length)
    prepared = (
        collate([rows.row(i) for i in range(first, first + device_batch_size)], widths, pad_id)
        for first in count(cursor + rank * device_batch_size, at_once)
    )
    device = torch.device(device)
    if device.type == "cuda":
        return _prefetch(prepared, device, rows_per_step // at_once)
    return (move(batch, device) for batch in prepared)


def collate(
    rows: Sequence[tuple], widths: list[int], pad_id: int, num_rows: int = 0, weighted: bool = False
) -> Batch:
    """Rows (inputs, targets), with weights if `weighted`, padded to the smallest of `widths` that
    holds the longest, and with rows without targets to `num_rows` of them."""
    longest = max((len(inputs) for inputs, *_ in rows), default=1)
    shape = max(num_rows, len(rows)), next(width for width in widths if width >= longest)
    arrays = [np.full(shape, pad_id, np.int64), np.full(shape, NO_LOSS, np.int64)]
    arrays += [np.zeros(shape, np.float32)] * weighted
    for i, row in enumerate(rows):
        for array, values in zip(arrays, row, strict=True):
            array[i, : len(values)] = values
    inputs, targets, *weights = map(torch.from_numpy, arrays)
    return Batch(inputs, targets, int((targets >= 0).sum()), *weights)


def move(batch: Batch, device: torch.device) -> Batch:
    tensors = batch.inputs, batch.targets, batch.weights
    inputs, targets, weights = (
        t if t is None else t.to(device, non_blocking=True) for t in tensors
    )
    return Batch(inputs, targets, batch.num_targets, weights)


def _prefetch(prepared: Iterator[Batch], device: torch.device, depth: int) -> Iterator[Batch]:
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
            yield move(pending.popleft().result(), device)
