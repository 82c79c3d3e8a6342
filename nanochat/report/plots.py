"""Figures as SVG that takes its colours and its font from the page that it stands in."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

from nanochat.report.page import Figure

# Colours that matplotlib is given, and what the page calls them.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
SERIES = ("#0a0101", "#0a0202", "#0a0303")
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"}
VARIABLES |= {colour: f"var(--c{i})" for i, colour in enumerate(SERIES, 1)}
MOST_POINTS = 400  # of a curve: more are averaged into so many


@contextmanager
def new_figure(**arguments) -> Iterator:
    """matplotlib's figure, in our style as long as the `with` lasts."""
    import matplotlib.figure  # subtle: pyplot would keep the figure and look for a window

    style = {
        "axes.edgecolor": LINE, "axes.labelcolor": MUTED, "xtick.color": MUTED,
        "ytick.color": MUTED, "text.color": INK, "grid.color": LINE, "legend.labelcolor": MUTED,
        "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.formatter.useoffset": False,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
        "font.size": 9, "legend.fontsize": 9, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
        "svg.fonttype": "none",  # words stay words
    }  # fmt: skip
    with matplotlib.rc_context(style):
        yield matplotlib.figure.Figure(**arguments)


def curve(
    title: str, steps: list[int], values: list[float], unit: str, *, noisy=False, from_zero=False
) -> Figure:
    """What was measured over the training steps. noisy: drawn faintly behind its running mean."""
    from matplotlib.ticker import EngFormatter

    thousands = EngFormatter(sep="")  # 5k and 2M
    with new_figure(figsize=(4.6, 2.7)) as figure:  # small: its words can be read on a phone
        # subtle: a third of the time of a layout that measures every word.
        figure.subplots_adjust(left=0.15, right=0.985, top=0.97, bottom=0.19)
        axes = figure.add_subplot(xlabel="step", ylabel=unit)
        axes.yaxis.set_label_coords(-0.155, 0.5)
        axes.grid(axis="y")
        axes.margins(x=0.01)
        look = {"marker": "o", "markersize": 3} if len(steps) < 50 else {}
        if noisy:
            axes.plot(thinned(steps), thinned(values), color=SERIES[0], alpha=0.35, linewidth=0.8)
            values, look = running_mean(values), {}
        axes.plot(thinned(steps), thinned(values), color=SERIES[0], linewidth=1.5, **look)
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(thousands)
        if max(values) >= 1000:
            axes.yaxis.set_major_formatter(thousands)
        return Figure(title, as_inline_svg(figure, title))


def bars(
    title: str,
    x_label: str,
    model: str,
    rows: list[tuple[str, float, float | None]],
    references: dict[str, dict[int, float]],
) -> Figure:
    """Horizontal bars of a model's (label, value, standard error), the first on top, and dots for
    published values of others: {model: {row: value}}."""
    labels, values, errors = zip(*rows, strict=True)
    errors = [float("nan") if error is None else error for error in errors]
    with new_figure(figsize=(5.2, 0.75 + 0.2 * len(rows)), layout="constrained") as figure:
        axes, at = figure.add_subplot(xlabel=x_label), range(len(rows))
        axes.barh(at, values, height=0.62, color=SERIES[0], alpha=0.75, label=model)
        axes.errorbar(values, at, xerr=errors, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
        dots = zip(references.items(), SERIES[1:], "Ds", strict=True)
        for (label, points), colour, marker in dots:
            look = {"marker": marker, "linestyle": "none", "markersize": 3.6, "color": colour}
            axes.plot(list(points.values()), list(points), label=label, **look)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_yticks(at, labels)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper left", ncols=1 + len(references), handletextpad=0.4)
        return Figure(title, as_inline_svg(figure, title), wide=True)


def thinned(values: list[float], most: int = MOST_POINTS) -> list[float]:
    """At most `most` means over equal runs of neighbours.

    Example: thinned([1, 3, 5, 7], 2) == [2.0, 6.0]
    """
    size = -(-len(values) // most)
    return [sum(run := values[i : i + size]) / len(run) for i in range(0, len(values), size)]


def running_mean(values: list[float], share: float = 0.05) -> list[float]:
    """Each value averaged with its neighbours, `share` of all of them wide."""
    half = max(1, round(len(values) * share / 2))
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def as_inline_svg(figure, title: str) -> str:
    """The figure's <svg> element alone, its ids unique on the page, its colours the page's.

    title: unique on the page; also what a screen reader says.
    """
    buffer, name = io.StringIO(), re.sub(r"\W+", "-", title)
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
