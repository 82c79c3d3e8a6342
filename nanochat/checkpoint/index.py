"""Which checkpoints there are: their places, finding, verifying, pruning.

They lie in `<stage>_checkpoints/<tag>/step_<n>/` under the base folder.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nanochat.checkpoint import manifest
from nanochat.common import CheckpointError, ConfigError, print0
from nanochat.files import base_dir, user_path

SCRIPTS = {"base": "base_train", "mid": "mid_train", "sft": "chat_sft", "rl": "chat_rl"}
STAGES = tuple(SCRIPTS)
SUFFIX = "_checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, by its place and its manifest."""

    stage: str
    tag: str
    step: int
    path: Path
    time: float  # seconds since 1970, when it was saved


def checkpoint_dir(stage: str) -> Path:
    """The folder that holds a stage's runs, one folder a tag."""
    if stage not in STAGES:
        raise CheckpointError(f"stage {stage!r} is unknown; choose one of {', '.join(STAGES)}")
    return base_dir() / f"{stage}{SUFFIX}"


def run_dir(stage: str, tag: str) -> Path:
    """The folder of one run; ConfigError for a tag that cannot be a folder's name."""
    if not re.fullmatch(r"\w[\w.+=-]*", tag):
        raise ConfigError(f"model tag {tag!r} is no folder name; use letters, digits and . _ + = -")
    return checkpoint_dir(stage) / tag


def step_dir(stage: str, tag: str, step: int) -> Path:
    """Example: step_dir("base", "d4", 123) ends in base_checkpoints/d4/step_000123."""
    return run_dir(stage, tag) / f"step_{step:06d}"


def checkpoints_in(
    run_folders: Iterable[Path], say: Callable[[str], None] = print0
) -> list[Checkpoint]:
    """Those with a manifest, newest first by the time in it, also one that an interrupted save
    moved away; says a line for each other step folder. Files are not checked."""
    found = []
    for path in (path for folder in run_folders for path in folder.glob("*step_*")):
        if not re.fullmatch(r"step_\d+", (manifest.vacated_place(path) or path).name):
            continue
        try:
            record = manifest.read_manifest(path)
        except CheckpointError as error:
            say(f"skipped: {error}")
            continue
        stage, tag = path.parent.parent.name.removesuffix(SUFFIX), path.parent.name
        found.append(Checkpoint(stage, tag, record["step"], path, record["time"]))
    return sorted(found, key=lambda f: (f.time, f.step), reverse=True)


def available_checkpoints(
    stage: str | None = None, tag: str | None = None, say: Callable[[str], None] = print0
) -> list[Checkpoint]:
    """checkpoints_in the base folder."""
    stages = [stage] if stage else STAGES
    return checkpoints_in([run for s in stages for run in checkpoint_dir(s).glob(tag or "*")], say)


def listing() -> str:
    """One sentence for error messages: which checkpoints there are."""
    runs = {}
    for found in available_checkpoints(say=lambda line: None):
        runs.setdefault(f"{found.stage} {found.tag}", []).append(found.step)
    texts = [f"{run} at step {', '.join(map(str, sorted(steps)))}" for run, steps in runs.items()]
    return f"Under {base_dir()} there are: {'; '.join(texts) or 'none'}."


def first_whole(candidates: list[Checkpoint]) -> Path | None:
    """The first whose files all verify; a printed line for each before it."""
    for found in candidates:
        try:
            manifest.check(found.path)
            return found.path
        except CheckpointError as error:
            print0(f"skipped: {error}")
    return None


def find_checkpoint(stage: str, tag: str | None = None, step: int | None = None) -> Path:
    """The newest complete checkpoint of a stage, every file verified. Broken ones are passed over
    with a printed line."""
    found = available_checkpoints(stage, tag)
    if path := first_whole([f for f in found if step is None or f.step == step]):
        return path
    wanted = [stage, tag and f"tag {tag}", step is not None and f"step {step}"]
    raise CheckpointError(
        f"no complete checkpoint of {', '.join(w for w in wanted if w)}. {listing()} "
        f"`python -m scripts.{SCRIPTS[stage]}` makes one of stage {stage}."
    )


def checkpoint_of(source: str | Path, tag: str | None = None, step: int | None = None) -> Path:
    """The folder that `source` names: find_checkpoint of a stage, or a folder itself, verified."""
    if source in STAGES:
        return find_checkpoint(str(source), tag, step)
    folder = user_path(source)
    if not folder.is_dir():
        raise CheckpointError(
            f"{source} is neither a stage ({', '.join(STAGES)}) nor a folder. {listing()}"
        )
    if tag is not None or step is not None:
        raise ConfigError(
            f"{source} is a folder: a model tag ({tag}) and a step ({step}) choose among a "
            f"stage's. Leave them out, or name the stage"
        )
    verify(folder)
    return folder


def good_checkpoint(run_folder: Path) -> str:
    """One sentence for error messages: which checkpoint of this run is whole."""
    if path := first_whole(checkpoints_in([run_folder])):
        return f"The newest good checkpoint of this run is {path}."
    return f"No good checkpoint of this run is left. {listing()}"


def verify(path: Path | str) -> None:
    """manifest.check; the error also names the run's newest good checkpoint."""
    try:
        manifest.check(Path(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {good_checkpoint(Path(path).parent)}") from error


def prune(stage: str, tag: str, keep_last: int, keep_every: int) -> None:
    """Deletes a run's old checkpoints; one rank calls it. Kept are the newest `keep_last`, those
    whose step is a multiple of `keep_every` (0: none), and the newest whose files all verify."""
    found = available_checkpoints(stage, tag)
    doomed = [f for f in found[keep_last:] if not keep_every or f.step % keep_every]
    newest = first_whole(found) if doomed else None
    for old in doomed:
        if old.path != newest:
            manifest.remove(old.path)
