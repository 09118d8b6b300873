"""The figures of pages. Each function returns SVG.

The callers aggregate their data: a figure gets curves, counts or shares, and at most some thousand
points, which are drawn as an image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy

from ftloop.report.svg import (
    COLORS,
    GREY,
    INK,
    WIDTH,
    add_legend,
    as_svg,
    new_figure,
    set_integer_ticks,
    set_row_names,
    shorten_name,
    tint,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_NAMED = 40  # classes that a figure names; the table and the CSV file below it have all
MAX_NUMBERED = 12  # classes of a heat map whose cells show numbers
RASTERIZED_POINTS = 500  # more points are drawn as an image
PANELS_ACROSS = 3


@dataclass
class Curve:
    """A line with a name in the legend, unless it is "". Missing and NaN values leave gaps."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: str = COLORS[0]
    markers: bool = False  # a mark at each point, where there are few
    faint: bool = False  # in the background, not in the legend
    dashed: bool = False


# ---- curves


@as_svg("lines over a common axis")
def lines(
    curves: Sequence[Curve], x_label: str, y_label: str, log: bool = False, height: float = 2.5
) -> "Figure":
    """Draw curves over integers such as optimizer steps."""
    figure = new_figure(height)
    axes = figure.add_subplot()
    handles = plot_curves(axes, curves)
    if log:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    set_integer_ticks(axes.xaxis)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.margins(x=0.02)
    add_legend(axes, handles)
    return figure


@as_svg("lines between 0 and 1 on both axes")
def unit_lines(
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    diagonal: bool = False,
    mark: float | None = None,
) -> "Figure":
    """Draw curves between 0 and 1, with a dotted diagonal and a dashed vertical line at `mark`."""
    figure = new_figure(3.6)
    axes = figure.add_subplot()
    if diagonal:
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linewidth=0.8, linestyle=":")
    if mark is not None:
        axes.axvline(mark, color=INK, alpha=0.6, linewidth=0.8, linestyle="--")
    handles = plot_curves(axes, curves)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x_label, ylabel=y_label)
    add_legend(axes, handles, columns=2)
    return figure


def plot_curves(axes: "Axes", curves: Sequence[Curve]) -> dict[str, Any]:
    """Plot curves; return the lines that a legend explains, by name."""
    handles = {}
    for curve in curves:
        values = [numpy.nan if value is None else value for value in curve.y]
        (line,) = axes.plot(
            curve.x,
            values,
            color=curve.color,
            alpha=0.3 if curve.faint else 1,
            linewidth=0.8 if curve.faint else 1.5,
            linestyle="--" if curve.dashed else "-",
            marker="o" if curve.markers else None,
            markersize=3,
        )
        if curve.name and not curve.faint:
            handles[curve.name] = line
    return handles


# ---- sizes, intervals and distributions


@as_svg("horizontal bars")
def bars(names: Sequence[str], groups: Mapping[str, Sequence[float]], x_label: str) -> "Figure":
    """Draw a horizontal bar for each name and group; a group has a value for each name."""
    figure = new_figure(0.75 + len(names) * (0.09 + 0.11 * len(groups)))
    axes = figure.add_subplot()
    thickness = 0.8 / len(groups)
    handles = {}
    for index, (group, values) in enumerate(groups.items()):
        offset = (index - (len(groups) - 1) / 2) * thickness
        places = numpy.arange(len(names)) + offset
        handles[group] = axes.barh(places, values, thickness, color=COLORS[index])
    set_row_names(axes, [shorten_name(name) for name in names], margin=0.6)
    set_integer_ticks(axes.xaxis)
    axes.set_xlabel(x_label)
    if len(groups) > 1:
        add_legend(axes, handles)
    return figure


@as_svg("values with their intervals")
def intervals(
    names: Sequence[str],
    values: Sequence[float],
    ends: Sequence[tuple[float, float] | None],
    x_label: str,
    highlighted: int | None = None,
) -> "Figure":
    """Draw a point for each name, and its interval if there is one.

    The first `highlighted` names are colored and the others grey. Default: all are colored.
    """
    figure = new_figure(0.65 + 0.28 * len(names))
    axes = figure.add_subplot()
    for place, (value, interval) in enumerate(zip(values, ends, strict=True)):
        color = COLORS[0] if highlighted is None or place < highlighted else GREY
        if interval is not None:
            style = {"linewidth": 2, "solid_capstyle": "butt", "alpha": 0.6}
            axes.plot(interval, [place, place], color=color, **style)
        axes.plot([value], [place], marker="o", markersize=5, color=color)
        axes.annotate(
            f"{value:.3f}",
            xy=(value, place),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
        )
    set_row_names(axes, [shorten_name(name, 34) for name in names], margin=0.7)
    axes.margins(x=0.12)
    axes.set_xlabel(x_label)
    return figure


@as_svg("distributions as boxes")
def boxes(
    names: Sequence[str],
    values: Sequence[numpy.ndarray],
    x_label: str,
    mark: tuple[str, float] | None = None,
) -> "Figure":
    """Draw a box plot for each name: quartiles, 5 and 95 %, and the maximum as a point.

    `mark` is the name and the value of a dashed vertical line.
    """
    figure = new_figure(0.85 + 0.21 * len(names))
    axes = figure.add_subplot()
    axes.boxplot(
        values,
        positions=range(len(names)),
        widths=0.62,
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        showcaps=False,
        patch_artist=True,
        boxprops={"facecolor": COLORS[0], "alpha": 0.45, "linewidth": 0},
        whiskerprops={"color": COLORS[0], "linewidth": 1},
        medianprops={"color": INK, "linewidth": 1.2},
    )
    maxima = [group.max() for group in values]
    places = range(len(names))
    axes.plot(maxima, places, marker=".", markersize=3, color=INK, alpha=0.6, linestyle="")
    if mark is not None:
        label, value = mark
        axes.axvline(value, color=COLORS[3], linewidth=1.2, linestyle="--")
        axes.annotate(
            label,
            xy=(value, 1),
            xytext=(3, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=COLORS[3],
            fontsize=8,
            ha="left" if value < 0.6 * max(*maxima, value) else "right",
        )
    set_row_names(axes, [shorten_name(name) for name in names], margin=0.6)
    axes.set_xlim(left=0)
    set_integer_ticks(axes.xaxis)
    axes.set_xlabel(x_label)
    return figure


@as_svg("sizes of classes in descending order")
def ranked(groups: Mapping[str, Sequence[float]], y_label: str) -> "Figure":
    """Draw the sizes of many classes, the largest first, as a step function for each group."""
    figure = new_figure(2.4)
    axes = figure.add_subplot()
    handles = {}
    for index, (group, sizes) in enumerate(groups.items()):
        ranks = range(1, len(sizes) + 1)
        in_order = sorted(sizes, reverse=True)
        (handles[group],) = axes.step(ranks, in_order, where="mid", color=COLORS[index])
    axes.set_ylim(bottom=0)
    set_integer_ticks(axes.xaxis)
    set_integer_ticks(axes.yaxis)
    axes.set(xlabel="class, the largest first", ylabel=y_label)
    if len(groups) > 1:
        add_legend(axes, handles)
    return figure


@as_svg("a histogram")
def histogram(shares: Mapping[str, numpy.ndarray], edges: numpy.ndarray, x_label: str) -> "Figure":
    """Draw the share of the rows of each group that lies between two edges."""
    figure = new_figure(2.4)
    axes = figure.add_subplot()
    handles = {}
    for index, (group, of_group) in enumerate(shares.items()):
        handles[group] = axes.stairs(of_group, edges, color=COLORS[index], linewidth=1.4)
    axes.set(xlabel=x_label, ylabel="share of rows")
    axes.set_ylim(bottom=0)
    if len(shares) > 1:
        add_legend(axes, handles)
    return figure


# ---- tables of classes


@as_svg("a table of classes by classes")
def heat_map(
    shares: numpy.ndarray,
    numbers: numpy.ndarray | None,
    names: Sequence[str],
    x_label: str,
    y_label: str,
) -> "Figure":
    """Draw a square table of shares from 0 to 1 as tints.

    Cells show `numbers` if there are few names. Of many names, axes show the ids.
    """
    count = len(names)
    is_small, is_named = count <= MAX_NUMBERED, count <= MAX_NAMED
    width = WIDTH if is_named else 6.2
    height = min(width, 1.6 + 0.32 * count) if is_named else width
    figure = new_figure(height, width)
    axes = figure.add_subplot()
    axes.grid(visible=False)
    tints = tint(shares if is_small else numpy.sqrt(shares))  # small shares of many are visible
    axes.imshow(tints, aspect="auto" if is_small else "equal")
    if is_small and numbers is not None:
        write_numbers(axes, shares, numbers)

    if is_named:
        size = 8 if is_small else max(4.5, 8 - 0.09 * count)
        labels = [shorten_name(name, 16) for name in names]
        is_crowded = count > 5 and max(map(len, labels)) > 3
        axes.set_xticks(range(count), labels, rotation=90 if is_crowded else 0, fontsize=size)
        axes.set_yticks(range(count), labels, fontsize=size)
    else:
        axes.set_xticks(range(0, count, 10))
        axes.set_yticks(range(0, count, 10))
    axes.tick_params(length=2)
    axes.spines[["top", "right"]].set_visible(True)
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure


def write_numbers(axes: "Axes", shares: numpy.ndarray, numbers: numpy.ndarray) -> None:
    """Write the numbers that are not 0 into the cells of a heat map: 12, or .25 for a share."""
    for (row, column), number in numpy.ndenumerate(numbers):
        if not number:
            continue
        is_share = numpy.issubdtype(numbers.dtype, numpy.floating)
        text = f"{number:.2f}".removeprefix("0") if is_share else f"{number:d}"
        color = "#ffffff" if shares[row, column] > 0.5 else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=color)


# ---- points


@as_svg("points around a diagonal")
def scatter(x: numpy.ndarray, y: numpy.ndarray, x_label: str, y_label: str) -> "Figure":
    """Draw points, and the line on which both values are equal."""
    figure = new_figure(3.8)
    axes = figure.add_subplot()
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    axes.plot(ends, ends, color=INK, alpha=0.4, linewidth=0.8, linestyle=":")
    alpha = min(0.7, 15 / math.sqrt(len(x)))
    style = {"s": 7, "alpha": alpha, "color": COLORS[0], "linewidths": 0}
    axes.scatter(x, y, rasterized=len(x) > RASTERIZED_POINTS, **style)
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure


@as_svg("points of a plane by group")
def point_map(
    points: numpy.ndarray, groups: Mapping[str, numpy.ndarray], x_label: str, y_label: str
) -> "Figure":
    """Draw points [rows, 2], colored by group.

    A group is bool [rows]. There are at most as many as COLORS; points of no group are grey.
    """
    figure = new_figure(4.4)
    axes = figure.add_subplot()
    axes.grid(visible=False)
    style = {
        "s": 9 if len(points) < 800 else 5,
        "linewidths": 0,
        "rasterized": len(points) > RASTERIZED_POINTS,
    }
    x, y = points.T
    is_other = ~numpy.any([numpy.zeros(len(points), bool), *groups.values()], axis=0)
    axes.scatter(x[is_other], y[is_other], color=GREY, alpha=0.35, **style)
    handles = {}
    for color, (name, is_member) in zip(COLORS, groups.items(), strict=False):
        axes.scatter(x[is_member], y[is_member], color=color, alpha=0.75, **style)
        (handles[name],) = axes.plot([], [], marker="o", linestyle="", color=color, markersize=4)
    axes.set(xlabel=x_label, ylabel=y_label, xticks=[], yticks=[])
    add_legend(axes, handles, columns=2)
    return figure


@as_svg("the density of points in a panel for each group")
def density_panels(points: numpy.ndarray, groups: Mapping[str, numpy.ndarray]) -> "Figure":
    """Draw where the points of each group lie, [rows, 2], darker where there are more."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    down = math.ceil(len(groups) / PANELS_ACROSS)
    figure = new_figure(0.2 + 1.5 * down)
    x, y = points.T
    x_range, y_range = (x.min(), x.max()), (y.min(), y.max())
    tints = [to_rgba(COLORS[0], 0.08), to_rgba(COLORS[0], 1)]
    color_map = LinearSegmentedColormap.from_list("tint", tints)
    for index, (name, is_member) in enumerate(groups.items()):
        axes = figure.add_subplot(down, PANELS_ACROSS, index + 1)
        axes.grid(visible=False)
        axes.hexbin(
            x[is_member],
            y[is_member],
            gridsize=18,
            extent=(*x_range, *y_range),
            mincnt=1,
            cmap=color_map,
            linewidths=0,
            rasterized=True,
        )
        axes.set(xticks=[], yticks=[], xlim=x_range, ylim=y_range)
        title = f"\N{ZERO WIDTH SPACE}{shorten_name(name, 17)} ({is_member.sum()})"
        axes.set_title(title, fontsize=7.5)
    return figure
