"""Figures of predictions for `predict.py --plot`: the class probabilities of some rows as bars.

Figures are built without pyplot, which keeps a global state and asks for a display. A notebook
shows what `draw_predictions` returns.
"""

import logging
import math
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ftloop.escape import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger("ftloop")

MAX_PANELS = 12  # rows in a figure
MAX_BARS = 10  # labels of a row: those with the highest probabilities
PANELS_ACROSS = 3
TITLE_WIDTH, TITLE_LINES = 46, 3  # characters per line, and lines, of a panel's title
MAX_PIXELS = 400  # of an image in a panel
PREDICTED, OTHER = "#1f6fb4", "#b9cbdb"


def save_predictions(rows: list[dict[str, Any]], task: Any, stream: BinaryIO, format: str) -> None:
    """Draw predictions and save them as png, svg or pdf. Missing characters are logged once."""
    figure = draw_predictions(rows, task)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(stream, format=format, dpi=110)
    missing = [warning for warning in caught if "missing from font" in str(warning.message)]
    if missing:
        logger.warning(
            "plot: matplotlib's font lacks %d character(s) of the texts, which are drawn as boxes",
            len(missing),
        )
    for warning in caught:
        if warning not in missing:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def can_draw(task: Any) -> bool:
    """Return whether the task predicts class probabilities or a number for a row."""
    return hasattr(type(task), "labels")


def draw_predictions(rows: list[dict[str, Any]], task: Any) -> "Figure":
    """Draw a panel for each of the first rows: an input joined with its prediction.

    Bars are class probabilities in percent, darker for predicted labels; of many labels, the ten
    most likely ones. In regression, the bar is the value.
    """
    from matplotlib.figure import Figure

    rows = rows[:MAX_PANELS]
    image_column = getattr(task, "image_column", None)
    across = min(len(rows), 2 if image_column else PANELS_ACROSS)
    down = math.ceil(len(rows) / across)
    bar_count = max(len(bars_of(row)[0]) for row in rows)
    panel_width = 6.8 if image_column else 4.8  # inches; an image takes 2
    size = (panel_width * across, (1.5 + 0.24 * bar_count) * down)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subfigures(down, across, squeeze=False).flat
    values = [row["value"] for row in rows if "value" in row]
    for row, panel in zip(rows, panels, strict=False):
        if image_column:
            image_axes, axes = panel.subplots(1, 2, width_ratios=(1, 2))
            draw_image(image_axes, row[image_column])
            title = wrap_title(image_name(row[image_column]))
            panel.suptitle(title, fontsize="small", parse_math=False)
        else:
            axes = panel.subplots()
            texts = [f'"{wrap_title(str(row[column]))}"' for column in task.input_columns]
            axes.set_title("\n".join(texts), fontsize="small", parse_math=False)
        draw_bars(axes, row)
        if values:  # the same axis in all panels
            axes.set_xlim(min(0, *values) * 1.2, max(0, *values) * 1.2 or 1)
    return figure


def bars_of(row: dict[str, Any]) -> tuple[list[str], list[float], list[bool]]:
    """Return the names of the bars of a row, their lengths, and whether they are predicted."""
    if "value" in row:
        return ["value"], [row["value"]], [True]
    probabilities = row["probabilities"]
    predicted = row.get("labels", [row.get("label")])
    names = list(probabilities)
    if len(names) > MAX_BARS:
        names = sorted(names, key=probabilities.__getitem__, reverse=True)[:MAX_BARS]
    percentages = [100 * probabilities[name] for name in names]
    return names, percentages, [name in predicted for name in names]


def draw_bars(axes: "Axes", row: dict[str, Any]) -> None:
    """Draw the bars of a row, from top to bottom."""
    names, lengths, is_predicted = bars_of(row)
    positions = range(len(names))
    colors = [PREDICTED if predicted else OTHER for predicted in is_predicted]
    bars = axes.barh(positions, lengths, color=colors)
    number_format = "%.3g" if "value" in row else "%.1f"
    axes.bar_label(bars, fmt=number_format, padding=3, fontsize="x-small")
    labels = [textwrap.shorten(printable(name), 28, placeholder="…") for name in names]
    axes.set_yticks(positions, labels, parse_math=False)
    axes.tick_params(labelsize="small")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    if "value" in row:
        axes.set_xlabel("value", fontsize="small")
        return
    axes.set_xlim(0, 112)  # room for the number beside the longest bar
    axes.set_xticks(range(0, 101, 25))
    label = "Class probability (%)"
    if len(names) < len(row["probabilities"]):
        label += f", the highest {len(names)} of {len(row['probabilities'])}"
    axes.set_xlabel(label, fontsize="small")


def draw_image(axes: "Axes", cell: Any) -> None:
    """Draw an image as it is in the data, not as the model sees it."""
    from ftloop.data.images import decode_image

    pixels = decode_image(cell).permute(1, 2, 0).numpy()
    step = max(1, max(pixels.shape) // MAX_PIXELS)
    axes.imshow(pixels[::step, ::step])
    axes.axis("off")


def image_name(cell: Any) -> str:
    """Return the name of an image file with the name of its folder, or "" if it has no file."""
    path = (cell["path"] or "") if isinstance(cell, dict) else str(cell)
    return "/".join(Path(path).parts[-2:])


def wrap_title(text: str) -> str:
    """Return a text in lines for a title; the end of a long text is left out."""
    text = printable(" ".join(text.split()))
    lines = textwrap.wrap(text, TITLE_WIDTH, max_lines=TITLE_LINES, placeholder=" …")
    return "\n".join(lines)
