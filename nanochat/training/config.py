"""What every training stage sets and derives: its settings, optimizers, schedule and batch plan."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from nanochat.adamw import AdamW
from nanochat.common import ConfigError, least_of_ranks, print0, rank_and_world
from nanochat.cpp import cpp_compiler
from nanochat.dataloader import Batch
from nanochat.loss import make_loss_fn
from nanochat.muon import Muon
from nanochat.train import LoopState, trapezoid

CPU_MICRO_BATCH_TOKENS = 4096  # larger ones leave the cache and gain nothing


@dataclass(frozen=True)
class StageConfig:
    """Settings that every training stage has. Each stage overrides some defaults."""

    model_tag: str = ""
    """Name of the run; default d<depth>, or the parent's."""
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""
    device_batch_size: int | Literal["auto"] = "auto"
    """Rows that one device computes at a time; auto: the largest that fits."""
    num_steps: int | None = None
    """Horizon in optimizer steps."""
    target_seconds: float | None = None
    """Horizon in seconds of training; becomes a number of steps once 20 steps have been timed."""
    embedding_lr: float = 0.2
    """AdamW learning rate of the embedding at width 768; scaled by 1/sqrt(width/768)."""
    unembedding_lr: float = 0.004
    """AdamW learning rate of the head at width 768; scaled likewise."""
    matrix_lr: float = 0.02
    """Muon learning rate of the block matrices."""
    lr_scale: float = 1.0
    """Factor on all three learning rates."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the block matrices."""
    warmup: float = 0.0
    """Fraction of the steps over which the learning rate rises."""
    warmdown: float = 0.4
    """Fraction of the steps over which the learning rate falls to final_lr."""
    final_lr: float = 0.0
    """Learning rate factor at the end."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    eval_every: int = 250
    """Steps between bits-per-byte evaluations; 0: at the end alone, -1: never."""
    eval_tokens: int = 10 * 524_288
    """Validation tokens of one evaluation."""
    save_every: int = 1000
    """Steps between checkpoints; 0: at the end alone."""
    keep_last: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""
    mirror: str = ""
    """Copy and verify every save in the background: a folder, or hf://user/repo."""
    resume: bool = False
    """Continue the run of this tag from its newest checkpoint, if it has one."""
    fresh: bool = False
    """Move an existing run of this tag aside and start anew."""
    compile: bool = True
    """Compile the model with Inductor (on a CPU that needs a C++ compiler)."""
    fp8: bool = False
    """Train the blocks with 8-bit products (CUDA sm89 and newer); faster from depth 20 or so."""
    deterministic: bool = False
    """On CUDA: bit-exact kernels, slower."""
    seed: int = 42
    """Of data order and initial weights."""


def build_optimizers(model, config: StageConfig) -> dict[str, torch.optim.Optimizer]:
    """Muon for the block matrices, AdamW for embedding and head with lr / sqrt(D / 768)."""
    scale = config.lr_scale * (model.config.n_embd / 768) ** -0.5
    named = dict(model.named_parameters())
    matrices = {name: p for name, p in named.items() if ".layers." in name}
    embedding = {name: p for name, p in named.items() if name.startswith("model.embed_tokens")}
    head = {name: p for name, p in named.items() if name.startswith("lm_head")}
    rates = ((embedding, config.embedding_lr), (head, config.unembedding_lr))
    adamw = AdamW([{"params": params, "lr": lr * scale} for params, lr in rates])
    half = torch.float16 if model.compute_dtype == torch.float16 else torch.bfloat16
    muon = Muon(
        [{"params": matrices, "lr": config.matrix_lr * config.lr_scale}],
        weight_decay=config.weight_decay,
        dtype=torch.float32 if model.compute_dtype == torch.float32 else half,
        compiled=config.compile and model.device.type == "cuda",
    )
    return {"adamw": adamw, "muon": muon}


def make_schedule(config: StageConfig) -> Callable[[LoopState], dict]:
    """Learning rate: a trapezoid of progress. Muon's momentum: 0.85 to 0.95 over 300 steps."""

    def schedule(state: LoopState) -> dict:
        lr = trapezoid(state.progress, config.warmup, config.warmdown, config.final_lr)
        return {"lr": lr, "momentum": 0.85 + 0.1 * min(1.0, state.step / 300)}

    return schedule


def can_compile(device: torch.device, wanted: bool) -> bool:
    """Whether Inductor compiles here; a printed line says why not."""
    if not wanted:
        print0("the model runs uncompiled: --no-compile")
    elif device.type == "mps":
        print0("the model runs uncompiled on mps")
    elif device.type == "cpu" and not cpp_compiler():
        print0(
            "the model runs uncompiled, about 1.4x slower: no C++ compiler found (looked for $CXX, "
            "g++, clang++, c++); install one, e.g. the package g++ or the Xcode command line tools"
        )
    else:
        return True
    return False


def largest_that_fits(model, rows: int, row_tokens: int) -> int:
    """The largest micro-batch, halving from `rows`, whose forward and backward pass fit on CUDA."""
    loss_fn = make_loss_fn(model, compiled=False)
    while True:
        try:
            ids = torch.zeros(rows, row_tokens, dtype=torch.long, device=model.device)
            loss_fn(model, Batch(ids, ids))[0].backward()
            return rows
        except torch.OutOfMemoryError as error:
            if rows == 1:
                raise ConfigError(out_of_memory(1)) from error
            rows //= 2
        finally:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()


def out_of_memory(size: int) -> str:
    smaller = (
        f"--device-batch-size {size // 2}" if size > 1 else "a smaller --sequence-len or --depth"
    )
    return f"out of GPU memory with --device-batch-size {size}; try {smaller}"


def plan_batch(model, config: StageConfig, rows_per_step: int, row_tokens: int) -> tuple[int, int]:
    """(rows per step, rows per micro-batch) that divide evenly; prints what it rounds."""
    world = rank_and_world()[1]
    per_rank = max(1, round(rows_per_step / world))
    size = config.device_batch_size
    if size == "auto" and model.device.type == "cuda":
        size = least_of_ranks(largest_that_fits(model, per_rank, row_tokens), model.device)
    elif size == "auto":
        size = max(1, CPU_MICRO_BATCH_TOKENS // row_tokens)
    if size < 1:
        raise ConfigError(f"--device-batch-size {size}: at least 1 row")
    size = min(size, per_rank)
    planned = math.ceil(per_rank / size) * size * world
    if planned != rows_per_step:
        print0(
            f"{rows_per_step} rows a step do not divide into {world} ranks x {size} rows: "
            f"{planned} rows a step"
        )
    print0(
        f"{planned} rows of up to {row_tokens} tokens a step = {planned // (size * world)} "
        f"micro-batches x {world} ranks x {size} rows"
    )
    return planned, size
