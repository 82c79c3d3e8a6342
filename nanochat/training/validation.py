"""Bits per byte of held-out text."""

import math
from collections.abc import Iterable
from contextlib import closing
from itertools import islice

import torch

from nanochat.common import DataError, all_reduce_sum, rank_and_world
from nanochat.dataloader import NO_LOSS, Batch, batches, move
from nanochat.gpt import GPT
from nanochat.loss import LossFn


@torch.no_grad()
def bits_per_byte(
    model: GPT, batches: Iterable[Batch], num_batches: int, token_bytes, loss_fn=None
) -> tuple[float, int]:
    """(bits that the model needs for a byte of text, number of bytes), over all ranks: unlike the
    loss, a figure that does not depend on the tokenizer.

    token_bytes: (V,) bytes of each id (`Tokenizer.token_bytes()`), 0 for special ones, which are
    left out. loss_fn: a LossFn, compiled where that pays.
    Example: 2^13 ids of equal probability, on tokens of 4 bytes: 13 / 4 = 3.25.
    """
    token_bytes = torch.as_tensor(token_bytes, dtype=torch.int64, device=model.device)
    loss_fn = loss_fn or LossFn(model, compiled=False)
    precision = torch.float32 if model.device.type == "mps" else torch.float64
    sums = torch.zeros(2, dtype=precision, device=model.device)  # nats, bytes
    for batch in islice(batches, num_batches):
        batch = move(batch, model.device)
        sizes = torch.where(batch.targets >= 0, token_bytes[batch.targets.clamp(min=0)], 0)
        counted = torch.where(sizes > 0, batch.targets, NO_LOSS)  # (B, T)
        sums[0] += loss_fn(model, Batch(batch.inputs, counted))
        sums[1] += sizes.sum()
    nats, num_bytes = all_reduce_sum(sums).tolist()
    if num_bytes == 0:
        raise DataError("bits per byte: no text to measure. Is the validation split empty?")
    return nats / (math.log(2) * num_bytes), int(num_bytes)


def measure_rows(
    model: GPT, tokenizer, rows, num_tokens: int, device_batch_size: int, loss_fn=None
) -> tuple[float, int]:
    """bits_per_byte over about `num_tokens` tokens of rows (see dataloader.py)."""
    world_size = rank_and_world()[1]
    wanted = min(len(rows), max(1, num_tokens // rows.max_length))
    size = min(device_batch_size, max(1, wanted // world_size))
    at_once = size * world_size
    options = {"device": model.device, "pad_id": tokenizer.bos}
    with closing(batches(rows, rows_per_step=at_once, device_batch_size=size, **options)) as source:
        sizes = tokenizer.token_bytes()
        return bits_per_byte(model, source, wanted // at_once or 1, sizes, loss_fn)
