"""Figures are well-formed SVG that takes its colors from the page, and names nothing twice."""

from xml.etree import ElementTree

import numpy
import pytest

from ftloop.report import figures
from ftloop.report.curves import add_curves, is_within_one
from ftloop.report.figures import Curve
from ftloop.report.history import History, Series
from ftloop.report.page import Page
from ftloop.report.svg import INK, shorten_name

NAMES = ["_first", "<b>second</b> & more", "$third$"]
NUMBERS = numpy.random.default_rng(0).random((600, 2))
IS_FIRST = numpy.arange(600) < 200
SHARES = NUMBERS[:9, 0].reshape(3, 3)
CURVES = [
    Curve(NAMES[0], [1, 2, 3, 4], [0.1, 0.3, None, 0.9]),
    Curve("background", [1, 2], [0.5, numpy.nan], faint=True),
]


def draw_all() -> dict[str, str]:
    """Draw a figure of each kind."""
    sizes = {"train": [300, 200, 1], "test": [30, 20, 0]}
    groups = {NAMES[0]: IS_FIRST, NAMES[1]: ~IS_FIRST}
    ends = [(0.4, 0.6), None, (0.1, 0.2)]
    many = [f"class {index}" for index in range(50)]
    return {
        "lines": figures.lines(CURVES, "step", "loss", log=True),
        "unit_lines": figures.unit_lines(CURVES, "x", "y", diagonal=True, mark=0.5),
        "bars": figures.bars(NAMES, sizes, "rows"),
        "intervals": figures.intervals(NAMES, [0.5, 0.4, 0.15], ends, "accuracy", 1),
        "boxes": figures.boxes(NAMES, [NUMBERS[:, 0]] * 3, "tokens", ("max length", 0.5)),
        "ranked": figures.ranked(sizes, "rows"),
        "histogram": figures.histogram({"a": SHARES[0]}, numpy.arange(4), "value"),
        "heat_map": figures.heat_map(SHARES, SHARES, NAMES, "predicted", "true"),
        "large_heat_map": figures.heat_map(numpy.eye(50), None, many, "predicted", "true"),
        "scatter": figures.scatter(NUMBERS[:, 0], NUMBERS[:, 1], "true", "predicted"),
        "point_map": figures.point_map(NUMBERS, groups, "x", "y"),
        "density_panels": figures.density_panels(NUMBERS, groups),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return draw_all()


def texts_of(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))
    texts = ["".join(element.itertext()) for element in root.iter("text")]
    return [text.strip("\N{ZERO WIDTH SPACE}\n ") for text in texts]


def test_every_figure_is_svg_without_colors_of_its_own_for_text(drawn):
    for name, svg in drawn.items():
        ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))
        assert "aria-label=" in svg, name
        assert "currentColor" in svg, name
        assert INK not in svg, name


def test_equal_numbers_give_equal_bytes(drawn):
    assert draw_all() == drawn


def test_names_are_shown_as_they_are(drawn):
    for name, max_length in (("bars", 24), ("intervals", 34), ("boxes", 24), ("heat_map", 16)):
        expected = {shorten_name(label, max_length) for label in NAMES}
        assert expected <= set(texts_of(drawn[name])), name
    assert shorten_name("a\tb\x00  c") == "a b c"
    assert shorten_name("abcdef", 4) == "abc\N{HORIZONTAL ELLIPSIS}"


def test_a_legend_has_names_that_begin_with_an_underscore_but_no_background(drawn):
    for name in ("lines", "unit_lines", "point_map"):
        assert NAMES[0] in texts_of(drawn[name]), name
    assert "background" not in texts_of(drawn["lines"])


def test_few_cells_show_their_numbers_and_many_classes_are_numbered(drawn):
    numbers = [f"{share:.2f}".removeprefix("0") for share in SHARES.ravel()]
    assert [text for text in texts_of(drawn["heat_map"]) if text.startswith(".")] == numbers
    assert [text for text in texts_of(drawn["large_heat_map"]) if text.isdigit()] == (
        ["0", "10", "20", "30", "40"] * 2
    )


# ---- curves


def make_history(scores: dict[tuple[str, str], list[float | None]]) -> History:
    series = {
        name: Series(list(range(1, len(values) + 1)), values) for name, values in scores.items()
    }
    return History(series, {"data_wait": Series([1, 2], [0.0, 0.25])}, 10.0, 2, 1.0)


def test_scores_between_minus_one_and_one_share_a_figure():
    history = make_history(
        {
            ("train", "loss"): [1.0, 0.5],
            ("validation", "accuracy"): [0.5, 0.75],
            ("validation", "mse"): [3.0, 2.0],
        }
    )
    page = Page("curves", "report")
    add_curves(page, {"": history})
    assert page.figure_ids == {"loss", "scores", "curve-mse", "data-wait"}
    assert not is_within_one(Series([1], [None]))


def test_several_runs_have_a_figure_for_each_score():
    history = make_history({("train", "loss"): [1.0], ("validation", "accuracy"): [0.5]})
    page = Page("curves", "compare")
    add_curves(page, {"one": history, "other": make_history({("train", "loss"): [2.0]})})
    assert page.figure_ids == {"loss", "curve-accuracy", "data-wait"}
    html = page.render("")
    assert "one: train" in html
    assert "other: train" in html


def test_a_run_without_log_lines_has_no_curves():
    page = Page("curves", "report")
    add_curves(page, {"": History({}, {}, 0.0, 0, 0.0)})
    assert "Nothing is logged yet" in page.render("")
    assert page.figure_ids == set()
