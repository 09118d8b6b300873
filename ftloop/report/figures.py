"""Figures as SVG for a page: matplotlib's object interface, which needs no display and no global state.

Text stays text, in the reader's font; text and lines are drawn in `currentColor`, so that they follow the page into the
dark. Areas are tinted by transparency for the same reason. Where points may be thousands they become one small image.
The colours are those of Okabe and Ito (2008), told apart with any kind of colour vision.

A figure is drawn as wide as a phone shows it nearly 1:1; the same numbers give the same bytes.
"""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#A08D00")
GREY = "#8A8F94"
INK = "#010203"  # stands for currentColor: matplotlib knows no such colour
WIDTH = 4.7  # inches of 96 pixels: 451, of which a phone shows 360
NAMED = 40  # classes that a figure names at most; tables and CSV have them all

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ftloop",
    "font.family": "DejaVu Sans",  # comes with matplotlib; wider than what browsers use, so that nothing is cut
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # names of classes may hold dollars
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": False,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "image.interpolation": "nearest",
    "figure.dpi": 96,
    "savefig.dpi": 170,  # of what becomes an image
}


@dataclass
class Curve:
    """A line: its name in the legend, and its points. Values that are missing or not finite leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = COLOURS[0]
    points: bool = False  # with a mark at each: where there are few
    faint: bool = False  # behind others
    dashed: bool = False


def figure_of(rows: float, width: float = WIDTH, **options: Any) -> "Figure":
    """An empty figure, `rows` inches high. Call it, and all that draws, within `styled`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, rows), layout="constrained", **options)


def styled(draw: Any) -> Any:
    """Let a function that returns a Figure return its SVG, drawn in our style."""
    import functools

    @functools.wraps(draw)
    def drawn(*values: Any, **options: Any) -> str:
        import matplotlib

        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            # Only the widths of signs that matplotlib's font lacks are guessed; the reader's browser has them.
            warnings.filterwarnings("ignore", message="Glyph")
            warnings.filterwarnings("ignore", message="constrained_layout not applied")
            return svg_of(draw(*values, **options), described=draw.__doc__.partition("\n")[0])

    return drawn


def svg_of(figure: "Figure", described: str) -> str:
    """The drawing as an element of a page: its size left to the page, its ids its own."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=nothing)
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head).group()
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', rest))
    # Only ids that are used, and these by their content: equal ones on a page stand for the same thing.
    rest = re.sub(
        r' id="([^"]+)"', lambda found: found.group() if found.group(1) in used else "", rest
    )
    rest = re.sub(r"(?<=[\d])(\.\d{2})\d+(?=[ \"\n])", r"\1", rest)  # hundredths of a point
    rest = re.sub(r"<g>\s*</g>\s*", "", rest)
    rest = re.sub(r"\s*\n\s*", "\n", rest)
    rest = rest.replace(INK, "currentColor")
    return f'<svg {box} role="img" aria-label="{described}">{rest.strip()}'


def shortened(name: str, most: int = 24) -> str:
    """A name for a figure: on one line, and not wider than the figure bears."""
    name = " ".join("".join(sign if sign.isprintable() else " " for sign in str(name)).split())
    return name if len(name) <= most else name[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def whole_numbers(axis: Any) -> None:
    """Ticks at whole numbers, written with thin spaces."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}"))
    )


def legend(axes: "Axes", entries: Mapping[str, Any], columns: int = 3) -> None:
    """A legend above the axes: names, and what they stand for. Given by hand, for names may begin with an underscore,
    which matplotlib would leave out."""
    if entries:
        found = axes.legend(
            list(entries.values()),
            [f"\N{ZERO WIDTH SPACE}{shortened(name, 30)}" for name in entries],
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=min(columns, len(entries)),
            borderaxespad=0.2,
            columnspacing=1.2,
        )
        found.set_in_layout(True)


# ---- lines


def drawn_curves(axes: Any, curves: Sequence[Curve]) -> dict[str, Any]:
    """Draw them; by name, the lines that a legend explains."""
    named = {}
    for curve in curves:
        values = numpy.asarray([numpy.nan if value is None else value for value in curve.y], float)
        (line,) = axes.plot(
            *(curve.x, values),
            color=curve.colour,
            alpha=0.3 if curve.faint else 1,
            linewidth=0.8 if curve.faint else 1.5,
            linestyle="--" if curve.dashed else "-",
            marker="o" if curve.points else None,
            markersize=3,
        )
        if curve.name and not curve.faint:
            named[curve.name] = line
    return named


@styled
def lines(
    curves: Sequence[Curve],
    x: str,
    y: str,
    log: bool = False,
    height: float = 2.5,
    whole_x: bool = True,
) -> "Figure":
    """Curves over a common axis."""
    figure = figure_of(height)
    axes = figure.add_subplot()
    named = drawn_curves(axes, curves)
    if log:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if whole_x:
        whole_numbers(axes.xaxis)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(x=0.02)
    if len(named) > 1:
        legend(axes, named)
    return figure


@styled
def unit_lines(
    curves: Sequence[Curve], x: str, y: str, diagonal: bool = False, mark: float | None = None
) -> "Figure":
    """Curves between 0 and 1 on both axes."""
    figure = figure_of(3.6)
    axes = figure.add_subplot()
    if diagonal:
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linewidth=0.8, linestyle=":")
    if mark is not None:
        axes.axvline(mark, color=INK, alpha=0.6, linewidth=0.8, linestyle="--")
    named = drawn_curves(axes, curves)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
    if named:
        legend(axes, named, columns=2)
    return figure


# ---- bars and boxes


@styled
def bars(names: Sequence[str], groups: Mapping[str, Sequence[float]], x: str) -> "Figure":
    """Horizontal bars for each name, one of each group."""
    figure = figure_of(0.75 + len(names) * (0.09 + 0.11 * len(groups)))
    axes = figure.add_subplot()
    thick, named = 0.8 / len(groups), {}
    places = numpy.arange(len(names))
    for at, (group, values) in enumerate(groups.items()):
        drawn = axes.barh(
            places + (at - (len(groups) - 1) / 2) * thick, values, thick, color=COLOURS[at]
        )
        named[group] = drawn
    axes.set_yticks(places, [shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    whole_numbers(axes.xaxis)
    axes.set_xlabel(x)
    if len(groups) > 1:
        legend(axes, named)
    return figure


@styled
def intervals(
    names: Sequence[str], values: Sequence[float], spans: Sequence[Any], x: str, ours: int = -1
) -> "Figure":
    """A point for each name, with its interval where there is one. `ours`: how many are ours; the others are grey."""
    figure = figure_of(0.65 + 0.28 * len(names))
    axes = figure.add_subplot()
    for place, (value, span) in enumerate(zip(values, spans, strict=True)):
        colour = COLOURS[0] if ours < 0 or place < ours else GREY
        if span is not None:
            axes.plot(
                span, [place, place], color=colour, linewidth=2, solid_capstyle="butt", alpha=0.6
            )
        axes.plot([value], [place], marker="o", markersize=5, color=colour)
        axes.annotate(
            f"{value:.3f}",
            (value, place),
            (0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
        )
    axes.set_yticks(range(len(names)), [shortened(name, 34) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(x)
    return figure


@styled
def boxes(
    names: Sequence[str], values: Sequence[numpy.ndarray], x: str, mark: tuple[str, float] | None
) -> "Figure":
    """For each name, where its values lie: quartiles as a box, 5 and 95 % as its ends, the greatest as a point."""
    figure = figure_of(0.85 + 0.21 * len(names))
    axes = figure.add_subplot()
    quantiles = [numpy.quantile(found, (0.05, 0.25, 0.5, 0.75, 0.95, 1)) for found in values]
    for place, (low, first, middle, third, high, greatest) in enumerate(quantiles):
        axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=1)
        axes.barh(place, third - first, 0.62, left=first, color=COLOURS[0], alpha=0.45)
        axes.plot([middle, middle], [place - 0.31, place + 0.31], color=INK, linewidth=1.2)
        axes.plot([greatest], [place], marker=".", markersize=3, color=INK, alpha=0.6)
    if mark is not None:
        axes.axvline(mark[1], color=COLOURS[3], linewidth=1.2, linestyle="--")
        axes.annotate(
            *(mark[0], (mark[1], 1), (3, 2)),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=COLOURS[3],
            fontsize=8,
            ha="left"
            if mark[1] < 0.6 * max(*(span[-1] for span in quantiles), mark[1])
            else "right",
        )
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    whole_numbers(axes.xaxis)
    axes.set_xlabel(x)
    return figure


@styled
def ranked(groups: Mapping[str, Sequence[float]], y: str) -> "Figure":
    """Sizes from the largest down, where there are too many to be named."""
    figure = figure_of(2.4)
    axes = figure.add_subplot()
    named = {}
    for at, (group, values) in enumerate(groups.items()):
        ordered = sorted(values, reverse=True)
        (named[group],) = axes.step(
            range(1, len(ordered) + 1), ordered, where="mid", color=COLOURS[at]
        )
    axes.set_ylim(bottom=0)
    whole_numbers(axes.xaxis)
    whole_numbers(axes.yaxis)
    axes.set(xlabel="class, the largest first", ylabel=y)
    if len(groups) > 1:
        legend(axes, named)
    return figure


# ---- areas


def tinted(shares: numpy.ndarray, colour: str = COLOURS[0]) -> numpy.ndarray:
    """Shares from 0 to 1 as RGBA [.., 4]: one colour, more or less of it, over any background."""
    from matplotlib.colors import to_rgb

    rgba = numpy.empty((*shares.shape, 4))
    rgba[..., :3] = to_rgb(colour)
    rgba[..., 3] = numpy.clip(shares, 0, 1) * 0.95
    return rgba


@styled
def heat_map(
    shares: numpy.ndarray,
    shown: numpy.ndarray | None,
    names: Sequence[str],
    x: str,
    y: str,
    diagonal: bool = True,
) -> "Figure":
    """A square table of shares, as tints. With many names, they are numbered, and the cells bear no numbers."""
    count, few = len(names), len(names) <= 12
    width = WIDTH if count <= NAMED else 6.2
    figure = figure_of(min(width, 1.6 + 0.32 * count) if count <= NAMED else width, width)
    axes = figure.add_subplot()
    axes.grid(visible=False)
    axes.imshow(
        tinted(numpy.sqrt(shares) if count > 12 else shares), aspect="auto" if few else "equal"
    )
    if few and shown is not None:
        for row, column in numpy.ndindex(shares.shape):
            value = shown[row, column]
            text = f"{value:.2f}".removeprefix("0") if isinstance(value, float) else f"{value:d}"
            if value:
                dark = shares[row, column] > 0.5
                axes.text(
                    *(column, row, text),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="#ffffff" if dark else INK,
                )
    if count <= NAMED:
        size = 8 if few else max(4.5, 8 - 0.09 * count)
        labels = [shortened(name, 16) for name in names]
        axes.set_xticks(
            range(count),
            labels,
            rotation=90 if count > 5 and max(map(len, labels)) > 3 else 0,
            fontsize=size,
        )
        axes.set_yticks(range(count), labels, fontsize=size)
    else:
        ticks = range(0, count, 10)
        axes.set_xticks(ticks)
        axes.set_yticks(ticks)
    axes.tick_params(length=2)
    axes.spines[["top", "right"]].set_visible(True)
    axes.set(xlabel=x, ylabel=y)
    return figure


@styled
def scatter(x: numpy.ndarray, y: numpy.ndarray, names: tuple[str, str]) -> "Figure":
    """Points, and the line on which both values are the same."""
    figure = figure_of(3.8)
    axes = figure.add_subplot()
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    axes.plot(ends, ends, color=INK, alpha=0.4, linewidth=0.8, linestyle=":")
    axes.scatter(
        *(x, y),
        s=7,
        alpha=min(0.7, 30 / len(x) ** 0.5 / 2),
        color=COLOURS[0],
        linewidths=0,
        rasterized=len(x) > 500,
    )
    axes.set(xlabel=names[0], ylabel=names[1])
    return figure


@styled
def histogram(shares: Mapping[str, numpy.ndarray], edges: numpy.ndarray, x: str) -> "Figure":
    """How often values occur: for each group, the share of its rows between two edges."""
    figure = figure_of(2.4)
    axes = figure.add_subplot()
    named = {
        group: axes.stairs(found, edges, color=COLOURS[at], linewidth=1.4)
        for at, (group, found) in enumerate(shares.items())
    }
    axes.set(xlabel=x, ylabel="share of rows")
    axes.set_ylim(bottom=0)
    if len(shares) > 1:
        legend(axes, named)
    return figure


@styled
def cloud(
    points: numpy.ndarray, groups: Mapping[str, numpy.ndarray], axes_named: tuple[str, str]
) -> "Figure":
    """Points of a plane, coloured by group (name, and which points); those of no group are grey."""
    figure = figure_of(4.4)
    axes = figure.add_subplot()
    axes.grid(visible=False)
    size = 9 if len(points) < 800 else 5
    many = len(points) > 500
    rest = ~numpy.any(list(groups.values()), axis=0) if groups else numpy.ones(len(points), bool)
    axes.scatter(*points[rest].T, s=size, color=GREY, alpha=0.35, linewidths=0, rasterized=many)
    named = {}
    for colour, (name, chosen) in zip(COLOURS, groups.items(), strict=False):
        axes.scatter(
            *points[chosen].T, s=size, color=colour, alpha=0.75, linewidths=0, rasterized=many
        )
        named[name] = axes.plot([], [], marker="o", linestyle="", color=colour, markersize=4)[0]
    axes.set(xlabel=axes_named[0], ylabel=axes_named[1], xticks=[], yticks=[])
    legend(axes, named, columns=2)
    return figure


@styled
def hexagons(points: numpy.ndarray, groups: Mapping[str, numpy.ndarray]) -> "Figure":
    """Where the points of each group lie on the plane: a small panel each, darker where there are more."""
    across = 3
    down = -(-len(groups) // across)
    figure = figure_of(0.2 + 1.5 * down)
    span = [*(float(edge) for edge in numpy.quantile(points[:, 0], (0, 1)))]
    span += [float(edge) for edge in numpy.quantile(points[:, 1], (0, 1))]
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    tints = LinearSegmentedColormap.from_list(
        "tint", [to_rgba(COLOURS[0], 0.08), to_rgba(COLOURS[0], 1)]
    )
    for at, (name, chosen) in enumerate(groups.items()):
        axes = figure.add_subplot(down, across, at + 1)
        axes.grid(visible=False)
        axes.hexbin(
            *points[chosen].T,
            gridsize=18,
            extent=span,
            mincnt=1,
            cmap=tints,
            linewidths=0,
            rasterized=True,
        )
        axes.set(xticks=[], yticks=[], xlim=span[:2], ylim=span[2:])
        axes.set_title(
            f"\N{ZERO WIDTH SPACE}{shortened(name, 17)} ({chosen.sum():d})", fontsize=7.5
        )
    return figure
