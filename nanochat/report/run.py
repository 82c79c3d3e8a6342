"""What a run came to, worked out from its records by formulas.py: one stage, and their totals."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat.checkpoint.hf_config import from_hf
from nanochat.gpt import GPT
from nanochat.hardware import find_card
from nanochat.report.formulas import (
    Assumptions,
    centred_stderr,
    cost,
    kilowatt_hours,
    mean_stderr,
    median,
)

# ---------------------------------------------------------------- one stage


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
    environment: dict  # of state.json; {} in an exported folder
    records: list[dict]  # of metrics.jsonl

    @property
    def steps(self) -> list[dict]:
        """The records of training steps."""
        return [r for r in self.records if "dt" in r]

    @property
    def sessions(self) -> list[dict]:
        """What each start of the script recorded of itself; none in runs of before that."""
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
    def tokens(self) -> int:
        """Tokens that went through the model, padding included."""
        return sum(r["tokens_computed"] for r in self.steps)

    @property
    def seconds(self) -> float | None:
        """In training steps alone."""
        return sum(r["dt"] for r in self.steps) if self.steps else self.run.get("seconds")

    @property
    def wall_seconds(self) -> float | None:
        """From where each session opened its log to its last record of training: compilation,
        evaluations and saves are in it; reading data before, and what a crash undid, are not.
        None when a session did not record its start."""
        starts = [i for i, r in enumerate(self.records) if "session" in r]
        if not starts or any("dt" in r for r in self.records[: starts[0]]):
            return None
        total = 0.0
        for start, end in zip(starts, [*starts[1:], len(self.records)], strict=True):
            part = self.records[start:end]
            times = [r["time"] for r in part if r.keys() & {"dt", "val_bpb", "session"}]
            total += times[-1] - times[0]
        return total

    @property
    def hours(self) -> float | None:
        """What is paid for: wall_seconds, or the steps' where those are not known."""
        seconds = self.seconds if self.wall_seconds is None else self.wall_seconds
        return None if seconds is None else seconds / 3600

    @property
    def tokens_per_second(self) -> float | None:
        return median(r["tokens_per_second"] for r in self.steps)

    @property
    def mfu(self) -> float | None:
        return median(r["mfu"] for r in self.steps)

    @property
    def flops(self) -> float | None:
        """Training FLOPs by the model's formula: tokens × the FLOPs a token that were recorded."""
        if not self.steps or not self.config:
            return None
        row = self.run.get("config", {}).get("max_tokens")  # of the runs that recorded no session
        per_token, total = model_of(self.config).flops_per_token(row), 0.0
        for record in self.records:
            if "session" in record:
                per_token = record["session"]["flops_per_token"]
            if "dt" in record:
                total += per_token * record["tokens_computed"]
        return total

    @property
    def device(self) -> str | None:
        """What it ran on, with the number of ranks."""
        last = self.sessions[-1] if self.sessions else {}
        name = last.get("device") or self.environment.get("device")
        ranks = last.get("ranks") or self.environment.get("ranks", 1)
        return f"{ranks} × {name}" if name and ranks > 1 else name

    def energy(self, assumed: Assumptions) -> Energy | None:
        """Measured where every session had a meter; else estimated from watts that were given or
        that the data sheet of the card says; else None."""
        joules = [r["joules"] for r in self.records if "joules" in r]
        sources = [s.get("energy_source") for s in self.sessions]
        if joules and None not in joules and sources and all(sources):
            nodes = self.sessions[-1]["nodes"]
            how = "measured: " + "; ".join(dict.fromkeys(sources))
            how += f", times {nodes} nodes, of which the first was measured" * (nodes > 1)
            return Energy(kilowatt_hours(sum(joules) * nodes), True, how)
        if self.hours is None:
            return None
        watts, how = assumed.watts, "{:,.0f} W given for the whole machine"
        if watts is None and self.sessions:
            last = self.sessions[-1]
            found = find_card(last["device"])
            if found and (board := found[1].watts):
                watts = board * last["ranks"]
                how = f"{{:,.0f}} W = {last['ranks']} × {board} W by the card's data sheet"
        if watts is None:
            return None
        how = f"estimated: {how.format(watts)} × {self.hours:.3g} h"
        return Energy(watts * self.hours / 1000, False, how)

    def core_stderr(self) -> float | None:
        """The standard error of CORE: that of a mean of independent centred accuracies."""
        measured = self.evaluations
        names = [k.removeprefix("core/") for k in measured if k.startswith("core/")]
        if not names or any(f"core_stderr/{name}" not in measured for name in names):
            return None
        return mean_stderr([
            centred_stderr(measured[f"core_accuracy/{n}"], measured[f"core_stderr/{n}"],
                           measured[f"core/{n}"]) for n in names
        ])  # fmt: skip

    def chatcore_stderr(self) -> float | None:
        """Likewise of ChatCORE, where the recorded centred scores are those that it is made of."""
        m = self.evaluations
        names = [k.removeprefix("centred/") for k in m if k.startswith("centred/")]
        names = [n for n in names if f"stderr/{n}" in m and f"accuracy/{n}" in m]
        if "chatcore" not in m or not names:
            return None
        if abs(sum(m[f"centred/{n}"] for n in names) / len(names) - m["chatcore"]) > 1e-6:
            return None
        errors = [(m[f"accuracy/{n}"], m[f"stderr/{n}"], m[f"centred/{n}"]) for n in names]
        return mean_stderr([centred_stderr(*three) for three in errors])


@dataclass(frozen=True)
class Totals:
    """Sums over a run's stages; None where one of them lacks the figure."""

    stages: list[StageRecord]
    assumed: Assumptions

    def sum_of(self, values: list[float | None]) -> float | None:
        return None if None in values else sum(values)

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages)

    @property
    def flops(self) -> float | None:
        return self.sum_of([stage.flops for stage in self.stages])

    @property
    def hours(self) -> float | None:
        return self.sum_of([stage.hours for stage in self.stages])

    @property
    def wall(self) -> bool:
        """Whether the hours count what lay between the steps, for every stage."""
        return all(stage.wall_seconds is not None for stage in self.stages)

    @property
    def cost(self) -> float | None:
        price = self.assumed.price_per_hour
        return None if price is None or self.hours is None else cost(self.hours, price)

    @property
    def kwh(self) -> float | None:
        energies = [stage.energy(self.assumed) for stage in self.stages]
        return self.sum_of([energy and energy.kwh for energy in energies])

    @property
    def measured(self) -> bool:
        """Whether all of the energy was measured, none estimated."""
        energies = [stage.energy(self.assumed) for stage in self.stages]
        return all(energy and energy.measured for energy in energies)


def model_of(config: dict) -> GPT:
    """The model of a config.json, without memory for its weights."""
    with torch.device("meta"):
        return GPT(from_hf(config))


def parameters(config: dict) -> dict[str, int]:
    """How many parameters each part of the model has, by its config.json.

    Example: at depth 20 with 65,536 ids: embedding 83,886,080, attention 131,072,000, MLP
    262,144,000, head 83,886,080.
    """
    parts = {
        "embedding": "embed_tokens",
        "attention": "self_attn",
        "MLP": ".mlp.",
        "head": "lm_head",
    }
    sizes = {name: p.numel() for name, p in model_of(config).named_parameters()}
    return {
        part: sum(size for name, size in sizes.items() if mark in name)
        for part, mark in parts.items()
    }


def read_json(path: Path) -> dict:
    """The file's object, {} where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
