"""Speed of a whole training step (forward, loss, backward, optimizers) by depth, on random tokens.

    python -m bench.train                                    on whatever device is there
    python -m bench.train --depths 12 20 --sequence-len 2048

Prints a table of tokens/s, MFU (by GPT.flops_per_token) and peak memory; writes
bench/results/train-<machine>.json.
"""

import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from bench.record import write_record
from nanochat.common import choose_dtype, compute_init
from nanochat.configurator import cli
from nanochat.dataloader import Batch
from nanochat.gpt import GPT, GPTConfig
from nanochat.hardware import device_name, peak_flops, synchronize
from nanochat.loss import LossFn
from nanochat.training.batch_plan import can_compile, rows_that_fit, usable_memory
from nanochat.training.config import StageConfig
from nanochat.training.optimizers import build_optimizers


@dataclass(frozen=True)
class Config:
    """What to measure; sizes of 0 are filled in: the full model on CUDA, a small one elsewhere."""

    depths: tuple[int, ...] = ()
    """Numbers of layers, one line of the table each."""
    sequence_len: int = 0
    """Tokens in a row: 2048 on CUDA, else 256."""
    vocab_size: int = 0
    """65536 on CUDA, else 8192."""
    head_dim: int = 0
    """128 on CUDA, else 64."""
    device_batch_size: int | Literal["auto"] = "auto"
    """Rows at a time; auto: the largest that fits, up to 32, on CUDA, else 16."""
    accum_steps: int = 1
    """Micro-batches in a step."""
    steps: int = 10
    """Steps that are timed."""
    warm_steps: int = 3
    """Steps before them that are not: compilation."""
    compile: bool = True
    """Compile the model, as training does."""
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""


def fill(config: Config, device: torch.device) -> Config:
    """The config with the device's own sizes where it says none."""
    cuda = device.type == "cuda"
    sizes = {"depths": (12, 20), "sequence_len": 2048, "vocab_size": 65536, "head_dim": 128}
    if not cuda:
        sizes = {"depths": (2, 4, 6), "sequence_len": 256, "vocab_size": 8192, "head_dim": 64}
    given = asdict(config)
    return Config(**{**given, **{name: given[name] or size for name, size in sizes.items()}})


def peak_memory(device: torch.device) -> int:
    """Most bytes held: by the device since the last reset, or by this process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def time_steps(model, batches: list[Batch], config: Config, device: torch.device) -> list[float]:
    """Seconds of each timed step: all `batches` forward and backward, then the optimizers."""
    optimizers = build_optimizers(model, StageConfig()).values()
    loss_fn = LossFn(model, compiled=can_compile(device, config.compile))
    count = sum(b.targets.numel() for b in batches)
    seconds = []
    for _ in range(config.warm_steps + config.steps):
        synchronize(device)
        start = time.perf_counter()
        for batch in batches:
            (loss_fn(model, batch) / count).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds[config.warm_steps :]


def measure(depth: int, config: Config, device: torch.device) -> dict:
    """One line of the table."""
    T = config.sequence_len
    shape = GPTConfig.from_depth(depth, config.vocab_size, head_dim=config.head_dim, sequence_len=T)
    model = GPT(shape).to(device)
    model.compute_dtype = choose_dtype(device)[0]
    rows = config.device_batch_size
    if rows == "auto":
        rows = 16
        if device.type == "cuda":
            rows = min(32, rows_that_fit(model, usable_memory(device), T, config.compile))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    ids = torch.randint(0, config.vocab_size, (config.accum_steps, 2, rows, T), device=device)
    seconds = time_steps(model, [Batch(x, y) for x, y in ids], config, device)
    tokens_per_second = rows * T * config.accum_steps / statistics.median(seconds)
    peak, source = peak_flops(device, model.compute_dtype)
    return {
        "depth": depth,
        "parameters": model.num_params(),
        "sequence_len": T,
        "rows": rows,
        "seconds_per_step": {
            "median": statistics.median(seconds),
            "min": min(seconds),
            "max": max(seconds),
        },
        "tokens_per_second": tokens_per_second,
        "mfu": tokens_per_second * model.flops_per_token(T) / peak,
        "peak_flops": peak,
        "peak_flops_source": source,
        "peak_memory_bytes": peak_memory(device),
    }


def print_table(results: list[dict], title: str) -> None:
    names = ("depth", "parameters", "rows x T", "s a step", "tokens/s", "MFU", "peak memory")
    table = Table(title=title)
    for name in names:
        table.add_column(name, justify="right")
    for r in results:
        table.add_row(
            str(r["depth"]),
            f"{r['parameters']:,}",
            f"{r['rows']} x {r['sequence_len']}",
            f"{r['seconds_per_step']['median']:.4f}",
            f"{r['tokens_per_second']:,.0f}",
            f"{r['mfu']:.1%}",
            f"{r['peak_memory_bytes'] / 2**30:.2f} GiB",
        )
    Console().print(table)


def main(config: Config) -> None:
    device = compute_init(config.device_type)[-1]
    config = fill(config, device)
    results = [measure(depth, config, device) for depth in sorted(config.depths)]
    dtype = str(choose_dtype(device)[0]).removeprefix("torch.")
    machine = device_name(device)
    print_table(results, f"training step, {machine}, {dtype}")
    print(f"MFU is relative to {results[0]['peak_flops']:.3g} FLOP/s "
          f"({results[0]['peak_flops_source']})")  # fmt: skip
    write_record("train", config, device, {"compute_dtype": dtype, "results": results})


if __name__ == "__main__":
    cli(main, Config)
