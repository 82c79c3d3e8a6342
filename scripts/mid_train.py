"""Midtraining: teaches the base model conversations, tools and multiple choice, in packed rows.

python -m scripts.mid_train
torchrun --standalone --nproc_per_node=8 -m scripts.mid_train
"""

from dataclasses import dataclass

from nanochat.common import print0
from nanochat.configurator import cli
from nanochat.dataloader import PackedRows
from nanochat.publishing.beginning import find_parent
from nanochat.publishing.train_and_report import train_and_report
from nanochat.training.config import StageConfig
from nanochat.training.stage import Stage, StageData
from tasks.catalog import tokenize_mixtures


@dataclass(frozen=True)
class Config(StageConfig):
    base_tag: str | None = None
    """Base model to begin with; default: the newest."""
    mixture: str = "smoltalk:1,mmlu:1,gsm8k:1,identity:2,spelling:2,arithmetic:1"
    """name[@source]:epochs, ...; source is a hub id, a file or a folder."""
    val_mixture: str = "smoltalk:0.1,gsm8k:0.3"
    """Held-out conversations for bits per byte."""
    total_batch_size: int = 524_288
    """Tokens of one step, over all ranks."""
    mask_loss: bool = False
    """Take the loss on what the assistant says alone."""
    go_on: float = 0.0
    """Chance that a conversation goes on with the next one, as far as a row has room."""
    warmdown: float = 1.0
    eval_every: int = 150


def main(config: Config) -> None:
    stage = Stage("mid", config, parent=find_parent(config, "base", config.base_tag))
    T = stage.model.config.sequence_len
    plan = stage.plan_batch(max(1, round(config.total_batch_size / T)), T)
    sources = "mid", config, stage.tokenizer, config.go_on, T - 1
    tokens, val_tokens, counts, fingerprint = tokenize_mixtures(*sources)
    rows = PackedRows(tokens, T, config.seed, config.mask_loss)
    val_rows = PackedRows(val_tokens, T, config.seed, mask_loss=True)
    print0(rows.describe())
    train_and_report(stage, StageData(rows, val_rows, fingerprint, counts), plan)


if __name__ == "__main__":
    cli(main, Config)
