"""Prints what a run came to: each stage's time, tokens, speed, bits per byte; task accuracies.

    python -m scripts.summary --model-tag=d4
    python -m scripts.summary --model-tag=rehearsal --rehearsal --price-per-hour=24

Every figure is the report's; `python -m scripts.report` prints the same and writes it as a page.
"""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from nanochat.configurator import cli
from nanochat.report.figures import format_memory
from nanochat.report.formulas import cost
from nanochat.report.report import print_tables
from nanochat.report.run import StageRecord
from nanochat.report.run_records import lineage, newest_checkpoint


@dataclass(frozen=True)
class Config:
    model_tag: str | None = None
    """Run to report; default: the newest."""
    rehearsal: bool = False
    """Estimate memory, hours and price of the whole run from the steps that were made."""
    price_per_hour: float | None = None
    """Price of the machine, for the estimate."""


def estimate(stages: list[StageRecord], price_per_hour: float | None, console: Console) -> None:
    """Memory, hours and price of the whole run, from each stage's last, compiled, step."""
    table, hours = Table("stage", "steps planned", "s/step", "hours", "peak memory"), 0.0
    for stage in stages:
        seconds, planned = stage.steps[-1]["dt"], stage.run["planned_steps"] or 0
        hours += planned * seconds / 3600
        used, took = (
            format_memory(stage.run["peak_memory_bytes"]),
            f"{planned * seconds / 3600:.2f}",
        )
        table.add_row(stage.name, f"{planned:,}", f"{seconds:.2f}", took, used)
    console.print(table)
    price = ""
    if price_per_hour:
        price = f", {cost(hours, price_per_hour):,.2f} at {price_per_hour} an hour"
    console.print(f"training would take about {hours:.1f} hours{price}; evaluations come on top")


def main(config: Config) -> None:
    newest = newest_checkpoint(config.model_tag)
    if config.rehearsal:
        estimate(lineage(newest), config.price_per_hour, Console(width=100))
        return
    print_tables(newest.parent.name)


if __name__ == "__main__":
    cli(main, Config)
