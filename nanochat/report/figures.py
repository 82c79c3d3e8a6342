"""Figures as words, the same in report and model card."""


def format_percent(value: float, error: float | None = None) -> str:
    """Example: format_percent(0.3151, 0.004) == "31.5% ± 0.4%"."""
    return f"{value:.1%}" + (f" ± {error:.1%}" if error is not None else "")


def format_decimal(value: float, error: float | None = None) -> str:
    """Example: format_decimal(0.22194, 0.0031) == "0.2219 ± 0.0031"."""
    return f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def format_compact(number: float) -> str:
    """Example: format_compact(560_988_160) == "561M"."""
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{letter}"
    return f"{number:,.0f}"


def format_flops(number: float) -> str:
    """Example: format_flops(3.914e19) == "3.91e+19"."""
    return f"{number:.2e}"


def format_duration(hours: float) -> str:
    """Example: format_duration(0.25) == "15.0 min"."""
    if hours * 60 < 1:
        return f"{hours * 3600:.1f} s"
    return f"{hours * 60:.1f} min" if hours < 2 else f"{hours:.2f} h"


def format_money(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 0.1 else f"${amount:.2g}"


def format_energy(kwh: float) -> str:
    """Example: format_energy(0.0123) == "12.3 Wh"."""
    return f"{kwh * 1000:.3g} Wh" if kwh < 1 else f"{kwh:,.4g} kWh"


def format_mass(grams: float) -> str:
    """Example: format_mass(2500) == "2.5 kg"."""
    return f"{grams:.3g} g" if grams < 1000 else f"{grams / 1000:,.4g} kg"


def format_memory(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def maybe(form, value) -> str:
    """The value as words; of what was not measured, nothing."""
    return "" if value is None else form(value)
