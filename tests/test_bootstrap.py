"""Scores of weighted rows equal those of repeated rows; intervals agree with closed forms."""

from dataclasses import replace

import numpy
import pytest
from scipy import stats
from scored_splits import evaluate_metric, random_split

from ftloop.errors import UserError
from ftloop.report import bootstrap
from ftloop.report.scored import ScoredSplit
from ftloop.report.weighted_scores import compute_scores, compute_weighted_scores
from ftloop.tasks import metrics


def two_classes_if_single_label(problem_type: str) -> ScoredSplit:
    scored = random_split(problem_type, num_labels=3)
    if problem_type != metrics.SINGLE:
        return scored
    chosen = scored.take(numpy.flatnonzero((scored.references < 2) & (scored.predictions < 2)))
    return replace(chosen, names=("a", "b"), probabilities=chosen.probabilities[:, :2])


@pytest.mark.parametrize("problem_type", [metrics.SINGLE, metrics.MULTI, metrics.REGRESSION])
def test_weighted_scores_are_those_of_repeated_rows(problem_type):
    generator = numpy.random.default_rng(1)
    for scored in (
        random_split(problem_type),
        random_split(problem_type, num_labels=3),
        two_classes_if_single_label(problem_type),
    ):
        metric_names = [
            name
            for name, score in metrics.SCORES.items()
            if problem_type in score.problem_types and (len(scored.names) == 2 or not score.binary)
        ]
        weights = generator.integers(0, 4, (3, scored.rows)).astype(float)
        weights[0] = 1
        result = compute_weighted_scores(scored, metric_names, weights)
        for index, weight in enumerate(weights):
            repeated = scored.take(numpy.repeat(numpy.arange(scored.rows), weight.astype(int)))
            assert result["loss"][index] == pytest.approx(repeated.losses.mean())
            for name in metric_names:
                for score, expected in evaluate_metric(repeated, name).items():
                    approximately = pytest.approx(expected, nan_ok=True, abs=1e-9)
                    assert result[score][index] == approximately, (score, index)


def test_constants_have_no_correlation_and_the_r2_of_scikit_learn():
    constant = replace(random_split(metrics.REGRESSION, rows=5), references=numpy.full(5, 2.0))
    metric_names = ("pearson", "spearman", "r2", "rmse")
    scores = compute_scores(constant, metric_names)
    assert numpy.isnan([scores["pearson"], scores["spearman"]]).all()
    assert scores["r2"] == 0.0
    perfect = replace(constant, predictions=constant.references)
    assert compute_scores(perfect, metric_names)["r2"] == 1.0
    interval = bootstrap.intervals(constant, metric_names, resamples=20)["pearson"]
    assert numpy.isnan([interval.value, interval.low, interval.high]).all()


def test_a_metric_that_does_not_fit_is_an_error():
    with pytest.raises(UserError, match="'pearson' does not fit"):
        compute_scores(random_split(metrics.SINGLE), ["pearson"])


# ---- intervals


def test_the_interval_of_accuracy_is_binomial_and_reproducible():
    scored = random_split(metrics.SINGLE, rows=500)
    metric_names = ("accuracy", "f1_per_class")
    result = bootstrap.intervals(scored, metric_names, resamples=4000)
    num_correct = int((~scored.wrong).sum())
    expected = stats.binom.ppf([0.025, 0.975], 500, num_correct / 500) / 500
    accuracy = result["accuracy"]
    assert accuracy.value == num_correct / 500
    assert [accuracy.low, accuracy.high] == pytest.approx(expected, abs=0.004)

    loss = result["loss"]
    half_width = 1.96 * scored.losses.std() / numpy.sqrt(500)
    normal = [loss.value - half_width, loss.value + half_width]
    assert [loss.low, loss.high] == pytest.approx(normal, abs=0.1 * half_width)

    absent = result["f1[d]"]
    assert (absent.low, absent.high, absent.resamples) == (0, 0, 4000)
    assert bootstrap.intervals(scored, metric_names, resamples=4000) == result


def test_very_many_rows_are_resampled_less_often(monkeypatch):
    monkeypatch.setattr(bootstrap, "MAX_DRAWS", 1000)
    monkeypatch.setattr(bootstrap, "CHUNK_SIZE", 60 * 7)  # 200 resamples of 60 rows, 7 at a time
    result = bootstrap.intervals(random_split(metrics.SINGLE), ("accuracy",))["accuracy"]
    assert result.resamples == bootstrap.MIN_RESAMPLES
    assert result.low < result.value < result.high


def test_an_interval_is_shifted_if_resamples_are_biased():
    resampled = numpy.random.default_rng(0).normal(size=100_000)
    bias = 0.3  # the value lies this many standard deviations above their median
    low, high = bootstrap.bias_corrected_percentiles(resampled, bias)
    assert [low, high] == pytest.approx([2 * bias - 1.96, 2 * bias + 1.96], abs=0.05)
    assert bootstrap.bias_corrected_percentiles(resampled, 9.0)[1] == 9.0
    assert bootstrap.bias_corrected_percentiles(numpy.full(10, 0.5), 0.5) == (0.5, 0.5)


# ---- differences of two models


def test_a_paired_difference_depends_on_the_rows_on_which_two_models_differ():
    a = random_split(metrics.SINGLE, rows=400)
    # b is like a, but in every tenth row it is wrong where a is correct.
    becomes_wrong = (numpy.arange(400) % 10 == 0) & ~a.wrong
    b = replace(a, predictions=numpy.where(becomes_wrong, (a.predictions + 1) % 3, a.predictions))
    result = bootstrap.paired_differences(a, b, ["accuracy"], resamples=4000)["accuracy"]
    gains = (~a.wrong).astype(float) - (~b.wrong)
    half_width = 1.96 * gains.std() / numpy.sqrt(400)
    assert result.value == pytest.approx(gains.mean()) == pytest.approx(result.a - result.b)
    normal = [result.value - half_width, result.value + half_width]
    assert [result.low, result.high] == pytest.approx(normal, abs=0.15 * half_width)
    assert result.p_value == pytest.approx(2 / 4001)

    result = bootstrap.paired_differences(b, a, ["recall_per_class"], resamples=100)
    assert list(result) == ["loss", "recall[a]", "recall[b]", "recall[c]", "recall[d]"]
    loss = result["loss"]  # it is the same for both
    assert (loss.value, loss.low, loss.high, loss.p_value) == (0, 0, 0, 1)


def test_only_models_on_the_same_rows_are_compared():
    a = random_split(metrics.SINGLE)
    other_labels = a.references.copy()
    other_labels[:2] = (other_labels[:2] + 1) % 3
    for b, message in (
        (a.take(numpy.arange(20)), "one run has 60 rows of test, the other has 20"),
        (replace(a, row_ids=a.row_ids + 1), "different rows of test"),
        (replace(a, references=other_labels), "the labels of 2 rows of test differ"),
        (random_split(metrics.MULTI), "the labels of the tasks differ"),
    ):
        with pytest.raises(UserError, match=message):
            bootstrap.paired_differences(a, b, ["accuracy"])
