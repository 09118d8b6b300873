"""Pictures of predictions, for predict.py --plot: bars of the class probabilities of each row, an image beside its own.

Figures are built without pyplot, which keeps a state and asks for a display; a notebook shows what `bars` returns.
"""

import logging
import math
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ftloop.tasks.classification import Task

logger = logging.getLogger("ftloop")

MOST_PANELS = 12  # rows of a figure
MOST_BARS = 10  # of a row: the labels with the highest probabilities
ACROSS = 3  # panels beside each other
TITLE = 46, 3  # characters of a line of a panel's text, and its lines
PREDICTED, OTHER = "#1f6fb4", "#b9cbdb"


def save(rows: list[dict[str, Any]], task: "Task", file: Path, format: str) -> None:
    """Write the figure of `bars` as png, svg or pdf."""
    figure = bars(rows, task)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(file, format=format, dpi=110)
    glyphs = [warning for warning in caught if "missing from font" in str(warning.message)]
    if glyphs:
        logger.warning("plot: matplotlib's font lacks %d character(s) of the texts: boxes stand for them", len(glyphs))
    for warning in caught:
        if warning not in glyphs:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def bars(rows: list[dict[str, Any]], task: "Task") -> "Figure":
    """A panel for each row of `ftloop.predict` joined with what was given: at most MOST_PANELS are drawn.

    Bars are class probabilities in per cent, those of what is predicted darker; of many labels, the highest MOST_BARS.
    Of regression, the value.
    """
    from matplotlib.figure import Figure

    rows = rows[:MOST_PANELS]
    picture = getattr(task, "image_column", None)  # of an image task
    across = min(len(rows), 2 if picture else ACROSS)
    down = math.ceil(len(rows) / across)
    count = max(len(scores_of(row)[0]) for row in rows)
    figure = Figure(
        figsize=(4.8 * across + 2.0 * across * bool(picture), (1.5 + 0.24 * count) * down), layout="constrained"
    )
    panels = figure.subfigures(down, across, squeeze=False).flat
    values = [row["value"] for row in rows if "value" in row]
    for row, panel in zip(rows, panels, strict=False):
        if picture:
            left, axes = panel.subplots(1, 2, width_ratios=(1, 2))
            draw_picture(left, row[picture])
            panel.suptitle(cut(name_of(row[picture])), fontsize="small", parse_math=False)
        else:
            axes = panel.subplots()
            texts = [cut(str(row[column])) for column in task.input_columns]
            axes.set_title("\n".join(f'"{text}"' for text in texts), fontsize="small", parse_math=False)
        draw_bars(axes, row)
        if values:
            axes.set_xlim(min(0, *values) * 1.2, max(0, *values) * 1.2 or 1)
    return figure


def scores_of(row: dict[str, Any]) -> tuple[list[str], list[float], list[bool]]:
    """Label, number and whether it is predicted, of the bars of a row, from top to bottom."""
    if "value" in row:
        return ["value"], [row["value"]], [True]
    chances, predicted = row["probabilities"], row.get("labels", [row.get("label")])
    names = list(chances)
    if len(names) > MOST_BARS:
        names = sorted(names, key=chances.__getitem__, reverse=True)[:MOST_BARS]
    return names, [100 * chances[name] for name in names], [name in predicted for name in names]


def draw_bars(axes: "Axes", row: dict[str, Any]) -> None:
    names, numbers, predicted = scores_of(row)
    places = range(len(names))
    drawn = axes.barh(places, numbers, color=[PREDICTED if one else OTHER for one in predicted])
    axes.bar_label(drawn, fmt="%.3g" if "value" in row else "%.1f", padding=3, fontsize="x-small")
    axes.set_yticks(places, [textwrap.shorten(name, 28, placeholder="…") for name in names], parse_math=False)
    axes.tick_params(labelsize="small")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    if "value" in row:
        axes.set_xlabel("value", fontsize="small")
        return
    axes.set_xlim(0, 112)  # room for the number beside the longest bar
    axes.set_xticks(range(0, 101, 25))
    left_out = len(row["probabilities"]) - len(names)
    highest = f", the highest {len(names)} of {len(row['probabilities'])}" if left_out else ""
    axes.set_xlabel(f"Class probability (%){highest}", fontsize="small")


def draw_picture(axes: "Axes", cell: Any) -> None:
    """The image as it is, not as the model sees it."""
    from ftloop.data.images import decode_image

    pixels = decode_image(cell).permute(1, 2, 0).numpy()
    step = max(1, max(pixels.shape) // 400)  # what a panel shows of it
    axes.imshow(pixels[::step, ::step])
    axes.axis("off")


def name_of(cell: Any) -> str:
    """Of an image: its name and that of its folder, if it has one."""
    path = (cell["path"] or "") if isinstance(cell, dict) else str(cell)
    return "/".join(Path(path).parts[-2:])


def cut(text: str) -> str:
    """A text in lines for a title; what does not fit is cut."""
    width, lines = TITLE
    return "\n".join(textwrap.wrap(" ".join(text.split()), width, max_lines=lines, placeholder=" …"))
