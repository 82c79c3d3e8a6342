"""Figures as text, the same in report and model card. None, which was not measured, gives ""."""


def format_number(value: float | None, spec: str, stderr: float | None = None) -> str:
    """Example: format_number(0.3151, ".1%", 0.004) == "31.5% ± 0.4%"."""
    if value is None:
        return ""
    return f"{value:{spec}}" + (f" ± {stderr:{spec}}" if stderr is not None else "")


def format_compact(value: float | None, unit: str = "") -> str:
    """Examples: format_compact(560_988_160) == "561M", format_compact(2500, "g") == "2.5 kg"."""
    if value is None:
        return ""
    space, prefixes = (" ", "TGMk") if unit else ("", "TBMk")
    for limit, prefix in zip((1e12, 1e9, 1e6, 1e3), prefixes, strict=True):
        if value >= limit:
            return f"{value / limit:.3g}{space}{prefix}{unit}"
    return f"{value:.3g}{space}{unit}"


def format_hours(hours: float | None) -> str:
    """Example: format_hours(0.25) == "15.0 min"."""
    if hours is None:
        return ""
    if hours * 60 < 1:
        return f"{hours * 3600:.1f} s"
    return f"{hours * 60:.1f} min" if hours < 2 else f"{hours:.2f} h"


def format_dollars(amount: float | None) -> str:
    return "" if amount is None else f"${amount:,.2f}"


def format_memory(num_bytes: float | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 2**30:.2f} GiB"
