"""Which optimizer has which parameters, their learning rates, and the schedule."""

from collections.abc import Callable

import torch

from nanochat.adamw import AdamW, NamedOptimizer
from nanochat.gpt import EMBEDDING, HEAD
from nanochat.muon import Muon
from nanochat.train import LoopState
from nanochat.training.config import StageConfig


def optimizer_of(name: str) -> str:
    """Which optimizer has the parameter of this name."""
    return "muon" if ".layers." in name else "adamw"


def build_optimizers(
    model, config: StageConfig, owned: dict[str, torch.Tensor] | None = None
) -> dict[str, NamedOptimizer]:
    """Muon for the block matrices, AdamW for embedding and head with lr / sqrt(D / 768); one that
    is both learns like the head. owned: what this rank updates, by name; default: all."""
    scale = config.lr_scale * (model.config.n_embd / 768) ** -0.5
    named = dict(model.named_parameters()) if owned is None else owned
    matrices = {name: p for name, p in named.items() if optimizer_of(name) == "muon"}
    rates = {EMBEDDING: config.embedding_lr, HEAD: config.unembedding_lr}
    if model.config.tie_word_embeddings:
        rates = {EMBEDDING: rates[HEAD]}
    vocab = [{"params": {n: named[n]}, "lr": lr * scale} for n, lr in rates.items()]
    adamw = AdamW(vocab, betas=(0.8, config.adamw_beta2))
    muon = Muon(
        [{"params": matrices, "lr": config.matrix_lr * config.lr_scale}],
        weight_decay=config.weight_decay,
        dtype=model.compute_dtype,
        iterations=config.muon_iterations,
        compiled=config.compile and model.device.type == "cuda",
    )
    return {"adamw": adamw, "muon": muon}


def trapezoid(progress: float, warmup: float, warmdown: float, final: float = 0.0) -> float:
    """Learning-rate factor: linear up over the first `warmup` fraction, 1, linear down to `final`
    over the last `warmdown` fraction. Example: trapezoid(0.9, 0, 0.2) == 0.5."""
    if progress < warmup:
        return progress / warmup
    if progress > 1 - warmdown:
        return final + (1 - final) * (1 - progress) / warmdown
    return 1.0


def make_schedule(config: StageConfig) -> Callable[[LoopState], dict]:
    """Learning rate: a trapezoid of progress. Muon's momentum: a rise from 0.85 to 0.95."""

    def schedule(state: LoopState) -> dict:
        lr = trapezoid(state.progress, config.warmup, config.warmdown, config.final_lr)
        missing = max(0.0, 1 - state.step / config.momentum_warmup) if config.momentum_warmup else 0
        return {"lr": lr, "momentum": 0.95 - 0.1 * missing}

    return schedule
