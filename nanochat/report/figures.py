"""Figures as text, the same in report and model card. None, which was not measured, gives ""."""

from collections.abc import Callable
from functools import wraps


def blank_for_none(form: Callable[..., str]) -> Callable[..., str]:
    @wraps(form)
    def text(value: float | None, *arguments) -> str:
        return "" if value is None else form(value, *arguments)

    return text


@blank_for_none
def format_number(value: float, spec: str, stderr: float | None = None) -> str:
    """Example: format_number(0.3151, ".1%", 0.004) == "31.5% ± 0.4%"."""
    return f"{value:{spec}}" + (f" ± {stderr:{spec}}" if stderr is not None else "")


@blank_for_none
def format_compact(number: float) -> str:
    """Example: format_compact(560_988_160) == "561M"."""
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{letter}"
    return f"{number:,.0f}"


@blank_for_none
def format_hours(hours: float) -> str:
    """Example: format_hours(0.25) == "15.0 min"."""
    if hours * 60 < 1:
        return f"{hours * 3600:.1f} s"
    return f"{hours * 60:.1f} min" if hours < 2 else f"{hours:.2f} h"


@blank_for_none
def format_dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 0.1 else f"${amount:.2g}"


@blank_for_none
def format_energy(kwh: float) -> str:
    """Example: format_energy(0.0123) == "12.3 Wh"."""
    return f"{kwh * 1000:.3g} Wh" if kwh < 1 else f"{kwh:,.4g} kWh"


@blank_for_none
def format_mass(grams: float) -> str:
    """Example: format_mass(2500) == "2.5 kg"."""
    return f"{grams:.3g} g" if grams < 1000 else f"{grams / 1000:,.4g} kg"


@blank_for_none
def format_memory(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
