"""Numbers of reports against scikit-learn, closed forms and plain loops."""

import dataclasses

import numpy
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score

from ftloop.errors import UserError
from ftloop.evaluation import add_batch, compute_metric
from ftloop.report import statistics
from ftloop.report.scored import Scored
from ftloop.tasks import metrics

NAMES = ("a", "b", "c", "d")


def draw(problem_type: str, rows: int = 60, labels: int = 4, seed: int = 0) -> Scored:
    """Rows of which some are wrong; the last label is never there, nor predicted."""
    random = numpy.random.default_rng(seed)
    if problem_type == metrics.REGRESSION:
        references = random.normal(size=rows).round(1)  # with ties
        predictions = (references + random.normal(size=rows)).round(1)
        return Scored("test", problem_type, (), references, predictions, None, (references - predictions) ** 2)
    logits = random.normal(size=(rows, labels))
    logits[:, -1] -= 9
    if problem_type == metrics.MULTI:
        probabilities = (1 / (1 + numpy.exp(-logits))).round(2).astype("float32")
        references = random.random((rows, labels)) < 0.7 * probabilities
        predictions = probabilities >= 0.5
        losses = -numpy.log(numpy.where(references, probabilities, 1.001 - probabilities)).mean(axis=1)
    else:
        probabilities = (numpy.exp(logits) / numpy.exp(logits).sum(axis=1, keepdims=True)).astype("float32")
        cumulated = probabilities[:, :-1].cumsum(axis=1) / probabilities[:, :-1].sum(axis=1, keepdims=True)
        references = (random.random((rows, 1)) > cumulated).sum(axis=1)
        predictions = probabilities.argmax(axis=1)
        losses = -numpy.log(probabilities[numpy.arange(rows), references])
    return Scored("test", problem_type, NAMES[:labels], references, predictions, probabilities, losses)


def by_evaluate(scored: Scored, name: str) -> dict[str, float]:
    """The score as training prints it."""
    metric = metrics.build(name, scored.problem_type, scored.names)
    columns = {"predictions": scored.predictions, "references": scored.references}
    if scored.probabilities is not None:
        two = not scored.is_multi_label and len(scored.names) == 2
        columns["prediction_scores"] = scored.probabilities[:, 1] if two else scored.probabilities
    kept = {name: value * 1 if value.dtype == bool else value for name, value in columns.items()}
    add_batch(metric, kept)
    return compute_metric(metric)


def two(problem_type: str) -> Scored:
    whole = draw(problem_type, labels=3)
    if problem_type != metrics.SINGLE:
        return whole
    kept = whole.take(numpy.flatnonzero((whole.references < 2) & (whole.predictions < 2)))
    return dataclasses.replace(kept, names=("a", "b"), probabilities=kept.probabilities[:, :2])


@pytest.mark.parametrize("problem_type", [metrics.SINGLE, metrics.MULTI, metrics.REGRESSION])
def test_a_score_of_weighted_rows_is_that_of_repeated_rows(problem_type):
    random = numpy.random.default_rng(1)
    for scored in (draw(problem_type), draw(problem_type, labels=3), two(problem_type)):
        names = [name for name, score in metrics.SCORES.items() if problem_type in score.problem_types]
        names = [name for name in names if len(scored.names) == 2 or not metrics.SCORES[name].binary]
        weights = random.integers(0, 4, (3, scored.rows)).astype(float)
        weights[0] = 1
        found = statistics.weighted_scores(scored, names, weights)
        for number, weight in enumerate(weights):
            repeated = scored.take(numpy.repeat(numpy.arange(scored.rows), weight.astype(int)))
            assert found["loss"][number] == pytest.approx(repeated.losses.mean())
            for name in names:
                for score, value in by_evaluate(repeated, name).items():
                    assert found[score][number] == pytest.approx(value, nan_ok=True, abs=1e-9), (score, number)


def test_constants_have_no_correlation_and_scikit_learns_r2():
    flat = dataclasses.replace(draw(metrics.REGRESSION, rows=5), references=numpy.full(5, 2.0))
    names = ("pearson", "spearman", "r2", "rmse")
    found = statistics.scores(flat, names)
    assert numpy.isnan([found["pearson"], found["spearman"]]).all()
    assert found["r2"] == 0.0
    assert statistics.scores(dataclasses.replace(flat, predictions=flat.references), names)["r2"] == 1.0
    interval = statistics.intervals(flat, names, resamples=20)["pearson"]
    assert numpy.isnan([interval.value, interval.low, interval.high]).all()


def test_the_interval_of_accuracy_is_the_binomials_and_the_same_again():
    scored = draw(metrics.SINGLE, rows=500)
    found = statistics.intervals(scored, ("accuracy", "f1_per_class"), resamples=4000)
    correct = int((~scored.wrong).sum())
    expected = stats.binom.ppf([0.025, 0.975], 500, correct / 500) / 500
    accuracy = found["accuracy"]
    assert accuracy.value == correct / 500
    assert [accuracy.low, accuracy.high] == pytest.approx(expected, abs=0.004)
    loss, half = found["loss"], 1.96 * scored.losses.std() / numpy.sqrt(500)
    assert [loss.low, loss.high] == pytest.approx([loss.value - half, loss.value + half], abs=0.1 * half)
    assert (found["f1[d]"].low, found["f1[d]"].high, found["f1[d]"].resamples) == (0, 0, 4000)
    again = statistics.intervals(scored, ("accuracy", "f1_per_class"), resamples=4000)
    assert again == found


def test_very_many_rows_are_drawn_less_often(monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 1000)
    monkeypatch.setattr(statistics, "CHUNK", 60 * 7)  # 200 resamples in chunks of 7
    found = statistics.intervals(draw(metrics.SINGLE), ("accuracy",))["accuracy"]
    assert found.resamples == statistics.LEAST_RESAMPLES
    assert found.low < found.value < found.high


def test_an_interval_is_moved_where_resamples_tend_to_one_side():
    drawn = numpy.random.default_rng(0).normal(size=100_000)
    shift = 0.3  # so much of a deviation lies the value above their median
    low, high = statistics._between(drawn, 0.95, shift)
    assert [low, high] == pytest.approx([2 * shift - 1.96, 2 * shift + 1.96], abs=0.05)
    assert statistics._between(drawn, 0.95, 9.0)[1] == 9.0
    assert statistics._between(numpy.full(10, 0.5), 0.95, 0.5) == (0.5, 0.5)


def test_a_paired_difference_is_that_of_the_discordant_rows():
    a, b = draw(metrics.SINGLE, rows=400), draw(metrics.SINGLE, rows=400)
    flipped = numpy.arange(400) % 10 == 0  # b is wrong where a is right
    b = dataclasses.replace(b, predictions=numpy.where(flipped & ~a.wrong, (a.predictions + 1) % 3, b.predictions))
    found = statistics.paired_difference(a, b, "accuracy", resamples=4000)
    gains = (~a.wrong).astype(float) - (~b.wrong)
    half = 1.96 * gains.std() / 20
    assert found.value == pytest.approx(gains.mean()) == pytest.approx(found.a - found.b)
    assert [found.low, found.high] == pytest.approx([found.value - half, found.value + half], abs=0.15 * half)
    assert found.p == pytest.approx(2 / 4001)
    back = statistics.paired_difference(b, a, "loss", resamples=100)
    assert (back.value, back.low, back.high, back.p) == (0, 0, 0, 1)
    assert statistics.paired_difference(a, b, "recall[a]", resamples=100).rows == 400


def test_only_the_same_rows_are_compared():
    a = draw(metrics.SINGLE)
    with pytest.raises(UserError, match="one has 60, the other 20"):
        statistics.paired_difference(a, a.take(numpy.arange(20)), "accuracy")
    other = a.references.copy()
    other[:2] = (other[:2] + 1) % 3
    with pytest.raises(UserError, match="the labels of 2 differ"):
        statistics.paired_difference(a, dataclasses.replace(a, references=other), "accuracy")
    with pytest.raises(UserError, match="theirs differ"):
        statistics.paired_difference(a, draw(metrics.MULTI), "loss")
    with pytest.raises(UserError, match="'pearson' does not fit"):
        statistics.paired_difference(a, a, "pearson")


def test_classes_are_counted_as_a_loop_counts_them():
    single, multi = draw(metrics.SINGLE), draw(metrics.MULTI)
    counts = statistics.confusion(single)
    for true in range(4):
        for predicted in range(4):
            assert counts[true, predicted] == sum((single.references == true) & (single.predictions == predicted))
    truth, said = statistics.co_occurrence(multi)
    for one in range(4):
        for other in range(4):
            assert truth[one, other] == sum(multi.references[:, one] & multi.references[:, other])
            assert said[one, other] == sum(multi.predictions[:, one] & multi.predictions[:, other])
    assert statistics.label_confusions(multi)[:, 1, :].sum(axis=1).tolist() == numpy.diag(truth).tolist()
    for scored in (single, multi):
        found = statistics.per_class(scored)
        assert found.f1 == pytest.approx(
            f1_score(scored.references, scored.predictions, average=None, labels=range(4), zero_division=0)
        )
        assert found.support[-1] == found.precision[-1] == 0


def test_calibration_is_that_of_a_plain_loop():
    for scored in (draw(metrics.SINGLE), draw(metrics.MULTI)):
        scored = dataclasses.replace(scored, probabilities=scored.probabilities * 0.999)  # none on the edge of a bin
        if scored.is_multi_label:
            pairs = [*zip(scored.probabilities.ravel(), scored.references.ravel(), strict=True)]
        else:
            pairs = [*zip(scored.probabilities.max(axis=1), ~scored.wrong, strict=True)]
        ece = 0.0
        found = statistics.calibration(scored)
        for number in range(15):
            inside = [pair for pair in pairs if number / 15 < pair[0] <= (number + 1) / 15 or pair[0] == number == 0]
            assert found.counts[number] == len(inside)
            if inside:
                confidence, correct = numpy.mean(inside, axis=0)
                assert [found.confidence[number], found.correct[number]] == pytest.approx([confidence, correct])
                ece += len(inside) / len(pairs) * abs(confidence - correct)
        assert found.ece == pytest.approx(ece)
    sure = dataclasses.replace(draw(metrics.SINGLE), probabilities=numpy.eye(4)[draw(metrics.SINGLE).predictions])
    assert statistics.calibration(sure).ece == pytest.approx(sure.wrong.mean())
    assert statistics.calibration(sure, label=3).ece == 0  # never said, never there


def test_curves_are_scikit_learns_at_fewer_points():
    for scored in (draw(metrics.SINGLE, rows=400), draw(metrics.MULTI, rows=400)):
        curves = statistics.precision_recall_curves(scored, points=30)
        truth = scored.references if scored.is_multi_label else scored.references[:, None] == numpy.arange(4)
        for label, curve in enumerate(curves[:3]):
            expected = average_precision_score(truth[:, label], scored.probabilities[:, label])
            assert curve.average_precision == pytest.approx(expected)
            assert len(curve.recall) <= 30
            assert (curve.recall[0], curve.precision[0], curve.recall[-1]) == (0, 1, 1)
            for recall, precision, threshold in zip(curve.recall, curve.precision, curve.thresholds, strict=True):
                taken = scored.probabilities[:, label] >= threshold
                assert recall == pytest.approx((taken & truth[:, label]).sum() / truth[:, label].sum())
                assert precision == pytest.approx((truth[:, label] & taken).sum() / taken.sum() if taken.any() else 1)
        if not truth[:, 3].any():
            assert (curves[3].positives, len(curves[3].recall)) == (0, 0)
            assert numpy.isnan(curves[3].average_precision)


def test_thresholds_are_the_best_on_validation_and_change_nothing_else():
    validation, test = draw(metrics.MULTI, rows=300), draw(metrics.MULTI, rows=200, seed=1)
    chosen = statistics.choose_thresholds(validation)

    def f1(label, threshold):
        return f1_score(validation.references[:, label], validation.probabilities[:, label] >= threshold)

    tried = numpy.unique(validation.probabilities)
    for label in range(3):
        assert f1(label, chosen.by_label[label]) == pytest.approx(max(f1(label, threshold) for threshold in tried))
    micro = [f1_score(validation.references, validation.probabilities >= one, average="micro") for one in tried]
    applied = chosen.apply(validation, "whole")
    assert f1_score(applied.references, applied.predictions, average="micro") == pytest.approx(max(micro))
    assert chosen.shared.tolist() == [False, False, False, True]
    assert chosen.by_label[3] == chosen.whole
    assert chosen.f1_micro.max() <= max(micro) + 1e-9
    effects = chosen.effects(test, ("f1_micro", "f1_macro"))
    assert list(effects) == ["run", "whole", "by_label"]
    assert effects["run"] == statistics.scores(test, ("f1_micro", "f1_macro"))
    with pytest.raises(UserError, match="several labels"):
        statistics.choose_thresholds(draw(metrics.SINGLE))


def test_rows_by_loss():
    scored = dataclasses.replace(draw(metrics.SINGLE, rows=4), losses=numpy.array([1.0, numpy.nan, 3.0, 1.0]))
    assert statistics.by_loss(scored, 3).tolist() == [1, 2, 0]
    assert statistics.by_loss(scored, 2, highest=False).tolist() == [0, 3]
