"""Figures as SVG that takes its colours and its font from the page that it stands in."""

import io
import re
from dataclasses import dataclass

# Colours that matplotlib is given, and what the page calls them.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
SERIES = ("#0a0101", "#0a0202", "#0a0303", "#0a0404")
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"}
VARIABLES |= {colour: f"var(--c{i})" for i, colour in enumerate(SERIES, 1)}
MOST_POINTS = 400  # of a curve: more are averaged into so many
SIZE = (4.6, 2.7)  # inches; small, so that the words can still be read on a phone


@dataclass(frozen=True)
class Curve:
    """A line through (x, y). faint: what is measured at each step, behind its running mean."""

    xs: list[float]
    ys: list[float]
    label: str = ""
    faint: bool = False
    marked: bool = False  # with a dot at each point


@dataclass(frozen=True)
class Reference:
    """Published values of another model: (row, value) pairs."""

    label: str
    points: list[tuple[int, float]]


def thinned(xs: list[float], ys: list[float], most: int = MOST_POINTS) -> tuple[list, list]:
    """At most `most` points: means over equal runs of neighbours. Example: thinned([1, 2, 3, 4],
    [1, 3, 5, 7], 2) == ([1.5, 3.5], [2.0, 6.0])"""
    size = -(-len(xs) // most)
    if size <= 1:
        return list(xs), list(ys)
    runs = range(0, len(xs), size)
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return [mean(xs[i : i + size]) for i in runs], [mean(ys[i : i + size]) for i in runs]


def running_mean(values: list[float], share: float = 0.05) -> list[float]:
    """Each value averaged with its neighbours, `share` of all of them wide."""
    half = max(1, round(len(values) * share / 2))
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def curves_svg(
    name: str, curves: list[Curve], *, title: str, x_label: str, y_label: str, from_zero=False
) -> str:
    """Lines over a common axis. name: unique on the page; title: what a screen reader says."""
    with style():
        figure, axes = new_figure(SIZE)
        # subtle: a third of the time of a layout that measures every word.
        figure.subplots_adjust(left=0.15, right=0.985, top=0.97, bottom=0.19)
        for i, curve in enumerate(curves):
            xs, ys = thinned(curve.xs, curve.ys)
            look = {"alpha": 0.35, "linewidth": 0.8} if curve.faint else {"linewidth": 1.5}
            look |= {"marker": "o", "markersize": 3} if curve.marked else {}
            colour = SERIES[0] if any(c.faint for c in curves) else SERIES[i]
            axes.plot(xs, ys, color=colour, label=curve.label, **look)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.yaxis.set_label_coords(-0.155, 0.5)
        axes.grid(axis="y")
        axes.margins(x=0.01)
        if from_zero:
            axes.set_ylim(bottom=0)
        if sum(bool(c.label) for c in curves) > 1:
            axes.legend(loc="best")
        thousands(axes.xaxis)
        if max((max(c.ys) for c in curves), default=0) >= 1000:
            thousands(axes.yaxis)
        return as_inline_svg(figure, name, title)


def bars_svg(
    name: str,
    labels: list[str],
    values: list[float],
    errors: list[float | None],
    references: list[Reference],
    *,
    title: str,
    x_label: str,
    value_label: str,
) -> str:
    """Horizontal bars with error bars (where there is an error), the first on top, and dots where
    the references are."""
    with style():
        figure, axes = new_figure((5.2, 0.75 + 0.2 * len(labels)), layout="constrained")
        rows = range(len(labels))
        axes.barh(rows, values, height=0.62, color=SERIES[0], alpha=0.75, label=value_label)
        known = [(row, v, e) for row, v, e in zip(rows, values, errors, strict=True) if e]
        if known:
            at, lengths, spread = zip(*known, strict=True)
            axes.errorbar(
                lengths, at, xerr=spread, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2
            )
        for reference, colour, marker in zip(references, SERIES[1:], "Ds^", strict=False):
            at, lengths = zip(*reference.points, strict=True)
            look = {"marker": marker, "linestyle": "none", "markersize": 3.6, "color": colour}
            axes.plot(lengths, at, label=reference.label, **look)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_yticks(rows, labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlabel(x_label)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        if references:
            figure.legend(loc="outside upper left", ncols=1 + len(references), handletextpad=0.4)
        return as_inline_svg(figure, name, title)


# ---------------------------------------------------------------- matplotlib


def style():
    """matplotlib's settings for these figures, for the time of a `with`."""
    import matplotlib

    return matplotlib.rc_context({
        "svg.fonttype": "none", "font.size": 9, "axes.edgecolor": LINE, "axes.labelcolor": MUTED,
        "xtick.color": MUTED, "ytick.color": MUTED, "text.color": INK, "grid.color": LINE,
        "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False, "legend.labelcolor": MUTED,
        "legend.fontsize": 9, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
        "axes.formatter.useoffset": False,
    })  # fmt: skip


def new_figure(size: tuple[float, float], layout: str | None = None):
    """(figure, axes). subtle: not by pyplot, which keeps every figure and looks for a window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=layout)
    return figure, figure.add_subplot()


def thousands(axis) -> None:
    """Ticks as 5k and 2M."""
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter(sep=""))


def as_inline_svg(figure, name: str, title: str) -> str:
    """The figure's <svg> element alone, its ids unique under `name`, its colours the page's."""
    from html import escape

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    # The words in the page's own font; matplotlib measured them in a wider one.
    svg = re.sub(r"font: (?:\w+ )*([\d.]+px) [^;\"]*", r"font-size: \1; font-family: inherit", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"\n\s*", "\n", svg)
    head = f'<svg role="img" aria-label="{escape(title)}"'
    return svg.replace("<svg", head, 1).replace("#000000", "currentColor")
