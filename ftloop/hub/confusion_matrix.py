"""Draw the confusion matrix of a split as a PNG."""

from pathlib import Path
from typing import TYPE_CHECKING

from ftloop.escape import printable
from ftloop.files import replace_file

if TYPE_CHECKING:
    from ftloop.report.scored import ScoredSplit

MAX_NAME_LENGTH = 24
MAX_LABELS_WITH_COUNTS = 25


def draw_confusion_matrix(outputs: "ScoredSplit", file: Path) -> None:
    """Write a picture of the share of each true class, with counts if they fit.

    Multi-label outputs and regression have no confusion matrix: nothing is written for them.
    """
    if outputs.is_multi_label or outputs.is_regression:
        return
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_labels = len(outputs.names)
    counts = numpy.zeros((num_labels, num_labels), numpy.int64)
    numpy.add.at(counts, (outputs.references, outputs.predictions), 1)
    shares = counts / numpy.maximum(counts.sum(axis=1, keepdims=True), 1)

    # Without pyplot, which would keep global state
    side = min(3 + 0.55 * num_labels, 16)
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)

    # Labels and counts
    font_size = max(4, min(10, 500 / max(num_labels, 1)))
    names = [shorten(name) for name in outputs.names]
    ticks = range(num_labels)
    axes.set_xticks(ticks, names, rotation=90, fontsize=font_size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=font_size, parse_math=False)
    if num_labels <= MAX_LABELS_WITH_COUNTS:
        for (true, predicted), count in numpy.ndenumerate(counts):
            color = "white" if shares[true, predicted] > 0.5 else "black"
            position = {"x": predicted, "y": true, "ha": "center", "va": "center"}
            axes.text(s=str(count), color=color, fontsize=font_size, **position)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{outputs.split}, {outputs.rows} rows; color: share of the true class")
    figure.colorbar(image, fraction=0.046)
    with replace_file(file) as stream:  # without metadata, the same run gives the same bytes
        figure.savefig(stream, metadata={"Software": None})


def shorten(name: str) -> str:
    """Return a label for an axis: on one line, and cut if it is too long."""
    name = printable(name)
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…"
