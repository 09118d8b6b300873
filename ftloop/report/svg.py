"""Turn matplotlib figures into SVG for a page, in one style.

Figures are built without pyplot, which keeps a global state and asks for a display. Text stays text
in the reader's font. Text and lines are drawn in `currentColor`, and areas are tinted by
transparency, so that figures also fit a dark page. Equal numbers give equal bytes.
"""

import functools
import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# The colors of Okabe and Ito (2008), which differ with any kind of color vision; the yellow is
# darker, because it is drawn on white.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#A08D00")
GREY = "#8A8F94"
INK = "#010203"  # replaced by currentColor, which matplotlib does not know
WIDTH = 4.7  # inches of 96 pixels: a phone shows a figure at about its own size
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ftloop",
    "font.family": "DejaVu Sans",  # part of matplotlib, and wider than browsers' fonts
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # names of classes may contain dollar signs
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
    "savefig.dpi": 170,  # of many points, which are drawn as an image
}


def as_svg(description: str) -> Callable[[Callable[..., "Figure"]], Callable[..., str]]:
    """Decorate a function that returns a Figure: it is called in our style and returns SVG.

    Screen readers read the description.
    """

    def decorate(draw: Callable[..., "Figure"]) -> Callable[..., str]:
        @functools.wraps(draw)
        def draw_svg(*arguments: Any, **options: Any) -> str:
            import matplotlib

            with matplotlib.rc_context(STYLE), warnings.catch_warnings():
                # For characters that its font lacks, matplotlib guesses the width; browsers have
                # fonts for them.
                warnings.filterwarnings("ignore", message="Glyph")
                warnings.filterwarnings("ignore", message="constrained_layout not applied")
                return to_svg(draw(*arguments, **options), description)

        return draw_svg

    return decorate


def to_svg(figure: "Figure", description: str) -> str:
    """Return a figure as an <svg> element whose size is left to the page."""
    stream = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=no_metadata)
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    head, body = text.split(">", 1)
    view_box = re.search(r'viewBox="[^"]+"', head).group()

    # Keep only the ids that are used. matplotlib derives these from the content, so equal ids of
    # several figures on a page name equal things.
    used_ids = set(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
    body = re.sub(
        r' id="([^"]+)"', lambda match: match.group() if match.group(1) in used_ids else "", body
    )
    # A smaller file: hundredths of a point, no empty groups, no indentation
    body = re.sub(r"(?<=\d)(\.\d{2})\d+(?=[ \"\n])", r"\1", body)
    body = re.sub(r"<g>\s*</g>\s*", "", body)
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    body = body.replace(INK, "currentColor")
    return f'<svg {view_box} role="img" aria-label="{description}">{body}'


# ---- what several figures share


def new_figure(height: float, width: float = WIDTH) -> "Figure":
    """Return an empty figure; sizes in inches. For functions that `as_svg` decorates."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def shorten_name(name: str, max_length: int = 24) -> str:
    """Return a name on one line, without control characters and not longer than `max_length`."""
    printable = "".join(character if character.isprintable() else " " for character in str(name))
    name = " ".join(printable.split())
    return name if len(name) <= max_length else name[: max_length - 1] + ELLIPSIS


def set_integer_ticks(axis: "Axis") -> None:
    """Put ticks at integers, with thin spaces between thousands."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def format_tick(value: float, position: int) -> str:
        return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")

    axis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_major_formatter(FuncFormatter(format_tick))


def set_row_names(axes: "Axes", names: list[str], margin: float) -> None:
    """Name the rows of a horizontal chart, the first at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -margin)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def add_legend(axes: "Axes", handles: Mapping[str, Any], columns: int = 3) -> None:
    """Add a legend above the axes. `handles` are what matplotlib drew, by name."""
    if not handles:
        return
    legend = axes.legend(
        list(handles.values()),
        # matplotlib leaves out names that begin with an underscore, hence the character before.
        [f"\N{ZERO WIDTH SPACE}{shorten_name(name, 30)}" for name in handles],
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=min(columns, len(handles)),
        borderaxespad=0.2,
        columnspacing=1.2,
    )
    legend.set_in_layout(True)


def tint(shares: numpy.ndarray, color: str = COLORS[0]) -> numpy.ndarray:
    """Return shares from 0 to 1 as RGBA [..., 4]: one color, the more opaque the larger."""
    from matplotlib.colors import to_rgb

    rgba = numpy.empty((*shares.shape, 4))
    rgba[..., :3] = to_rgb(color)
    rgba[..., 3] = numpy.clip(shares, 0, 1) * 0.95
    return rgba
