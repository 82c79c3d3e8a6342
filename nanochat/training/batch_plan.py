"""How a step's rows are divided into ranks and micro-batches, and how many fit on the device."""

import sysconfig
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch

from nanochat.common import ConfigError, gather, print0, rank_and_world
from nanochat.cpp import NO_COMPILER, cpp_compiler
from nanochat.dataloader import Batch

CPU_MICRO_BATCH_TOKENS = 4096  # larger ones leave the cache and gain nothing
# Bytes that a token keeps for its gradients, by layer and unit of width, in 16-bit numbers: from
# depth 20 on an H100 (64.9 GB, 32 rows of 2,048).
ACTIVATION_BYTES, EAGER_ACTIVATION_BYTES = 33, 46
LOSS_BYTES, EAGER_LOSS_BYTES = 2e9, 8e9  # of a chunk of logits, with what is made of it
MEMORY_SHARE = 0.94  # of the usable memory; the rest is lost to fragments


@dataclass(frozen=True)
class BatchPlan:
    """A step of `rows_per_step` rows, over all ranks, in `accum_steps` micro-batches a rank."""

    rows_per_step: int
    device_batch: int
    accum_steps: int


def divide_rows(rows_per_step: int, ranks: int, largest: int) -> BatchPlan:
    """The plan at or next below rows_per_step, with micro-batches of up to `largest` rows.

    Example: 256 rows, 7 ranks, up to 32 at a time: 2 x 18 x 7 = 252.
    """
    per_rank = max(1, rows_per_step // ranks)
    accum_steps = -(-per_rank // largest)
    size = per_rank // accum_steps
    return BatchPlan(size * accum_steps * ranks, size, accum_steps)


def plan_batch(
    model, size: int | str, rows_per_step: int, row_tokens: int, loss_fn, compiled: bool, share=1.0
) -> BatchPlan:
    """The plan of a stage, printed. size: most rows of a micro-batch; "auto" on a GPU: as many as
    its memory should hold, tried with one, which also compiles. share: of the weights that a rank
    holds."""
    world = rank_and_world()[1]
    cuda = size == "auto" and model.device.type == "cuda"
    if cuda:
        size = rows_that_fit(model, usable_memory(model.device), row_tokens, compiled, share)
        if world > 1:
            size = divide_rows(rows_per_step, world, size).device_batch
            size = rows_that_fit_all_ranks(model, loss_fn, size, row_tokens)
    elif size == "auto":
        size = max(1, CPU_MICRO_BATCH_TOKENS // row_tokens)
    if size < 1:
        raise ConfigError(f"--device-batch-size {size}: at least 1 row")
    plan = divide_rows(rows_per_step, world, size)
    while cuda and world == 1 and peak_bytes(model, loss_fn, plan.device_batch, row_tokens) == inf:
        if plan.device_batch == 1:
            raise ConfigError(out_of_memory(1))
        plan = divide_rows(rows_per_step, world, plan.device_batch // 2)
    if plan.rows_per_step != rows_per_step:
        print0(f"{rows_per_step} rows a step do not divide: {plan.rows_per_step} rows a step")
    print0(
        f"{plan.rows_per_step} rows of up to {row_tokens} tokens a step = {plan.accum_steps} "
        f"micro-batches x {world} ranks x {plan.device_batch} rows"
    )
    return plan


def training_bytes(model, row_tokens: int, compiled: bool, share=1.0) -> tuple[float, float]:
    """An estimate of what training takes: (for weights, gradients, optimizer state and one chunk of
    logits; for the activations of each row of a micro-batch)."""
    c, width = model.config, model.compute_dtype.itemsize / 2
    tables = 2 * c.vocab_size * c.n_embd
    matrices = model.num_params() - tables
    fixed = 8 * model.num_params() + 4 * matrices + 8 * tables + 2 * width * matrices
    fixed = share * fixed + (LOSS_BYTES if compiled else EAGER_LOSS_BYTES)
    each = ACTIVATION_BYTES if compiled else EAGER_ACTIVATION_BYTES
    again = sum(block.recompute for block in model.model.layers)  # keep their input, but for one
    each = each * (c.n_layer - again + (again > 0)) + 2 * again
    return fixed, width * each * c.n_embd * row_tokens


def rows_that_fit(model, usable_bytes: float, row_tokens: int, compiled: bool, share=1.0) -> int:
    """The most rows with which training should fit; at least 1."""
    fixed, a_row = training_bytes(model, row_tokens, compiled, share)
    return max(1, int((MEMORY_SHARE * usable_bytes - fixed) // a_row))


def usable_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process has or can still get."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def peak_bytes(model, loss_fn, rows: int, row_tokens: int) -> float:
    """Of a forward and backward pass of `rows` rows on a GPU; inf: more than there are."""
    ids = torch.zeros(rows, row_tokens, dtype=torch.long, device=model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    try:
        loss_fn(model, Batch(ids, ids, ids.numel())).backward()
        peak = torch.cuda.max_memory_allocated(model.device)
    except torch.OutOfMemoryError:
        peak = inf
    model.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(model.device)
    return peak


def rows_that_fit_all_ranks(model, loss_fn, size: int, row_tokens: int) -> int:
    """At most `size`, by the memory that half of them take: a rank that failed alone would leave
    the others waiting."""
    half = -(-min(gather([size])) // 2)
    usable, before = usable_memory(model.device), torch.cuda.memory_allocated(model.device)
    peak = peak_bytes(model, loss_fn, half, row_tokens)
    if peak == inf:
        raise ConfigError(out_of_memory(half))
    # The optimizers' state is still to come: at most twice the weights that are there.
    rows = int((MEMORY_SHARE * usable - 3 * before) * half / (peak - before))
    return min(gather([max(1, min(size, rows))]))


def out_of_memory(size: int) -> str:
    less = f"--device-batch-size {size // 2}" if size > 1 else "a smaller --sequence-len or --depth"
    return f"out of GPU memory with --device-batch-size {size}; try {less}"


def can_compile(device: torch.device, wanted: bool) -> bool:
    """Whether Inductor compiles here; a printed line says why not."""
    if not wanted:
        reason = "--no-compile"
    elif device.type == "mps":
        reason = "Inductor does not compile for mps"
    elif not cpp_compiler():
        reason = NO_COMPILER
    elif device.type == "cuda" and not Path(sysconfig.get_path("include"), "Python.h").exists():
        reason = "Triton needs Python.h; install your Python's headers, e.g. python3-dev"
    else:
        return True
    print0(f"the model runs uncompiled, at least 1.4x slower: {reason}")
    return False
