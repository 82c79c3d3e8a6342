"""What a run is, read from its stages' records: run.json, config.json and metrics.jsonl."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch

from nanochat.checkpoint.hf_config import from_hf
from nanochat.checkpoint.index import STAGES, available_checkpoints, checkpoint_dir, listing
from nanochat.common import CheckpointError, print0
from nanochat.files import base_dir, read_json, user_path
from nanochat.gpt import GPT
from nanochat.hardware import find_card
from nanochat.training.log import METRICS, read_metrics

RUN, CONFIG, ASSUMPTIONS = "run.json", "config.json", "assumptions.json"
WORLD_GRAMS_PER_KWH = 481.0  # of CO2: the world's average in 2023 by Ember


@dataclass(frozen=True)
class Assumptions:
    """What no run can measure."""

    price_per_hour: float | None = None  # of the whole machine
    watts: float | None = None  # of the whole machine, where nothing was measured
    grams_per_kwh: float | None = None  # CO2 of the electricity; None: WORLD_GRAMS_PER_KWH


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
    assumed: Assumptions = Assumptions()

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
        """What was measured of this very checkpoint, the newest of each figure."""
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
        """Training FLOPs by the model's formula, less what tokens without a target are spared."""
        if not self.steps:
            return None
        per_token = self.sessions[-1]["flops_per_token"]  # of records that older versions made
        return sum(r.get("flops", per_token * r["tokens_computed"]) for r in self.steps)

    @property
    def hours(self) -> float | None:
        """From the start of each session to its last record of training: compilation, evaluations
        and saves count, what a crash undid does not."""
        seconds = previous = 0.0
        for record in self.records:
            if record.keys() & {"dt", "val_bpb"}:
                seconds += record["time"] - previous
            if record.keys() & {"dt", "val_bpb", "session"}:
                previous = record["time"]
        return seconds / 3600 if self.sessions else None

    def median(self, name: str) -> float | None:
        """A figure of the median step: "mfu", "tokens_per_second"."""
        return median(r[name] for r in self.steps) if self.steps else None

    @property
    def device(self) -> str:
        """What it ran on: "8 × NVIDIA H100"; "" where nothing was recorded."""
        if not self.sessions:
            return ""
        last = self.sessions[-1]
        return f"{last['ranks']} × {last['device']}" if last["ranks"] > 1 else last["device"]

    @property
    def energy(self) -> tuple[float, str] | None:
        """(kWh, how it is known). Measured where every session had a meter; else estimated from
        the watts that are assumed or that the card's data sheet says; else None."""
        if not self.sessions:
            return None
        last, joules = self.sessions[-1], [r["joules"] for r in self.records if "joules" in r]
        sources = [session.get("energy_source") for session in self.sessions]
        if joules and None not in joules and all(sources):
            how = "measured: " + "; ".join(dict.fromkeys(sources))
            how += f", times {last['nodes']} nodes, the first measured" * (last["nodes"] > 1)
            return sum(joules) * last["nodes"] / 3.6e6, how
        watts, source = self.assumed.watts, "given for the whole machine"
        if watts is None and (card := find_card(last["device"])) and card[1].watts:
            watts = card[1].watts * last["ranks"]
            source = f"= {last['ranks']} × {card[1].watts} W by the card's data sheet"
        if watts is None:
            return None
        how = f"estimated: {watts:,.0f} W {source} × {self.hours:.3g} h"
        return watts * self.hours / 1000, how

    @property
    def spent(self) -> tuple[float | None, ...]:
        """Hours, dollars, kWh and grams of CO2."""
        hours, price, kwh = self.hours, self.assumed.price_per_hour, self.energy and self.energy[0]
        grams_per_kwh = self.assumed.grams_per_kwh or WORLD_GRAMS_PER_KWH
        return hours, hours and price and hours * price, kwh, kwh and kwh * grams_per_kwh


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
        model = GPT(from_hf(config), seed=None)
    names = {"embed": "embedding", "self_attn": "attention", "mlp": "MLP", "lm_head": "head"}
    sizes = dict.fromkeys(names.values(), 0)
    for name, parameter in model.named_parameters():
        sizes[next(names[mark] for mark in names if mark in name)] += parameter.numel()
    return sizes


# ---------------------------------------------------------------- reading


def report_folder(tag: str) -> Path:
    """Where a run's report, model card and assumptions lie."""
    return base_dir() / "report" / tag


def newest_checkpoint(tag: str | None = None) -> Path:
    """The newest checkpoint of a tag, of whatever stage; CheckpointError when there is none."""
    found = available_checkpoints(tag=tag)
    if not found:
        wanted = f"run {tag}" if tag else "run at all"
        raise CheckpointError(f"no {wanted} to report. {listing()} `bash speedrun.sh` makes one.")
    return found[0].path


def lineage(folder: Path | str, given: Assumptions | None = None) -> list[StageRecord]:
    """The stages that led to a checkpoint, in order.

    given: assumptions, over those that the run's last report was made with.
    """
    folder = user_path(folder).resolve()
    stages = [load_stage(folder)]
    while parent := stages[0].run.get("parent"):
        place = Path(*Path(parent).parts[-3:])  # subtle: the base folder may have moved since
        here = [root / place for root in (folder.parent.parent.parent, base_dir())]
        found = [path for path in here if path.exists()]
        if not found:
            print0(f"{parent} is gone, so the stages up to it are not shown")
            break
        stages.insert(0, load_stage(found[0]))
    now = {k: v for k, v in asdict(given or Assumptions()).items() if v is not None}
    stored = report_folder(stages[-1].tag) / ASSUMPTIONS
    assumed = Assumptions(**(read_json(stored) if stored.exists() else {}) | now)
    return [replace(stage, assumed=assumed) for stage in stages]


def load_stage(folder: Path) -> StageRecord:
    """The stage that ended in this checkpoint, with its records up to there."""
    run, config = (read_json(folder / name, error=CheckpointError) for name in (RUN, CONFIG))
    if not set(run) >= {"stage", "tag", "step"}:
        raise CheckpointError(f"{folder / RUN} does not name a stage, tag and step")
    run_folder = folder.parent
    if not (run_folder / METRICS).exists() and run["stage"] in STAGES:
        run_folder = checkpoint_dir(run["stage"]) / run["tag"]  # of a copy the records are at home
    records = [r for r in read_metrics(run_folder) if r["step"] <= run["step"]]
    kept = [
        {k: v for k, v in record.items() if not isinstance(v, float) or math.isfinite(v)}
        for record in records
    ]
    if left_out := sum(map(len, records)) - sum(map(len, kept)):
        print0(f"{run_folder / METRICS}: left out {left_out} values that are not finite numbers")
    return StageRecord(run["stage"], run["tag"], run["step"], run_folder, run, config, kept)
