"""What a run is, read from its stages' records: run.json, config.json and metrics.jsonl.

A stage is known by a checkpoint in which it ended; the checkpoint names its parent, the stage
before it. What a figure is derived from was recorded, but for the Assumptions.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from nanochat.checkpoint.hf_config import from_hf
from nanochat.checkpoint.index import STAGES, SUFFIX, available_checkpoints, checkpoint_dir
from nanochat.common import CheckpointError, print0
from nanochat.files import base_dir
from nanochat.gpt import GPT
from nanochat.hardware import find_card
from nanochat.training.log import METRICS, read_metrics

ASSUMPTIONS = "assumptions.json"
WORLD_GRAMS_PER_KWH = 481.0  # of CO2: the world's average in 2023 by Ember
RUN_TYPES = {"stage": str, "tag": str, "step": int, "config": dict, "versions": dict}
RUN_TYPES |= {"data": dict, "git_commit": str, "val_bpb": float, "peak_memory_bytes": int}
NOT_FIGURES = {"stage", "session", "joules"}  # in metrics.jsonl; joules is None when a meter fails
OF_THE_CHECKPOINT = ("val_bpb", "loss", "tokens", "seconds")  # in run.json; the rest is the run's


@dataclass(frozen=True)
class Assumptions:
    """What no run can measure."""

    price_per_hour: float | None = None  # of the whole machine
    watts: float | None = None  # of the whole machine, where nothing was measured
    grams_per_kwh: float | None = None  # CO2 of the electricity; None: the world's average


@dataclass(frozen=True)
class Energy:
    kwh: float
    measured: bool
    how: str  # the counters, or the formula with its numbers


@dataclass(frozen=True)
class StageRecord:
    """A training stage's records up to one of its checkpoints."""

    name: str
    tag: str
    step: int
    run_folder: Path  # with metrics.jsonl, samples and answers
    run: dict  # run.json
    config: dict  # config.json
    records: list[dict]  # of metrics.jsonl

    @property
    def steps(self) -> list[dict]:
        """The records of training steps."""
        return [r for r in self.records if r.keys() >= {"dt", "loss"}]

    @property
    def sessions(self) -> list[dict]:
        """What each start of the script recorded of itself."""
        return [r["session"] for r in self.records if "session" in r]

    @property
    def evaluations(self) -> dict[str, float]:
        """What was measured of this very checkpoint after training, the newest of each figure."""
        found: dict[str, float] = {}
        for record in self.records:
            if record["step"] == self.step and not record.keys() & {"dt", "session"}:
                found |= {k: v for k, v in record.items() if k not in ("stage", "step", "time")}
        return found

    @property
    def val_bpb(self) -> float | None:
        """Bits per byte of the stage's own validation text at this checkpoint."""
        return self.evaluations.get("val_bpb", self.run.get("val_bpb"))

    @property
    def tokens(self) -> int | None:
        """Tokens that went through the model, padding included."""
        return sum(r["tokens_computed"] for r in self.steps) or None

    @property
    def flops(self) -> float | None:
        """Training FLOPs by the model's formula."""
        return self.sessions[-1]["flops_per_token"] * self.tokens if self.steps else None

    @property
    def step_hours(self) -> float | None:
        """In training steps alone."""
        return sum(r["dt"] for r in self.steps) / 3600 or None

    @property
    def hours(self) -> float | None:
        """What is paid for: from where each session opened its log to its last record of training.

        Compilation, evaluations and saves are in it; reading data before, and what a crash undid,
        are not.
        """
        seconds = previous = 0.0
        for record in self.records:
            if record.keys() & {"dt", "val_bpb"}:
                seconds += record["time"] - previous
            if record.keys() & {"dt", "val_bpb", "session"}:
                previous = record["time"]
        return seconds / 3600 if self.sessions else None

    @property
    def tokens_per_second(self) -> float | None:
        """Of the median step."""
        return median(r["tokens_per_second"] for r in self.steps) if self.steps else None

    @property
    def mfu(self) -> float | None:
        """Of the median step."""
        return median(r["mfu"] for r in self.steps) if self.steps else None

    @property
    def device(self) -> str | None:
        """What it ran on, with the number of ranks."""
        if not self.sessions:
            return None
        last = self.sessions[-1]
        return f"{last['ranks']} × {last['device']}" if last["ranks"] > 1 else last["device"]

    def energy(self, assumed: Assumptions) -> Energy | None:
        """Measured where every session had a meter; else estimated from watts that were given or
        that the data sheet of the card says; else None."""
        if not self.sessions:
            return None
        last, joules = self.sessions[-1], [r["joules"] for r in self.records if "joules" in r]
        sources = [session.get("energy_source") for session in self.sessions]
        if joules and None not in joules and all(sources):
            how = "measured: " + "; ".join(dict.fromkeys(sources))
            how += f", times {last['nodes']} nodes, the first measured" * (last["nodes"] > 1)
            return Energy(sum(joules) * last["nodes"] / 3.6e6, True, how)
        found = find_card(last["device"])
        if assumed.watts is not None:
            watts, how = assumed.watts, f"{assumed.watts:,.0f} W given for the whole machine"
        elif found and (board := found[1].watts):
            watts = board * last["ranks"]
            how = f"{watts:,.0f} W = {last['ranks']} × {board} W by the card's data sheet"
        else:
            return None
        how = f"estimated: {how} × {self.hours:.3g} h"
        return Energy(watts * self.hours / 1000, False, how)


def total(values: Iterable[float | None]) -> float | None:
    """The sum; None where one is missing. Example: total([1, None]) is None"""
    values = list(values)
    return None if None in values else sum(values)


def parameters(config: dict) -> dict[str, int]:
    """How many parameters each part of the model has, by its config.json.

    Example: at depth 20 with 65,536 ids: embedding 83,886,080, attention 131,072,000, MLP
    262,144,000, head 83,886,080.
    """
    with torch.device("meta"):  # no memory for the weights
        sizes = {name: p.numel() for name, p in GPT(from_hf(config)).named_parameters()}
    parts = {"embedding": "embed_tokens", "attention": "self_attn", "MLP": ".mlp."}
    parts["head"] = "lm_head"
    return {
        part: sum(size for name, size in sizes.items() if mark in name)
        for part, mark in parts.items()
    }


# ---------------------------------------------------------------- reading


def report_folder(tag: str) -> Path:
    """Where a run's report, model card and assumptions lie."""
    return base_dir() / "report" / tag


def stored_assumptions(tag: str, given: Assumptions | None = None) -> Assumptions:
    """What is given now, over what was given for this run before."""
    now = {k: v for k, v in asdict(given or Assumptions()).items() if v is not None}
    return Assumptions(**read_json(report_folder(tag) / ASSUMPTIONS) | now)


def newest_checkpoint(tag: str | None = None) -> Path:
    """The newest checkpoint of a tag, of whatever stage; CheckpointError when there is none."""
    every = available_checkpoints()
    for found in every:
        if tag in (None, found.tag):
            return found.path
    tags = ", ".join(sorted({found.tag for found in every})) or "none"
    raise CheckpointError(
        f"there is no run {tag or 'at all'} under {base_dir()} to report; runs: {tags}. "
        f"`bash speedrun.sh` makes one"
    )


def lineage(folder: Path | str) -> list[StageRecord]:
    """The stages that led to a checkpoint, in order; a parent that is not here ends the search."""
    folder = Path(folder).expanduser().resolve()
    stages = [load_stage(folder)]
    while isinstance(parent := stages[0].run.get("parent"), str) and parent:
        place = Path(*Path(parent).parts[-3:])  # subtle: the base folder may have moved since
        here = [root / place for root in (folder.parent.parent.parent, base_dir())]
        found = [p for p in here if p.exists() or (p.parent / METRICS).exists()]
        if not found:
            break
        stages.insert(0, load_stage(found[0]))
    return stages


def load_stage(folder: Path) -> StageRecord:
    """The stage that ended in this checkpoint, or in one that was pruned since, with the records of
    metrics.jsonl up to its step. Raises CheckpointError for a folder that is neither."""
    run, run_folder = read_json(folder / "run.json"), folder.parent
    if not run and (run_folder / METRICS).exists():
        # Pruned: a later checkpoint of the run tells its set-up, but not how far it was.
        stage, tag = run_folder.parent.name.removesuffix(SUFFIX), run_folder.name
        step = int(folder.name.removeprefix("step_"))
        later = [f.path for f in available_checkpoints(stage, tag) if f.step >= step]
        folder = later[-1] if later else folder
        run = {
            k: v for k, v in read_json(folder / "run.json").items() if k not in OF_THE_CHECKPOINT
        }
        run |= {"stage": stage, "tag": tag, "step": step}
    if not run:
        raise CheckpointError(f"{folder} has no run.json, so it is no checkpoint of ours")
    run = {k: v for k, v in run.items() if isinstance(v, RUN_TYPES.get(k, object))}
    if not is_figure(run.get("val_bpb")):
        run.pop("val_bpb", None)
    if not run.keys() >= {"stage", "tag", "step"}:
        raise CheckpointError(f"{folder / 'run.json'} does not say its stage, tag and step")
    if not (run_folder / METRICS).exists() and run["stage"] in STAGES:
        run_folder = checkpoint_dir(run["stage"]) / run["tag"]  # of a copy the records are at home
    records = [r for r in read_metrics(run_folder) if r["step"] <= run["step"]]
    kept = [{k: v for k, v in r.items() if k in NOT_FIGURES or is_figure(v)} for r in records]
    if left_out := sum(map(len, records)) - sum(map(len, kept)):
        print0(f"{run_folder / METRICS}: left out {left_out} values that are no finite numbers")
    place, config = (run["stage"], run["tag"], run["step"]), read_json(folder / "config.json")
    return StageRecord(*place, run_folder, run, config, kept)


def is_figure(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def read_json(path: Path) -> dict:
    """The file's object, {} without a file; CheckpointError for a damaged one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON in UTF-8: {error}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} holds a {type(record).__name__}; expected an object")
    return record
