"""Which checkpoint a run continues from, and which settings may differ from then."""

import os
import time
from dataclasses import asdict
from pathlib import Path

from nanochat.checkpoint.index import available_checkpoints, checkpoint_dir, find_checkpoint
from nanochat.common import ConfigError, print0
from nanochat.training.config import StageConfig

# Settings that a resumed run may change without a printed line, and those that it may not change.
FREE = ("resume", "fresh", "mirror", "device_type", "compile", "keep_last", "keep_every")
FIXED = ("depth", "head_dim", "num_kv_heads", "sequence_len", "logit_softcap", "seed")


def find_resume(stage: str, tag: str, config: StageConfig) -> Path | None:
    """The checkpoint to continue from, or None to start anew; one rank calls it. A run that exists
    is an error without --resume or --fresh: it is never overwritten."""
    run_folder = checkpoint_dir(stage) / tag
    existing = available_checkpoints(stage, tag)
    if config.fresh and run_folder.exists():
        aside = run_folder.with_name(f"{tag}.old-{int(time.time())}")
        os.rename(run_folder, aside)
        print0(f"the earlier run is now {aside}")
        return None
    if not existing:
        if config.resume:
            print0(f"no checkpoint of {stage} {tag} to resume from: starting anew")
        return None
    if not config.resume:
        raise ConfigError(
            f"{run_folder} already holds a run, up to step {max(c.step for c in existing)}. "
            f"Continue it with --resume, move it aside with --fresh, or name another --model-tag"
        )
    return find_checkpoint(stage, tag)


def compare_settings(path: Path, config: StageConfig, meta: dict, fingerprint: str) -> None:
    """Prints each setting that differs from the saved run's; ConfigError for one of FIXED."""
    now, then = asdict(config), meta["config"]
    changed = [n for n in sorted(now.keys() & then.keys() - set(FREE)) if now[n] != then[n]]
    for name in changed:
        if name in FIXED:
            raise ConfigError(
                f"{path} was trained with --{name} {then[name]}, it cannot go on with {now[name]}: "
                f"leave it as it was, or start anew with --fresh or another --model-tag"
            )
        print0(f"resumed with --{name} {now[name]}; it was {then[name]}")
    if fingerprint != meta["data_fingerprint"]:
        print0("resumed with other data than the run began with: the order of rows is another")
