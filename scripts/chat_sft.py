"""Supervised fine-tuning: one conversation a row, loss on what the assistant says.

python -m scripts.chat_sft
torchrun --standalone --nproc_per_node=8 -m scripts.chat_sft
"""

from dataclasses import dataclass

from nanochat.checkpoint_manager import load_model
from nanochat.common import ConfigError, compute_cleanup, compute_init, print0
from nanochat.configurator import cli
from nanochat.dataloader import PaddedRows, tokenize_conversations
from nanochat.report.report import remake
from nanochat.training.config import StageConfig
from nanochat.training.stage import StageData, find_resume, run_stage
from tasks.catalog import fingerprint, mixture


@dataclass(frozen=True)
class Config(StageConfig):
    parent: str = "mid"
    """Stage to begin with: mid or base."""
    parent_tag: str | None = None
    """Its model; default: the newest."""
    parent_step: int | None = None
    """Its step; default: the newest."""
    mixture: str = "smoltalk:0.02,arc-easy:1,arc-challenge:1,gsm8k:1,identity:1,spelling:0.02"
    """name[@source]:epochs, ...; source is a hub id, a file or a folder."""
    val_mixture: str = "smoltalk:0.05"
    """Held-out conversations for bits per byte."""
    examples_per_step: int = 32
    """Conversations of one step, over all ranks."""
    max_tokens: int | None = None
    """Longest row; a longer conversation is cut at a turn. Default: the model's context."""
    lr_scale: float = 0.1
    """Factor on all three learning rates."""
    warmdown: float = 1.0
    """Fraction of the steps over which the learning rate falls to final_lr."""
    eval_every: int = 100
    """Steps between bits-per-byte evaluations; 0: at the end alone, -1: never."""


def main(config: Config) -> None:
    *_, device = compute_init(config.device_type, config.seed, config.deterministic)
    if config.num_steps and config.target_seconds:
        raise ConfigError("give one horizon, not both of num_steps and target_seconds")
    if config.parent not in ("base", "mid"):
        raise ConfigError(f"--parent {config.parent!r}: fine-tuning begins with mid or base")
    wanted = config.parent_tag, config.parent_step
    model, tokenizer, parent = load_model(config.parent, device, "train", *wanted)
    tag, meta = config.model_tag or parent["tag"], None
    if resume_from := find_resume("sft", tag, config):
        model, tokenizer, meta = load_model(resume_from, device, "train")
    T = config.max_tokens or model.config.sequence_len
    if model.config.sequence_len < T:
        raise ConfigError(f"--max-tokens {T} is beyond the context, {model.config.sequence_len}")
    parts = mixture(config.mixture, "train", config.seed, tokenizer.pieces())
    print0(", ".join(f"{name} {count:,}" for name, count in parts.report()))
    tokens = tokenize_conversations(parts, tokenizer, name="SFT mixture")
    rows = PaddedRows(tokens, T, config.seed, config.examples_per_step)
    held_out = mixture(config.val_mixture, "test", config.seed)
    val_tokens = tokenize_conversations(held_out, tokenizer, name="SFT validation")
    val_rows = PaddedRows(val_tokens, T, config.seed, config.examples_per_step)
    epoch = max(1, len(rows) // config.examples_per_step)
    report = {**dict(parts.report()), **rows.counts}
    data = StageData(rows, val_rows, T, config.examples_per_step, epoch, fingerprint(parts), report)
    run_stage(
        "sft",
        config,
        model,
        tokenizer,
        data,
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
