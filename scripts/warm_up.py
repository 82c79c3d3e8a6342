"""Compiles what training and decoding on a CPU need, beside stages that leave a core idle.

    python -m scripts.warm_up --depth=3 --head-dim=64 --sequence-len=256 --tie-word-embeddings

The flags are base_train's. All that stays is in the caches of compiled code: of PyTorch, and under
$NANOCHAT_BASE_DIR. A training of this shape waits for it, finds it there and starts sooner.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from nanochat.common import choose_dtype, compute_init
from nanochat.configurator import cli
from nanochat.cpp import processor
from nanochat.dataloader import Batch
from nanochat.files import base_dir, locked
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.cpu_decoder import library
from nanochat.loss import LossFn
from nanochat.training.batch_plan import CPU_MICRO_BATCH_TOKENS, can_compile


@dataclass(frozen=True)
class Config:
    depth: int = 20
    """Layers."""
    width: int | None = None
    """As in base_train."""
    head_dim: int = 128
    """Width of an attention head."""
    sequence_len: int = 2048
    """Context, in tokens."""
    tie_word_embeddings: bool = False
    """One matrix is embedding and head."""
    vocab_size: int = 8192
    """Of the tokenizer, which may still be trained."""
    document_mask: bool = False
    """As in training."""
    sampled_ids: int = 0
    """As in training; the loss over all ids is compiled, too."""


def main(config: Config) -> None:
    *_, device = compute_init()
    if device.type != "cpu" or not can_compile(device, True):
        return
    T, tied = config.sequence_len, config.tie_word_embeddings
    sizes = config.depth, config.vocab_size, config.head_dim, config.width
    shape = GPTConfig.from_depth(*sizes, sequence_len=T, tie_word_embeddings=tied)
    model = GPT(shape).to(device)
    model.compute_dtype = choose_dtype(device)[0]
    model.document_start = 0 if config.document_mask else None
    loss_fn = LossFn(model, compiled=True, sampled_ids=config.sampled_ids)
    ids = torch.zeros(max(1, CPU_MICRO_BATCH_TOKENS // T), T, dtype=torch.long)
    # subtle: all under the lock, so that no step is timed beside a compiler
    with locked(base_dir() / "warm-up"):
        with ThreadPoolExecutor(1) as beside:
            beside.submit(library, processor())
            loss_fn(model, Batch(ids, ids)).backward()
            loss_fn.sampled_ids = 0
            loss_fn(model, Batch(ids, ids)).backward()
        os._exit(0)  # at once: a compiler's tidying up would run beside the steps, too


if __name__ == "__main__":
    cli(main, Config)
