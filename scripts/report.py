"""Makes a run's report (report.html, report.md) and its model card from what its stages recorded.

    python -m scripts.report
    python -m scripts.report --model-tag=d20 --price-per-hour=24

Training and evaluation scripts remake both by themselves when they end, with the price and the
other assumptions that were given here last.
"""

from dataclasses import dataclass

from nanochat.configurator import cli
from nanochat.report.formulas import Assumptions
from nanochat.report.report import CARD, print_tables, write_report


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


def main(config: Config) -> None:
    assumed = Assumptions(config.price_per_hour, config.watts, config.grams_per_kwh)
    folder = write_report(config.model_tag, assumed)
    print_tables(folder.name)
    print(f"report:      {folder / 'report.html'}")
    print(f"             {folder / 'report.md'}")
    print(f"model card:  {folder / CARD}")


if __name__ == "__main__":
    cli(main, Config)
