"""What a stage begins with: --from, or else the newest checkpoint of an earlier stage.

A published model is imported once, under imported/ in the base folder, and is then a parent like
any checkpoint of ours.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from nanochat.checkpoint.index import STAGES, checkpoint_of, find_checkpoint
from nanochat.checkpoint.manifest import sha256_of_all
from nanochat.checkpoint_manager import CONFIG, STATE
from nanochat.common import CheckpointError, ConfigError, print0
from nanochat.data.hub import with_retries
from nanochat.files import base_dir, user_path
from nanochat.publishing.export_files import TOKENIZER
from nanochat.publishing.import_model import read_published, weight_files, write_native
from nanochat.publishing.mirror import HUB
from nanochat.training.config import StageConfig

WANTED = ("*.json", "*.safetensors", "*.jinja", "README.md")  # no pickles, no code


def find_parent(
    config: StageConfig, stage: str | None = None, tag: str | None = None
) -> Callable[[], Path] | None:
    """Stage's `parent`: of --from, else of `stage`; None for a stage that begins anew."""
    if not config.from_:
        return (lambda: checkpoint_of(stage, tag)) if stage else None
    if tag is not None:
        raise ConfigError(
            f"--from {config.from_} says what to begin with; leave out the tag ({tag}) of another"
        )
    return lambda: checkpoint_from(config.from_, config.resume)


def checkpoint_from(source: str, resume: bool = False) -> Path:
    """The checkpoint of hf://user/model[@revision], a folder, or stage[:tag].

    resume: an import that is there is taken as it is, for the run has weights of its own.
    """
    stage, _, tag = source.partition(":")
    if stage in STAGES:
        return find_checkpoint(stage, tag or None)
    of_hub, folder = source.startswith(HUB), user_path(source)
    if not of_hub and (folder / STATE).is_file():
        return checkpoint_of(folder)
    name = source.removeprefix(HUB).partition("@")[0] if of_hub else folder.resolve().name
    name = re.sub(r"[^\w.+=-]", "-", name.rpartition("/")[2]).lstrip("-.+=") or "imported"
    home = base_dir() / "imported" / name
    if resume and (there := sorted(home.glob("step_*"), key=lambda path: path.stat().st_mtime)):
        print0(f"--from {source} was imported before, as {there[-1]}")
        return checkpoint_of(there[-1])
    if of_hub:
        folder = download(source.removeprefix(HUB))
        source = f"{source.partition('@')[0]}@{folder.name}"
    elif not folder.is_dir():
        stages = ", ".join(STAGES)
        raise CheckpointError(
            f"--from {source}: expected hf://user/model, a folder that is there, or a stage "
            f"({stages}) with or without :tag"
        )
    return import_once(folder, source if of_hub else str(folder.resolve()), home)


def import_once(folder: Path, source: str, home: Path) -> Path:
    """The native checkpoint of a published folder, written if it is not there yet."""
    names = [CONFIG, TOKENIZER, *(weight_files(folder) if (folder / CONFIG).is_file() else ())]
    digests = sha256_of_all(folder, [name for name in names if (folder / name).is_file()])
    key = hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()[:12]
    if there := list(home.glob(f"step_*-{key}")):
        return checkpoint_of(there[0])
    model = read_published(folder, add_marks=True)
    model.run["imported"]["source"] = source
    final = home / f"step_{model.run['step']:06d}-{key}"
    write_native(final, model, "imported", home.name)
    print0(f"{source} is imported, as {final}")
    return final


def download(repository: str) -> Path:
    """The folder of user/model[@revision] of the hub, its weights safetensors."""
    from huggingface_hub import snapshot_download

    name, _, revision = repository.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigError(f"--from {HUB}{repository}: expected hf://user/model or .../model@commit")
    options = {"revision": revision or None, "allow_patterns": WANTED, "ignore_patterns": "*/*"}
    ways_out = "Name a mirror of the hub in HF_ENDPOINT, or give --from a folder on this disk"
    return Path(with_retries(name, lambda: snapshot_download(name, **options), ways_out))
