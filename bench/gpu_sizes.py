"""What bench/gpu_check.py measures: the real model on a GPU, a toy on a CPU; its clock."""

import statistics
import time

import torch

from nanochat import hardware
from nanochat.common import choose_dtype
from nanochat.dataloader import Batch
from nanochat.gpt import GPT, GPTConfig


class Sizes:
    """What is measured: the real model on a GPU, a toy on a CPU."""

    def __init__(self, dry: bool):
        self.device = torch.device("cpu" if dry else "cuda")
        self.dtype = choose_dtype(self.device)[0]
        self.dry = dry
        self.depths = (1, 2) if dry else (12, 20)
        self.rows = (2, 4) if dry else (16, 32)
        if not dry and torch.cuda.get_device_properties(0).total_memory > 100e9:
            self.rows = (16, 32, 64)
        self.T = 64 if dry else 2048
        self.vocab_size = 320 if dry else 65536
        self.head_dim = 64 if dry else 128
        self.steps = 4 if dry else 8

    def config(self, depth: int, **overrides) -> GPTConfig:
        shape = {"sequence_len": self.T, **overrides}
        return GPTConfig.from_depth(depth, self.vocab_size, self.head_dim, **shape)

    def model(self, depth: int, **overrides) -> GPT:
        model = GPT(self.config(depth, **overrides)).to(self.device)
        model.compute_dtype = self.dtype
        return model

    def batch(self, rows: int, seed: int = 0) -> Batch:
        """Random ids, the same for every call."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, self.vocab_size, (rows, self.T + 1), generator=generator)
        ids = ids.to(self.device)
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), rows * self.T)

    def synchronize(self) -> None:
        hardware.synchronize(self.device)

    def peak_memory(self) -> float:
        """GB held at most since the last reset; of the process on a CPU."""
        if self.dry:
            return hardware.peak_rss() / 1e9
        return torch.cuda.max_memory_allocated() / 1e9

    def milliseconds(self, function, repeats: int = 10) -> float:
        """Median of `repeats` timed calls after two that are not."""
        times = []
        for _ in range(2 + repeats):
            self.synchronize()
            start = time.perf_counter()
            function()
            self.synchronize()
            times.append(1e3 * (time.perf_counter() - start))
        return round(statistics.median(times[2:]), 3)
