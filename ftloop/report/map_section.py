"""The features of the trained model on a plane, by class."""

import importlib.util
from typing import Any

import numpy

from ftloop.report import figures
from ftloop.report.features import extract_features
from ftloop.report.finished_run import FinishedRun
from ftloop.report.page import Html, Page
from ftloop.report.rows_section import format_labels
from ftloop.report.scored import ScoredSplit
from ftloop.report.sections import format_row_count
from ftloop.report.svg import COLORS
from ftloop.runs.finished import load_model, model_folder

MAX_ROWS = 2000  # rows in the map
MAX_PANELS = 12  # classes with a panel of their own
MIN_UMAP_ROWS = 16  # UMAP looks at 15 neighbors of each row

Groups = dict[str, numpy.ndarray]
"""bool [rows] by name: which rows have a class or label, or lie in a range of values."""


def add_feature_map(page: Page, run: FinishedRun) -> None:
    """Add the section "Feature map" with the rows of the main split."""
    page.add_section("Feature map")
    split, seed = run.main_split, run.config.seed
    model = load_model(run.task, model_folder(run.run_dir))
    row_ids, features = extract_features(run.config, run.task, model, split, max_rows=MAX_ROWS)
    points, method, axis_names = project_to_plane(features, seed)
    scored = run.score(split)
    # Of train, the sample that was scored and the sample of the map may differ.
    is_scored = numpy.isin(row_ids, scored.row_ids)
    points, row_ids = points[is_scored], row_ids[is_scored]
    scored = scored.take(numpy.searchsorted(scored.row_ids, row_ids))
    groups = group_rows(scored)
    page.add_grid(
        map_figure(page, scored, points, groups, method, axis_names),
        panel_figure(page, scored, points, groups),
    )


def map_figure(
    page: Page,
    scored: ScoredSplit,
    points: numpy.ndarray,
    groups: Groups,
    method: str,
    axis_names: tuple[str, str],
) -> Html:
    """Draw all rows in one map, the largest groups colored."""
    colored = dict(list(groups.items())[: len(COLORS)])
    data: dict[str, Any] = {
        "row": scored.row_ids.tolist(),
        "x": points[:, 0].tolist(),
        "y": points[:, 1].tolist(),
    }
    if scored.is_regression:
        data |= {"true": scored.references.tolist(), "predicted": scored.predictions.tolist()}
    else:
        data |= {
            "label": format_labels(scored, scored.references),
            "predicted": format_labels(scored, scored.predictions),
        }
    caption = (
        f"Features of the trained model: the mean over the tokens or patches of each row of "
        f"{scored.split} ({format_row_count(scored.rows, scored.total)}), projected by {method}."
    )
    if len(colored) < len(groups):
        caption += f" The {len(colored)} largest of {len(groups)} groups are colored."
    return page.figure("map", figures.point_map(points, colored, *axis_names), caption, data)


def panel_figure(page: Page, scored: ScoredSplit, points: numpy.ndarray, groups: Groups) -> Html:
    """Draw where the rows of each of the largest groups lie, in a panel each."""
    panels = dict(list(groups.items())[:MAX_PANELS])
    data: dict[str, list[Any]] = {"group": [], "x": [], "y": []}
    for name, is_member in panels.items():
        members = points[is_member]
        data["group"] += [name] * len(members)
        data["x"] += members[:, 0].tolist()
        data["y"] += members[:, 1].tolist()
    kind = "range of values" if scored.is_regression else "class"
    caption = f"The same map with a panel for each {kind}."
    if len(panels) < len(groups):
        caption += f" The {len(panels)} largest of {len(groups)} are shown."
    return page.figure("map-by-class", figures.density_panels(points, panels), caption, data)


def project_to_plane(
    features: numpy.ndarray, seed: int
) -> tuple[numpy.ndarray, str, tuple[str, str]]:
    """Return points [rows, 2], the method of projection, and the names of the axes.

    The method is UMAP (McInnes et al., 2018, arXiv:1802.03426) if umap-learn is installed, else
    PCA.
    """
    features = features.astype(float)
    if importlib.util.find_spec("umap") is not None and len(features) >= MIN_UMAP_ROWS:
        import umap

        points = umap.UMAP(n_components=2, random_state=seed, n_jobs=1).fit_transform(features)
        return numpy.round(points.astype(float), 4), "UMAP", ("", "")
    from sklearn.decomposition import PCA

    pca = PCA(min(2, *features.shape), svd_solver="full").fit(features)
    points = numpy.zeros((len(features), 2))
    points[:, : pca.n_components_] = pca.transform(features)
    names = ["", ""]
    for index, share in enumerate(pca.explained_variance_ratio_):
        names[index] = f"component {index + 1} ({share:.0%})"
    method = "PCA to two components (if umap-learn is installed, by UMAP)"
    return numpy.round(points, 4), method, (names[0], names[1])


def group_rows(scored: ScoredSplit) -> Groups:
    """Group rows by class or label, the largest group first; numbers into four equal parts."""
    groups: Groups = {}
    if scored.is_regression:
        quartiles = numpy.quantile(scored.references, (0.25, 0.5, 0.75))
        part = numpy.searchsorted(quartiles, scored.references)
        edges = [scored.references.min(), *quartiles, scored.references.max()]
        for index in range(4):
            groups[f"{edges[index]:.3g} to {edges[index + 1]:.3g}"] = part == index
        return {name: is_member for name, is_member in groups.items() if is_member.any()}
    for label, name in enumerate(scored.names):
        is_member = scored.has_label(label)
        if is_member.any():
            groups[name] = is_member
    return dict(sorted(groups.items(), key=lambda group: -group[1].sum()))
