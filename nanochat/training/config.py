"""The settings that every training stage has."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro

from nanochat.common import ConfigError


@dataclass(frozen=True)
class StageConfig:
    """A stage overrides some defaults."""

    model_tag: str = ""
    """Name of the run; default d<depth>, or the parent's."""
    from_: Annotated[str, tyro.conf.arg(name="from")] = ""
    """Begin with this model instead: hf://user/model, a folder, or a stage with or without :tag."""
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""
    device_batch_size: int | Literal["auto"] = "auto"
    """Most rows that one device computes at a time; auto: as many as fit."""
    max_malformed: float = 0.0
    """Share of the data's rows that may be malformed; they are left out and counted."""
    num_steps: int | None = None
    """Horizon in optimizer steps."""
    target_seconds: float | None = None
    """Horizon in seconds of training: a number of steps, once 20 have been timed."""
    embedding_lr: float = 0.2
    """AdamW learning rate of the embedding at width 768; scaled by 1/sqrt(width/768)."""
    unembedding_lr: float = 0.004
    """AdamW learning rate of the head at width 768; scaled likewise."""
    adamw_beta2: float = 0.95
    """Decay of AdamW's squared gradients; near 1 for small steps."""
    matrix_lr: float = 0.02
    """Muon learning rate of the block matrices."""
    muon_iterations: int = 5
    """Of Muon's orthogonalisation; 3 are enough for tiny models."""
    momentum_warmup: int = 300
    """Steps over which Muon's momentum rises from 0.85 to 0.95."""
    lr_scale: float = 1.0
    """Factor on all learning rates."""
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
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""
    mirror: str = ""
    """Copy and verify every save in the background: a folder, or hf://user/repo."""
    track: Literal["wandb", "trackio", "tensorboard"] | None = None
    """Send the metrics there."""
    resume: bool = False
    """Continue the run of this tag from its newest checkpoint, if it has one."""
    fresh: bool = False
    """Move an existing run of this tag aside and start anew."""
    document_mask: bool = False
    """Documents packed into one row do not see each other; for rows of many short ones."""
    share_letter_cases: bool = False
    """A token's embedding learns with those of the same text in other letter cases."""
    sampled_ids: int = 0
    """Ids that a training loss is over, the targets and a sample; faster on a CPU. 0: all."""
    compile: bool = True
    """Compile the model with Inductor (on a CPU that needs a C++ compiler)."""
    fp8: bool = False
    """Train the blocks with 8-bit products (CUDA sm89 and newer); faster from depth 20 or so."""
    deterministic: bool = False
    """On CUDA: bit-exact kernels, slower."""
    shard: bool = False
    """With several ranks: hold no whole copy of weights and gradients, for large models."""
    shard_group: int = 0
    """Ranks that share one set of weights and optimizer state; 0: all, with --shard a node's."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which gradients travel between ranks; sums are float32. bfloat16 for slow networks."""
    checkpoint_blocks: int = 0
    """Blocks computed again in the backward pass, to save memory."""
    seed: int = 42
    """Of data order and initial weights."""


def check_settings(stage: str, config: StageConfig, device: torch.device) -> None:
    """Raises ConfigError on what contradicts itself, or cannot be done on the device."""
    horizons = ("num_steps", "target_tokens", "target_flops", "target_seconds")
    given = [name for name in horizons if getattr(config, name, None) is not None]
    if len(given) > 1:
        raise ConfigError(f"give one horizon, not {len(given)}: {', '.join(given)}")
    if config.keep_last < 1:
        raise ConfigError(f"--keep-last {config.keep_last}: the newest checkpoint stays, at least")
    if config.fp8 and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        raise ConfigError("--fp8 needs a GPU with 8-bit products (sm89 or newer); leave it out")
    if config.sampled_ids < 0:
        raise ConfigError(f"--sampled-ids {config.sampled_ids}: 0 takes all, or a number of ids")
    if config.sampled_ids and stage == "rl":
        raise ConfigError("--sampled-ids: rl compares probabilities over all ids; leave it out")
    if config.shard and stage == "rl":
        raise ConfigError("--shard: rl samples with whole weights on every device; leave it out")
