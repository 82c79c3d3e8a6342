"""The formulas behind every derived figure, and what they assume. Report and card print them."""

from collections.abc import Iterable
from dataclasses import dataclass

WORLD_GRAMS_PER_KWH = 481.0
WORLD_GRAMS_SOURCE = "the world's average in 2023 by Ember"


def kilowatt_hours(joules: float) -> float:
    """Example: kilowatt_hours(3.6e6) == 1.0"""
    return joules / 3.6e6


def cost(hours: float, price_per_hour: float) -> float:
    return hours * price_per_hour


def co2_grams(kwh: float, grams_per_kwh: float) -> float:
    return kwh * grams_per_kwh


def median(values: Iterable[float]) -> float | None:
    """The middle value, of two the mean; None of nothing. Example: median([1, 9, 2, 4]) == 3.0"""
    values = sorted(values)
    if not values:
        return None
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def baseline(accuracy: float, centred: float) -> float | None:
    """What guessing gives, from centred = (accuracy - baseline) / (1 - baseline); None where both
    are 1, whatever guessing gives. Example: baseline(0.625, 0.5) == 0.25"""
    return None if centred == 1 else (accuracy - centred) / (1 - centred)


def centred_stderr(accuracy: float, stderr: float, centred: float) -> float:
    """The standard error of a centred accuracy: that of the accuracy over 1 - baseline.

    Example: accuracy 0.625, centred 0.5 (baseline 0.25): an error of 0.03 becomes 0.04.
    """
    guessing = baseline(accuracy, centred)
    return 0.0 if guessing is None else stderr / (1 - guessing)


def mean_stderr(errors: list[float]) -> float:
    """The standard error of the mean of independent figures. Example: mean_stderr([3, 4]) == 2.5"""
    return sum(error**2 for error in errors) ** 0.5 / len(errors)


@dataclass(frozen=True)
class Assumptions:
    """What no run can measure."""

    price_per_hour: float | None = None  # of the whole machine
    watts: float | None = None  # of the whole machine, where nothing was measured
    grams_per_kwh: float | None = None  # CO2 of the electricity; None: the world's average

    @property
    def grid(self) -> float:
        return WORLD_GRAMS_PER_KWH if self.grams_per_kwh is None else self.grams_per_kwh

    @property
    def grid_source(self) -> str:
        return WORLD_GRAMS_SOURCE if self.grams_per_kwh is None else "given by whoever ran this"
