"""Supervised fine-tuning: one conversation a row, loss on what the assistant says.

python -m scripts.chat_sft
torchrun --standalone --nproc_per_node=8 -m scripts.chat_sft
"""

from dataclasses import dataclass

from nanochat.common import ConfigError
from nanochat.configurator import cli
from nanochat.dataloader import PaddedRows
from nanochat.publishing.beginning import find_parent
from nanochat.publishing.train_and_report import train_and_report
from nanochat.training.config import StageConfig
from nanochat.training.stage import Stage, StageData
from tasks.catalog import tokenize_mixtures


@dataclass(frozen=True)
class Config(StageConfig):
    parent: str = "mid"
    """Stage to begin with: mid or base."""
    parent_tag: str | None = None
    """Its model; default: the newest."""
    mixture: str = "smoltalk:0.02,arc-easy:1,arc-challenge:1,gsm8k:1,identity:1,spelling:0.02"
    """name[@source]:epochs, ...; source is a hub id, a file or a folder."""
    val_mixture: str = "smoltalk:0.05"
    """Held-out conversations for bits per byte."""
    examples_per_step: int = 32
    """Conversations of one step, over all ranks."""
    max_tokens: int | None = None
    """Longest row; longer conversations are cut at a turn. Default: the context."""
    lr_scale: float = 0.1
    warmdown: float = 1.0
    eval_every: int = 100


def main(config: Config) -> None:
    if config.parent not in ("base", "mid"):
        raise ConfigError(f"--parent {config.parent!r}: fine-tuning begins with mid or base")
    stage = Stage("sft", config, parent=find_parent(config, config.parent, config.parent_tag))
    context = stage.model.config.sequence_len
    T = context if config.max_tokens is None else config.max_tokens
    if not 0 < T <= context:
        raise ConfigError(f"--max-tokens {T}: expected 1 to the context, {context}")
    plan = stage.plan_batch(config.examples_per_step, T)
    tokens, val_tokens, counts, fingerprint = tokenize_mixtures("sft", config, stage.tokenizer)
    rows = PaddedRows(tokens, T, config.seed, plan.rows_per_step)
    val_rows = PaddedRows(val_tokens, T, config.seed, plan.rows_per_step)
    counts |= rows.counts
    train_and_report(stage, StageData(rows, val_rows, fingerprint, counts), plan)


if __name__ == "__main__":
    cli(main, Config)
