"""Figures as SVG that takes its colours and its font from the page that it stands in."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import numpy as np

from nanochat.report.page import Figure

# Colours that matplotlib is given, and what the page calls them.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
SERIES = ("#0a0101", "#0a0202", "#0a0303")
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"}
VARIABLES |= {colour: f"var(--c{i})" for i, colour in enumerate(SERIES, 1)}
MOST_POINTS = 400  # of a curve
NARROWEST = 0.2  # height of an axis, as a part of its values: less needs ticks of many decimals


@contextmanager
def new_axes(x_label: str, y_label: str = "", **arguments) -> Iterator:
    """matplotlib's axes, in our style as long as the `with` lasts."""
    import matplotlib.figure  # subtle: pyplot would keep the figure and look for a window

    style = {"svg.fonttype": "none", "font.size": 9, "legend.fontsize": 9, "legend.frameon": False}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
    style |= {"axes.edgecolor": LINE, "grid.color": LINE, "text.color": INK}
    muted = ("axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor")
    with matplotlib.rc_context(style | dict.fromkeys(muted, MUTED)):
        figure = matplotlib.figure.Figure(**arguments)
        yield figure.add_subplot(xlabel=x_label, ylabel=y_label)


def lines(
    title: str,
    series: dict[str, list[tuple[float, float]]],
    x_label: str,
    y_label: str,
    noisy=False,
    from_zero=True,
) -> Figure:
    """(x, y) points by name, up to three of them, each as a line. noisy: drawn faintly behind its
    running mean."""
    from matplotlib.ticker import EngFormatter

    with new_axes(x_label, y_label, figsize=(4.6, 2.7)) as axes:  # can be read on a phone
        # subtle: a third of the time of a layout that measures every word.
        axes.figure.subplots_adjust(left=0.16, right=0.985, top=0.97, bottom=0.19)
        axes.yaxis.set_label_coords(-0.14, 0.5)
        axes.grid(axis="y")
        axes.margins(x=0.01)
        for (name, points), colour in zip(series.items(), SERIES, strict=False):
            x, y = np.array(points).T
            every = slice(None, None, -(-len(x) // MOST_POINTS))
            if noisy:
                axes.plot(x[every], y[every], color=colour, alpha=0.35, linewidth=0.8)
                y = running_mean(y)
            marker = "." if len(x) < 50 and not noisy else None
            axes.plot(x[every], y[every], color=colour, marker=marker, label=name)
        if from_zero:
            axes.set_ylim(bottom=0)
        low, high = axes.get_ylim()
        if (missing := NARROWEST * abs(high) - (high - low)) > 0:
            axes.set_ylim(low - missing / 2, high + missing / 2)
        if len(series) > 1:
            axes.legend()
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_data_interval()[1] >= 1000:
                axis.set_major_formatter(EngFormatter(sep=""))  # 5k and 2M
        return Figure(title, as_inline_svg(axes.figure, title))


def bars(
    title: str,
    x_label: str,
    model: str,
    scores: dict[str, tuple[float, float | None]],
    published: dict[str, dict[str, float]],
) -> Figure:
    """Bars of a model's scores by task, with standard errors, and dots for other models'."""
    at = {task: row for row, task in enumerate(scores)}
    values, errors = np.array(list(scores.values()), float).T  # an error that is None becomes NaN
    with new_axes(x_label, figsize=(5.2, 0.75 + 0.2 * len(at)), layout="constrained") as axes:
        axes.barh(range(len(at)), values, height=0.62, color=SERIES[0], alpha=0.75, label=model)
        axes.errorbar(values, range(len(at)), xerr=errors, fmt="none", ecolor=INK, capsize=2)
        for (other, known), colour, marker in zip(published.items(), SERIES[1:], "Ds", strict=True):
            dots = [(value, at[task]) for task, value in known.items() if task in at]
            axes.scatter(*zip(*dots, strict=True), s=13, c=colour, marker=marker, label=other)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        labels = [task.removeprefix("bigbench_").replace("_", " ") for task in at]
        axes.set_yticks(range(len(at)), labels)
        axes.set_ylim(len(at) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.figure.legend(loc="outside upper left", ncols=1 + len(published))
        return Figure(title, as_inline_svg(axes.figure, title))


def running_mean(values: np.ndarray) -> np.ndarray:
    """Each value averaged with its neighbours, a twentieth of all of them wide."""
    half = max(1, len(values) // 40)
    sums, counts = (np.convolve(x, np.ones(2 * half + 1)) for x in (values, np.ones_like(values)))
    return (sums / counts)[half:-half]


def as_inline_svg(figure, title: str) -> str:
    """The figure's <svg> element alone, its ids unique on the page, its colours the page's.

    title: unique on the page; also what a screen reader says.
    """
    buffer, name = io.StringIO(), re.sub(r"\W+", "-", title)
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", buffer.getvalue(), flags=re.S)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", svg[svg.index("<svg") :])
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
