"""Where a run's records lie, gathered: the stages that led to a checkpoint, what was assumed."""

import math
from dataclasses import asdict
from pathlib import Path

from nanochat.checkpoint.index import STAGES, SUFFIX, available_checkpoints, checkpoint_dir
from nanochat.common import CheckpointError, print0
from nanochat.files import base_dir
from nanochat.report.formulas import Assumptions
from nanochat.report.run import StageRecord, read_json
from nanochat.training.log import METRICS, read_metrics

ASSUMPTIONS = "assumptions.json"
OF_A_STEP = ("time", "dt", "loss", "tokens_computed", "tokens_per_second", "mfu")
OF_A_SESSION = {"device", "ranks", "flops_per_token"}
OF_A_RUN = ("val_bpb", "seconds", "peak_memory_bytes")  # figures that run.json may hold
PARTS = {"config": dict, "versions": dict, "git_commit": str}


def report_folder(tag: str) -> Path:
    """Where a run's report, model card and assumptions lie."""
    return base_dir() / "report" / tag


def stored_assumptions(tag: str, given: Assumptions | None = None) -> Assumptions:
    """What was given for this run before, under what is given now."""
    now = {k: v for k, v in asdict(given or Assumptions()).items() if v is not None}
    return Assumptions(**{**read_object(report_folder(tag) / ASSUMPTIONS), **now})


def read_object(path: Path) -> dict:
    """As read_json; CheckpointError for a file that is not JSON of an object, in UTF-8."""
    try:
        record = read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON in UTF-8: {error}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} holds a {type(record).__name__}; expected an object")
    return record


def measured(records: list[dict], where: Path) -> list[dict]:
    """The records, but for figures of evaluations that are no finite numbers, and for steps and
    sessions without what belongs to them; a printed line says how many."""
    kept, left_out = [], 0
    for record in records:
        if record.keys() & {"session", "dt"}:
            whole = all(is_figure(record.get(name)) for name in OF_A_STEP)
            if "session" in record:
                session = record["session"]
                whole = isinstance(session, dict) and session.keys() >= OF_A_SESSION
            kept += [record] * whole
            left_out += not whole
        else:
            figures = {k: v for k, v in record.items() if k == "stage" or is_figure(v)}
            kept.append(figures)
            left_out += len(record) - len(figures)
    if left_out:
        print0(
            f"{where / METRICS}: left out {left_out} figures that are no finite numbers, or "
            "records without them"
        )
    return kept


def is_figure(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def load_stage(folder: Path | str) -> StageRecord:
    """The stage that ended in this checkpoint, or in one that was pruned since, with the records of
    metrics.jsonl up to its step. Raises CheckpointError for a folder that is neither."""
    folder = Path(folder)
    run, run_folder = read_object(folder / "run.json"), folder.parent
    if not run and (run_folder / METRICS).exists():
        # Pruned: a later checkpoint of the run tells its set-up, but not how far it was.
        wanted = int(folder.name.removeprefix("step_"))
        stage = run_folder.parent.name.removesuffix(SUFFIX)
        later = [f for f in available_checkpoints(stage, run_folder.name) if f.step >= wanted]
        folder = later[-1].path if later else folder
        run = {**read_object(folder / "run.json"), "stage": stage, "tag": run_folder.name}
        run = {k: v for k, v in run.items() if k not in ("val_bpb", "loss", "tokens", "seconds")}
        run["step"] = wanted
    if "stage" not in run:
        raise CheckpointError(f"{folder} has no run.json, so it is no checkpoint of ours")
    place = run["stage"], run.get("tag"), run.get("step")
    if [type(part) for part in place] != [str, str, int]:
        raise CheckpointError(f"{folder / 'run.json'} does not say its stage, tag and step")
    run = {k: v for k, v in run.items() if k not in OF_A_RUN or is_figure(v)}
    run = {k: v for k, v in run.items() if isinstance(v, PARTS.get(k, object))}
    if not (run_folder / METRICS).exists() and run["stage"] in STAGES:
        run_folder = checkpoint_dir(run["stage"]) / run["tag"]  # of a copy the records are at home
    records = [r for r in read_metrics(run_folder) if r["step"] <= run["step"]]
    config = read_object(folder / "config.json")
    environment = read_object(folder / "state.json").get("environment") or {}
    records = measured(records, run_folder)
    return StageRecord(*place, run_folder, run, config, environment, records)


def lineage(folder: Path | str) -> list[StageRecord]:
    """The stages that led to a checkpoint, in order; a parent that is not here ends the search."""
    folder = Path(folder)
    stages = [load_stage(folder)]
    while isinstance(parent := stages[0].run.get("parent"), str) and parent:
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
