"""Where a run's records lie, gathered: the stages that led to a checkpoint, what was assumed."""

from dataclasses import asdict
from pathlib import Path

from nanochat.checkpoint_index import STAGES, SUFFIX, available_checkpoints, checkpoint_dir
from nanochat.common import CheckpointError, base_dir
from nanochat.metrics import METRICS, read_metrics
from nanochat.run_figures import Assumptions, Stage, read_json

ASSUMPTIONS = "assumptions.json"


def report_folder(tag: str) -> Path:
    """Where a run's report, model card and assumptions lie."""
    return base_dir() / "report" / tag


def stored_assumptions(tag: str, given: Assumptions | None = None) -> Assumptions:
    """What was given for this run before, under what is given now."""
    now = {k: v for k, v in asdict(given or Assumptions()).items() if v is not None}
    return Assumptions(**{**read_json(report_folder(tag) / ASSUMPTIONS), **now})


def load_stage(folder: Path | str) -> Stage:
    """The stage that ended in this checkpoint, or in one that was pruned since, with the records of
    metrics.jsonl up to its step. Raises CheckpointError for a folder that is neither."""
    folder = Path(folder)
    run, run_folder = read_json(folder / "run.json"), folder.parent
    if not run and (run_folder / METRICS).exists():
        # Pruned: a later checkpoint of the run tells its set-up, but not how far it was.
        wanted = int(folder.name.removeprefix("step_"))
        stage = run_folder.parent.name.removesuffix(SUFFIX)
        later = [f for f in available_checkpoints(stage, run_folder.name) if f.step >= wanted]
        folder = later[-1].path if later else folder
        run = {**read_json(folder / "run.json"), "stage": stage, "tag": run_folder.name}
        run = {k: v for k, v in run.items() if k not in ("val_bpb", "loss", "tokens", "seconds")}
        run["step"] = wanted
    if "stage" not in run:
        raise CheckpointError(f"{folder} has no run.json, so it is no checkpoint of ours")
    if not (run_folder / METRICS).exists() and run["stage"] in STAGES:
        run_folder = checkpoint_dir(run["stage"]) / run["tag"]  # of a copy the records are at home
    records = [r for r in read_metrics(run_folder) if r["step"] <= run["step"]]
    config, state = read_json(folder / "config.json"), read_json(folder / "state.json")
    place = run["stage"], run["tag"], run["step"]
    return Stage(*place, run_folder, run, config, state.get("environment", {}), records)


def lineage(folder: Path | str) -> list[Stage]:
    """The stages that led to a checkpoint, in order; a parent that is not here ends the search."""
    folder = Path(folder)
    stages = [load_stage(folder)]
    while parent := stages[0].run.get("parent"):
        place = Path(*Path(parent).parts[-3:])  # subtle: the base folder may have moved since
        roots = [folder.resolve().parents[2], base_dir()] if len(folder.parts) > 3 else [base_dir()]
        here = [root / place for root in roots]
        found = [p for p in here if p.exists() or (p.parent / METRICS).exists()]
        if not found:
            break
        stages.insert(0, load_stage(found[0]))
    return stages


def newest_checkpoint(tag: str | None = None) -> Path:
    """The newest checkpoint of a tag, of whatever stage; CheckpointError when there is none."""
    every = available_checkpoints()
    found = [f for f in every if tag is None or f.tag == tag]
    if not found:
        tags = ", ".join(sorted({f.tag for f in every})) or "none"
        raise CheckpointError(
            f"there is no run {tag or 'at all'} under {base_dir()} to report; runs: {tags}. "
            f"`bash speedrun.sh` makes one"
        )
    return found[0].path
