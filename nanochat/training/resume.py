"""Who writes into a run's folder, which checkpoint is continued, which settings may differ."""

import fcntl
import os
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from nanochat.checkpoint.index import available_checkpoints, find_checkpoint, run_dir
from nanochat.common import ConfigError, print0
from nanochat.training.config import StageConfig
from nanochat.training.log import METRICS

# Settings that a resumed run may change without a printed line, and those that it may not change.
FREE = ("resume", "fresh", "mirror", "device_type", "compile", "keep_last", "keep_every", "track")
FIXED = ("depth", "width", "head_dim", "num_kv_heads", "sequence_len", "logit_softcap", "seed")
FIXED += ("tie_word_embeddings",)
WATCHED = 60  # seconds in which a run that is alive is expected to write a line of metrics


def lock_run(stage: str, tag: str) -> TextIO:
    """The run's lock, held until the file is closed or the process ends, however it ends; one rank
    calls it. ConfigError if another process trains this run: a folder has one writer.

    subtle: some network file systems keep locks to a node, so after another node's run the metrics
    are watched for a while.
    """
    folder, host, busy = run_dir(stage, tag), socket.gethostname(), False
    path = folder.with_name(f".{tag}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        file.seek(0)
        holder = file.read(200)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            busy = bool(holder) and f" on {host} " not in holder and still_written(folder / METRICS)
        except (BlockingIOError, PermissionError):
            busy = True
        except OSError as error:
            print0(f"{path}: no locks here ({error}); do not train this tag twice at once")
        if not busy:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {host} since {time.strftime('%F %T %z')}")
            file.flush()
            return file
    except OSError as error:
        raise ConfigError(f"the runs of stage {stage} cannot be written: {error}") from error
    file.close()
    raise ConfigError(
        f"{folder} is being written by {holder or 'another process'}. Wait until it ends, stop it, "
        f"or name another --model-tag"
    )


def still_written(path: Path) -> bool:
    """Whether a file, at most minutes old, is written again within WATCHED seconds."""
    before = path.stat().st_mtime if path.exists() else 0
    if time.time() - before > 600:
        return False
    print0(f"another node wrote {path} last: watching it for {WATCHED} s")
    time.sleep(WATCHED)
    return path.stat().st_mtime > before


def find_resume(stage: str, tag: str, config: StageConfig) -> Path | None:
    """The checkpoint to continue from, or None to start anew; one rank calls it. A run that exists
    is an error without --resume or --fresh: it is never overwritten. torchrun that starts its
    ranks again, after one of them died, resumes what they began."""
    existing = available_checkpoints(stage, tag)
    resume = config.resume or restarted(run_dir(stage, tag) / METRICS)
    if config.fresh and not resume:
        return None
    if not existing:
        if resume:
            print0(f"no checkpoint of {stage} {tag} to resume from: starting anew")
        return None
    if not resume:
        raise ConfigError(
            f"{run_dir(stage, tag)} already holds a run, up to step "
            f"{max(c.step for c in existing)}. Continue it with --resume, move it aside with "
            f"--fresh, or name another --model-tag"
        )
    return find_checkpoint(stage, tag)


def restarted(metrics: Path) -> bool:
    """Whether this torchrun has written these metrics before."""
    began = f'"torchrun": "{os.environ.get("TORCHELASTIC_RUN_ID")}"'
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return again and metrics.exists() and began in metrics.read_text()


def move_aside(run_folder: Path) -> None:
    """Gives an earlier run another name; one rank calls it, once nothing can fail early."""
    if run_folder.exists():
        aside = run_folder.with_name(f"{run_folder.name}.old-{int(time.time())}")
        os.rename(run_folder, aside)
        print0(f"the earlier run is now {aside}")


def compare_settings(path: Path, config: StageConfig, meta: dict, fingerprint: str) -> None:
    """Prints each setting that differs from the saved run's; ConfigError for one of FIXED."""
    now, then = asdict(config), asdict(type(config)()) | meta["config"]
    changed = [n for n in sorted(now.keys() & then.keys() - set(FREE)) if now[n] != then[n]]
    for name in changed:
        if name in FIXED:
            raise ConfigError(
                f"{path} was trained with --{name} {then[name]}, it cannot go on with {now[name]}: "
                f"leave it as it was, or start anew with --fresh or another --model-tag"
            )
        print0(f"resumed with --{name.rstrip('_')} {now[name]}; it was {then[name]}")
    if fingerprint != meta["data_fingerprint"]:
        print0("resumed with other data than the run began with: the order of rows is another")
