"""Which checkpoints there are: their places, finding, verifying, pruning.

They lie in `<stage>_checkpoints/<tag>/step_<n>/` under the base folder; checkpoint_manager.py says
what is in one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanochat.checkpoint import manifest
from nanochat.common import CheckpointError, ConfigError, print0, rank_and_world
from nanochat.files import base_dir

STAGES = ("base", "mid", "sft", "rl")
SCRIPTS = {"base": "base_train", "mid": "mid_train", "sft": "chat_sft"}
SUFFIX = "_checkpoints"


@dataclass(frozen=True)
class Found:
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


def step_dir(stage: str, tag: str, step: int) -> Path:
    """Example: step_dir("base", "d4", 123) ends in base_checkpoints/d4/step_000123."""
    if not re.fullmatch(r"\w[\w.+=-]*", tag):
        raise ConfigError(f"model tag {tag!r} is no folder name; use letters, digits and . _ + = -")
    return checkpoint_dir(stage) / tag / f"step_{step:06d}"


def folders_of(run_folder: Path) -> list[Path]:
    """The step folders of a run, complete or not, with those that an interrupted save moved away
    and did not replace."""
    paths = []
    for path in run_folder.glob("*step_*"):
        final = manifest.standing_in_for(path) or path
        if re.fullmatch(r"step_\d+", final.name):
            paths.append(path)
    return paths


def newest_first(paths: list[Path], say: Callable[[str], None] = print0) -> list[Found]:
    """Sorted by the time in the manifest; says a line for each folder without a readable one."""
    found = []
    for path in paths:
        try:
            record = manifest.read_manifest(path)
        except CheckpointError as error:
            say(f"skipped: {error}")
        else:
            stage = path.parent.parent.name.removesuffix(SUFFIX)
            found.append(Found(stage, path.parent.name, record["step"], path, record["time"]))
    return sorted(found, key=lambda f: (f.time, f.step), reverse=True)


def available_checkpoints(
    stage: str | None = None, tag: str | None = None, say: Callable[[str], None] = print0
) -> list[Found]:
    """All checkpoints that have a manifest, newest first. Their other files are not checked."""
    paths = []
    for name in STAGES if stage is None else (stage,):
        stage_folder = checkpoint_dir(name)
        runs = [stage_folder / tag] if tag else stage_folder.glob("*")
        paths += [path for run_folder in runs for path in folders_of(run_folder)]
    return newest_first(paths, say)


def listing() -> str:
    """One sentence for error messages: which checkpoints there are."""
    runs: dict[str, list[int]] = {}
    for found in available_checkpoints(say=lambda line: None):
        runs.setdefault(f"{found.stage} {found.tag}", []).append(found.step)
    texts = [f"{run} at step {', '.join(map(str, sorted(steps)))}" for run, steps in runs.items()]
    return f"Under {base_dir()} there are: {'; '.join(texts) or 'none'}."


def first_whole(candidates: list[Found]) -> Path | None:
    """The first whose files all verify; a printed line for each before it."""
    for found in candidates:
        try:
            manifest.check(found.path)
            return found.path
        except CheckpointError as error:
            print0(f"skipped: {error}")
    return None


def find_checkpoint(stage: str, tag: str | None = None, step: int | None = None) -> Path:
    """The newest complete checkpoint of a stage, by the time in its manifest, every file verified.

    Broken ones are passed over with a printed line each. CheckpointError when none is left, which
    lists those there are and names the command that makes one.
    """
    candidates = available_checkpoints(stage, tag)
    path = first_whole([f for f in candidates if step is None or f.step == step])
    if path is None:
        maker = f"No script makes stage {stage} yet."
        if stage in SCRIPTS:
            maker = f"`python -m scripts.{SCRIPTS[stage]}` makes one of stage {stage}."
        wanted = [stage, tag and f"tag {tag}", step is not None and f"step {step}"]
        raise CheckpointError(
            f"no complete checkpoint of {', '.join(w for w in wanted if w)}. {listing()} {maker}"
        )
    return path


def checkpoint_of(source: str | Path, tag: str | None = None, step: int | None = None) -> Path:
    """The folder that `source` names: a stage's newest complete checkpoint (see find_checkpoint),
    or a folder, which is not verified here, and of which there is no other tag or step."""
    if source in STAGES:
        return find_checkpoint(str(source), tag, step)
    if Path(source).is_dir():
        if tag is not None or step is not None:
            raise ConfigError(
                f"{source} is a folder: a model tag ({tag}) and a step ({step}) choose among a "
                f"stage's. Leave them out, or name the stage ({', '.join(STAGES)})"
            )
        return Path(source)
    stages = ", ".join(STAGES)
    raise CheckpointError(f"{source} is neither a stage ({stages}) nor a folder. {listing()}")


def good_checkpoint(run_folder: Path) -> str:
    """One sentence for error messages: which checkpoint of this run is whole."""
    if path := first_whole(newest_first(folders_of(run_folder))):
        return f"The newest good checkpoint of this run is {path}."
    return f"No good checkpoint of this run is left. {listing()}"


def verify(path: Path | str, under: tuple[str, ...] = ("",)) -> dict:
    """The manifest, once every file (or those whose name starts with one of `under`) matches it.

    CheckpointError names the file, what was found, what was expected, and the run's newest good
    checkpoint.
    """
    path = Path(path)
    try:
        return manifest.check(path, under)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {good_checkpoint(path.parent)}") from error


def prune(stage: str, tag: str, keep_last: int, keep_every: int) -> list[Path]:
    """Deletes old checkpoints of a run and returns their paths. Rank 0 does it; others return [].

    Kept: the newest `keep_last`, those whose step is a multiple of `keep_every` (0: none), and
    always the newest whose files all verify. Folders without a readable manifest are left alone,
    with a printed line.
    """
    if keep_last < 1:
        raise ConfigError(f"keep_last is {keep_last}; the newest checkpoint stays: at least 1")
    if rank_and_world()[0] != 0:
        return []
    found = available_checkpoints(stage, tag)
    doomed = [f for f in found[keep_last:] if not keep_every or f.step % keep_every]
    if doomed:
        newest = first_whole(found)
        doomed = [f for f in doomed if f.path != newest]
    for old in doomed:
        manifest.remove(old.path)
    return [old.path for old in doomed]
