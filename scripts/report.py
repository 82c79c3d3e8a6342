"""Makes a run's report (report.html, report.md) and its model card from what its stages recorded.

    python -m scripts.report
    python -m scripts.report --model-tag=d20 --price-per-hour=24
    python -m scripts.report --model-tag=rehearsal --rehearsal --price-per-hour=24

Training and evaluation scripts remake both by themselves when they end, with the price and the
other assumptions that were given here last.
"""

from dataclasses import dataclass

from nanochat.configurator import cli
from nanochat.files import base_dir
from nanochat.report.evaluations import chat_tables
from nanochat.report.figures import format_memory
from nanochat.report.page import Table, print_table
from nanochat.report.report import CARD, write_report
from nanochat.report.run import Assumptions, StageRecord, lineage, newest_checkpoint
from nanochat.report.training import stage_tables


@dataclass(frozen=True)
class Config:
    model_tag: str | None = None
    """Run to report; default: the newest."""
    price_per_hour: float | None = None
    """Dollars an hour for the whole machine; without it no cost is given."""
    watts: float | None = None
    """Power of the whole machine, for the energy where none was measured; default: GPU boards by
    their data sheets, and nothing for other devices."""
    grams_per_kwh: float | None = None
    """CO2 of your electricity; default: the world's average, 481."""
    rehearsal: bool = False
    """Only estimate memory, hours and price of the whole run from the steps that were made."""


def estimate(stages: list[StageRecord], price_per_hour: float | None) -> None:
    """Memory, hours and price of the whole run, from each stage's last, compiled, step."""
    headers, rows, total = ["stage", "steps planned", "s/step", "hours", "peak memory"], [], 0.0
    for stage in stages:
        seconds, planned = stage.steps[-1]["dt"], stage.run["planned_steps"] or 0
        hours, memory = planned * seconds / 3600, format_memory(stage.run["peak_memory_bytes"])
        rows.append([stage.name, f"{planned:,}", f"{seconds:.2f}", f"{hours:.2f}", memory])
        total += hours
    print_table(Table("", headers, rows))
    price = f", {total * price_per_hour:,.2f} at {price_per_hour} an hour" if price_per_hour else ""
    print(f"training would take about {total:.1f} hours{price}; evaluations come on top")


def main(config: Config) -> None:
    if config.rehearsal:
        return estimate(lineage(newest_checkpoint(config.model_tag)), config.price_per_hour)
    assumed = Assumptions(config.price_per_hour, config.watts, config.grams_per_kwh)
    folder = write_report(config.model_tag, assumed)
    stages = lineage(newest_checkpoint(folder.name))
    print(f"{folder.name}  {base_dir()}")
    measured = {stage.name: stage.evaluations for stage in stages}
    for table in [*stage_tables(stages), *chat_tables(measured)]:
        print_table(table)
    print(f"report:      {folder / 'report.html'}")
    print(f"             {folder / 'report.md'}")
    print(f"model card:  {folder / CARD}")


if __name__ == "__main__":
    cli(main, Config)
