"""Midtraining: teaches the base model conversations, tools and multiple choice, in packed rows.

    python -m scripts.mid_train
    torchrun --standalone --nproc_per_node=8 -m scripts.mid_train

The loss is taken on all tokens; --mask-loss takes it on what the assistant says alone.
"""

from dataclasses import dataclass

from nanochat.checkpoint_manager import load_model
from nanochat.common import ConfigError, compute_cleanup, compute_init, print0
from nanochat.configurator import cli
from nanochat.dataloader import PackedRows, tokenize_conversations
from nanochat.report.report import remake
from nanochat.training.config import StageConfig
from nanochat.training.stage import StageData, find_resume, run_stage
from tasks.catalog import fingerprint, mixture


@dataclass(frozen=True)
class Config(StageConfig):
    base_tag: str | None = None
    """Base model to begin with; default: the newest."""
    base_step: int | None = None
    """Its step; default: the newest."""
    mixture: str = "smoltalk:1,mmlu:1,gsm8k:1,identity:2,spelling:2,arithmetic:1"
    """name[@source]:epochs, ...; source is a hub id, a file or a folder."""
    val_mixture: str = "smoltalk:0.1,gsm8k:0.3"
    """Held-out conversations for bits per byte."""
    total_batch_size: int = 524_288
    """Tokens of one step, over all ranks."""
    mask_loss: bool = False
    """Take the loss on what the assistant says alone."""
    warmdown: float = 1.0
    """Fraction of the steps over which the learning rate falls to final_lr."""
    eval_every: int = 150
    """Steps between bits-per-byte evaluations; 0: at the end alone, -1: never."""


def main(config: Config) -> None:
    *_, device = compute_init(config.device_type, config.seed, config.deterministic)
    if config.num_steps and config.target_seconds:
        raise ConfigError("give one horizon, not both of num_steps and target_seconds")
    model, tokenizer, parent = load_model(
        "base", device, "train", config.base_tag, config.base_step
    )
    tag, meta = config.model_tag or parent["tag"], None
    if resume_from := find_resume("mid", tag, config):
        model, tokenizer, meta = load_model(resume_from, device, "train")
    T = model.config.sequence_len
    parts = mixture(config.mixture, "train", config.seed, tokenizer.pieces())
    report = dict(parts.report())
    print0(", ".join(f"{name} {count:,}" for name, count in report.items()))
    train_tokens = tokenize_conversations(parts, tokenizer, name="mid mixture")
    rows = PackedRows(train_tokens, T, config.seed, config.mask_loss)
    held_out = mixture(config.val_mixture, "test", config.seed)
    val_tokens = tokenize_conversations(held_out, tokenizer, name="mid validation")
    val_rows = PackedRows(val_tokens, T, config.seed, mask_loss=True)
    print0(rows.describe())
    rows_per_step = max(1, round(config.total_batch_size / T))
    epoch = max(1, len(rows) // rows_per_step)
    run_stage(
        "mid",
        config,
        model,
        tokenizer,
        StageData(rows, val_rows, T, rows_per_step, epoch, fingerprint(parts), report),
        tag=tag,
        num_steps=config.num_steps or (None if config.target_seconds else epoch),
        resume_from=resume_from,
        meta=meta,
        parent=parent["path"],
    )
    remake(tag)
    compute_cleanup()


if __name__ == "__main__":
    cli(main, Config)
