"""Prints what a run came to: each stage's time, tokens, speed, bits per byte; task accuracies.

    python -m scripts.summary --model-tag=d4
    python -m scripts.summary --model-tag=rehearsal --rehearsal --price-per-hour=24

Every figure is read from the run's own records (run.json, metrics.jsonl); nothing is recomputed.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nanochat.checkpoint_index import STAGES, available_checkpoints, checkpoint_dir
from nanochat.common import CheckpointError
from nanochat.configurator import cli
from nanochat.metrics import read_metrics


@dataclass(frozen=True)
class Config:
    model_tag: str | None = None
    """Run to report; default: the newest."""
    rehearsal: bool = False
    """Estimate memory, hours and price of the whole run from the steps that were made."""
    price_per_hour: float | None = None
    """Price of the machine, for the estimate."""


def collect(tag: str) -> dict[str, tuple[dict, list[dict]]]:
    """{stage: (run.json of its newest checkpoint, its metrics)} of the stages that there are."""
    stages = {}
    for stage in STAGES:
        found = available_checkpoints(stage, tag)
        if found:
            run = json.loads((found[0].path / "run.json").read_text())
            stages[stage] = run, read_metrics(checkpoint_dir(stage) / tag)
    return stages


def median(values: list[float]) -> float:
    values = sorted(values)
    return values[len(values) // 2] if values else float("nan")


def stage_table(stages: dict) -> Table:
    """One line a stage: what training took and reached."""
    table = Table("stage", "steps", "training", "tokens", "tokens/s", "MFU", "val bits/byte")
    for stage, (run, metrics) in stages.items():
        steps = [m for m in metrics if "dt" in m]
        speed = median([m["tokens_per_second"] for m in steps])
        bits = f"{run['val_bpb']:.4f}" if "val_bpb" in run else "-"
        table.add_row(
            stage,
            f"{run['step']:,}",
            f"{run['seconds'] / 60:.1f} min",
            f"{sum(m['tokens_computed'] for m in steps):,}",
            f"{speed:,.0f}",
            f"{median([m['mfu'] for m in steps]):.1%}",
            bits,
        )
    return table


def task_table(stages: dict) -> Table | None:
    """One line a task, one column a stage: accuracy and standard error of the last measurement."""
    columns = {}
    for stage, (_, metrics) in stages.items():
        merged: dict = {}
        for record in metrics:
            merged |= {k: v for k, v in record.items() if "/" in k}
        if any(name.startswith("accuracy/") for name in merged):
            columns[stage] = merged
    if not columns:
        return None
    names = [n for merged in columns.values() for n in merged if n.startswith("accuracy/")]
    table = Table("task", *columns, "examples")
    for name in dict.fromkeys(n.removeprefix("accuracy/") for n in names):
        cells = [
            f"{m[f'accuracy/{name}']:.1%} ± {m[f'stderr/{name}']:.1%}"
            if f"accuracy/{name}" in m
            else "-"
            for m in columns.values()
        ]
        examples = next(m[f"examples/{name}"] for m in columns.values() if f"examples/{name}" in m)
        table.add_row(name, *cells, f"{examples:,}")
    return table


def estimate(stages: dict, price_per_hour: float | None, console: Console) -> None:
    """Memory, hours and price of the whole run, from each stage's last, compiled, step."""
    table, hours = Table("stage", "steps planned", "s/step", "hours", "peak memory"), 0.0
    for stage, (run, metrics) in stages.items():
        seconds = [m["dt"] for m in metrics if "dt" in m][-1]
        planned = run["planned_steps"] or 0
        hours += planned * seconds / 3600
        memory = f"{run['peak_memory_bytes'] / 2**30:.1f} GiB"
        took = f"{planned * seconds / 3600:.2f}"
        table.add_row(stage, f"{planned:,}", f"{seconds:.2f}", took, memory)
    console.print(table)
    price = f", {hours * price_per_hour:,.2f} at {price_per_hour} an hour" if price_per_hour else ""
    console.print(f"training would take about {hours:.1f} hours{price}; evaluations come on top")


def main(config: Config) -> None:
    newest = available_checkpoints()
    if not newest:
        raise CheckpointError("there is no checkpoint to report; `bash speedrun.sh` makes some")
    tag = config.model_tag or newest[0].tag
    stages = collect(tag)
    if not stages:
        there = ", ".join(sorted({found.tag for found in newest}))
        raise CheckpointError(f"there is no run {tag!r}; runs: {there}")
    console = Console(width=100)
    if config.rehearsal:
        estimate(stages, config.price_per_hour, console)
        return
    console.print(f"[bold]{tag}[/bold]  {Path(checkpoint_dir('base').parent)}")
    console.print(stage_table(stages))
    if tasks := task_table(stages):
        console.print(tasks)
    console.print("chat:  python -m scripts.chat_cli", highlight=False)


if __name__ == "__main__":
    cli(main, Config)
