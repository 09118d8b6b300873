"""Random scored splits for the tests of statistics, and what evaluation computes from them."""

import numpy

from ftloop.evaluation import add_batch, compute_metric
from ftloop.report.scored import ScoredSplit
from ftloop.tasks import metrics

NAMES = ("a", "b", "c", "d")


def random_split(
    problem_type: str, rows: int = 60, num_labels: int = 4, seed: int = 0
) -> ScoredSplit:
    """Return rows of which some are wrong. No row has the last label or is predicted to."""
    generator = numpy.random.default_rng(seed)
    if problem_type == metrics.REGRESSION:
        references = generator.normal(size=rows).round(1)  # with ties
        predictions = (references + generator.normal(size=rows)).round(1)
        losses = (references - predictions) ** 2
        return ScoredSplit("test", problem_type, (), references, predictions, None, losses)
    logits = generator.normal(size=(rows, num_labels))
    logits[:, -1] -= 9
    exponentials = numpy.exp(logits)
    if problem_type == metrics.MULTI:
        probabilities = (1 / (1 + 1 / exponentials)).round(2).astype("float32")
        references = generator.random((rows, num_labels)) < 0.7 * probabilities
        predictions = probabilities >= 0.5
        of_truth = numpy.where(references, probabilities, 1.001 - probabilities)
        losses = -numpy.log(of_truth).mean(axis=1)
    else:
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        probabilities = probabilities.astype("float32")
        possible = probabilities[:, :-1]
        cumulative = possible.cumsum(axis=1) / possible.sum(axis=1, keepdims=True)
        references = (generator.random((rows, 1)) > cumulative).sum(axis=1)
        predictions = probabilities.argmax(axis=1)
        losses = -numpy.log(probabilities[numpy.arange(rows), references])
    names = NAMES[:num_labels]
    return ScoredSplit("test", problem_type, names, references, predictions, probabilities, losses)


def evaluate_metric(scored: ScoredSplit, name: str) -> dict[str, float]:
    """Return the scores of a metric as evaluation computes them."""
    metric = metrics.build(name, scored.problem_type, scored.names)
    columns = {"predictions": scored.predictions, "references": scored.references}
    if scored.probabilities is not None:
        is_binary = not scored.is_multi_label and len(scored.names) == 2
        columns["prediction_scores"] = (
            scored.probabilities[:, 1] if is_binary else scored.probabilities
        )
    values = {
        name: column.astype(int) if column.dtype == bool else column
        for name, column in columns.items()
    }
    add_batch(metric, values)
    return compute_metric(metric)
