"""Every score equals that of scikit-learn or SciPy, in batches of any size; valid names."""

import itertools
import logging
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch

from ftloop.config import SMALLER_IS_BETTER
from ftloop.errors import UserError
from ftloop.evaluation import add_batch, compute_metric, metric_inputs
from ftloop.tasks import metrics
from ftloop.tasks.metrics import MULTI, REGRESSION, SINGLE

ROWS = 301
BINARY = ("negative", "positive")
CLASSES = ("normal", "benign", "malignant", "absent", "unseen")
LABELS = ("red", "green", "blue", "none")


def stream(name, problem_type, labels, columns, as_type=np.asarray):
    """Compute a score of `columns`, added in batches of uneven size, the last a single row."""
    metric = metrics.build(name, problem_type, labels)
    rows = len(columns["references"])
    for start, stop in itertools.pairwise([0, 7, 8, 71, rows // 2, rows - 1, rows]):
        add_batch(metric, {key: as_type(column[start:stop]) for key, column in columns.items()})
    return compute_metric(metric)


def softmax(logits):
    exponents = np.exp(logits)
    return exponents / exponents.sum(axis=1, keepdims=True)


def binary_columns():
    random = np.random.default_rng(1)
    references = random.integers(0, 2, ROWS)
    scores = np.round(
        0.3 * references + 0.7 * random.random(ROWS), 2
    )  # rounded, so that some are equal
    return {
        "references": references,
        "predictions": (scores > 0.5).astype(int),
        "prediction_scores": scores,
    }


def multi_class_columns(references_of=(0, 1, 2, 4), predictions_of=(0, 1, 2, 3)):
    """By default "absent" is never a reference and "unseen" never a prediction."""
    random = np.random.default_rng(2)
    references = random.choice(references_of, ROWS)
    logits = random.normal(size=(ROWS, len(CLASSES))) + 1.5 * np.eye(len(CLASSES))[references]
    allowed = np.full(len(CLASSES), -np.inf)
    allowed[list(predictions_of)] = 0.0
    predictions = (logits + allowed).argmax(axis=1)
    return {
        "references": references,
        "predictions": predictions,
        "prediction_scores": softmax(logits),
    }


def multi_label_columns(number_of_labels=4):
    random = np.random.default_rng(3)
    references = random.integers(0, 2, (ROWS, number_of_labels))
    references[:20] = 0
    scores = 0.4 * references + 0.6 * random.random((ROWS, number_of_labels))
    predictions = (scores > 0.5).astype(int)
    predictions[:, -1] = 0
    return {"references": references, "predictions": predictions, "prediction_scores": scores}


def regression_columns():
    random = np.random.default_rng(4)
    references = np.round(5 * random.random(ROWS), 1)
    return {"references": references, "predictions": references + random.normal(size=ROWS)}


AVERAGED = [
    f"{name}_{average}"
    for name in ("precision", "recall", "f1")
    for average in ("macro", "weighted", "micro")
]


def averaged_oracle(name, columns, labels):
    ratio, _, average = name.partition("_")
    function = getattr(sklearn.metrics, f"{ratio}_score")
    options = {
        "average": None if average == "per_class" else average or "binary",
        "zero_division": 0,
    }
    return function(
        columns["references"], columns["predictions"], labels=range(len(labels)), **options
    )


@pytest.mark.parametrize("as_type", [np.asarray, torch.as_tensor, list])
@pytest.mark.parametrize("name", ["precision", "recall", "f1", *AVERAGED])
def test_binary_ratios(name, as_type):
    columns = binary_columns()
    expected = averaged_oracle(name, columns, BINARY)
    assert stream(name, SINGLE, BINARY, columns, as_type) == {
        name: pytest.approx(expected, abs=1e-12)
    }


@pytest.mark.parametrize(
    "name", [*AVERAGED, "recall_per_class", "f1_per_class", "precision_per_class"]
)
@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_averages_count_absent_classes(name, problem_type):
    columns, labels = (
        (multi_class_columns(), CLASSES)
        if problem_type == SINGLE
        else (multi_label_columns(), LABELS)
    )
    expected = averaged_oracle(name, columns, labels)
    scores = stream(name, problem_type, labels, columns)
    ratio = name.partition("_")[0]
    names = [f"{ratio}[{label}]" for label in labels] if name.endswith("per_class") else [name]
    assert list(scores) == names
    np.testing.assert_allclose(list(scores.values()), np.atleast_1d(expected), rtol=0, atol=1e-12)
    assert all(type(value) is float for value in scores.values())


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("accuracy", sklearn.metrics.accuracy_score),
        ("matthews_correlation", sklearn.metrics.matthews_corrcoef),
    ],
)
@pytest.mark.parametrize(
    ("columns", "labels"), [(binary_columns(), BINARY), (multi_class_columns(), CLASSES)]
)
def test_other_scores_of_ids(name, oracle, columns, labels):
    expected = oracle(columns["references"], columns["predictions"])
    assert stream(name, SINGLE, labels, columns) == {name: pytest.approx(expected, abs=1e-12)}


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("subset_accuracy", sklearn.metrics.accuracy_score),
        ("hamming_loss", sklearn.metrics.hamming_loss),
        (
            "f1_samples",
            lambda *both: sklearn.metrics.f1_score(*both, average="samples", zero_division=0),
        ),
    ],
)
def test_other_scores_of_label_sets(name, oracle):
    columns = multi_label_columns()
    expected = oracle(columns["references"], columns["predictions"])
    assert stream(name, MULTI, LABELS, columns) == {name: pytest.approx(expected, abs=1e-12)}


def test_one_label_alone_is_scored_for_its_ones():
    columns = multi_label_columns(1)
    columns["predictions"] = (columns["prediction_scores"] > 0.5).astype(int)
    expected = sklearn.metrics.f1_score(columns["references"][:, 0], columns["predictions"][:, 0])
    for name in ("f1_macro", "f1_micro", "f1_weighted"):
        assert stream(name, MULTI, ("finding",), columns) == {
            name: pytest.approx(expected, abs=1e-12)
        }


@pytest.mark.parametrize(
    ("problem_type", "labels", "columns", "options"),
    [
        (SINGLE, BINARY, binary_columns(), {}),
        (SINGLE, CLASSES, multi_class_columns(references_of=range(5)), {"multi_class": "ovr"}),
        (MULTI, LABELS, multi_label_columns(), {}),
        (MULTI, LABELS[:2], multi_label_columns(2), {}),
    ],
)
def test_roc_auc(problem_type, labels, columns, options):
    expected = sklearn.metrics.roc_auc_score(
        columns["references"], columns["prediction_scores"], **options
    )
    scores = stream("roc_auc", problem_type, labels, columns)
    assert scores == {"roc_auc": pytest.approx(expected, abs=1e-12)}


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("pearson", lambda *both: scipy.stats.pearsonr(*both).statistic),
        ("spearman", lambda *both: scipy.stats.spearmanr(*both).statistic),
        ("mse", sklearn.metrics.mean_squared_error),
        ("mae", sklearn.metrics.mean_absolute_error),
        ("rmse", sklearn.metrics.root_mean_squared_error),
        ("r2", sklearn.metrics.r2_score),
    ],
)
def test_regression(name, oracle):
    columns = regression_columns()
    expected = oracle(columns["references"], columns["predictions"])
    assert stream(name, REGRESSION, (), columns) == {name: pytest.approx(expected, abs=1e-12)}


@pytest.mark.parametrize(
    ("name", "problem_type", "labels", "spoil"),
    [
        ("roc_auc", SINGLE, BINARY, {"references": np.zeros(ROWS, int)}),
        ("roc_auc", SINGLE, CLASSES, {}),
        ("roc_auc", SINGLE, BINARY, {"prediction_scores": np.full(ROWS, np.nan)}),
        ("pearson", REGRESSION, (), {"predictions": np.full(ROWS, 0.1)}),
        ("spearman", REGRESSION, (), {"references": np.full(ROWS, 0.1)}),
        ("pearson", REGRESSION, (), {"predictions": np.r_[np.inf, np.zeros(ROWS - 1)]}),
        ("mse", REGRESSION, (), {"predictions": np.full(ROWS, np.nan)}),
    ],
)
def test_a_score_that_is_not_defined_is_nan_and_logged(name, problem_type, labels, spoil, caplog):
    columns = {(): regression_columns, BINARY: binary_columns, CLASSES: multi_class_columns}[
        labels
    ]() | spoil
    with caplog.at_level(logging.WARNING, "ftloop"):
        assert np.isnan(stream(name, problem_type, labels, columns)[name])
    lines = [record.message.partition(" (")[0] for record in caplog.records]
    assert lines == [f"{name} is not defined on these {ROWS} rows"]


def test_a_model_that_predicts_one_class_scores_zero_without_a_warning(caplog):
    columns = {"references": np.zeros(ROWS, int), "predictions": np.zeros(ROWS, int)}
    assert stream("matthews_correlation", SINGLE, BINARY, columns) == {"matthews_correlation": 0.0}
    assert stream("f1", SINGLE, BINARY, columns) == {"f1": 0.0}
    columns = {"references": np.zeros((ROWS, 4), int), "predictions": np.zeros((ROWS, 4), int)}
    assert stream("f1_weighted", MULTI, LABELS, columns) == {"f1_weighted": 0.0}
    assert not caplog.records


@pytest.mark.parametrize("wrong", [[0.2, 1.7], [0, 2], [-100, 1], [float("nan"), 1]])
@pytest.mark.parametrize("column", ["references", "predictions"])
def test_values_that_are_not_ids_are_refused(wrong, column):
    metric = metrics.build("accuracy", SINGLE, BINARY)
    add_batch(metric, {"references": [0, 1], "predictions": [0, 1]} | {column: wrong})
    with pytest.raises(ValueError, match="accuracy takes ids from 0 to 1, not"):
        compute_metric(metric)
    add_batch(metric, {"references": [0, 1], "predictions": [0, 1]})
    assert compute_metric(metric) == {"accuracy": 1.0}


def test_label_sets_are_zeros_and_ones():
    metric = metrics.build("f1_macro", MULTI, LABELS)
    add_batch(metric, {"references": [[0, 1, 0, 1]], "predictions": [[0, 1, 0, 2]]})
    with pytest.raises(ValueError, match="f1_macro takes ids from 0 to 1, not"):
        compute_metric(metric)


def test_each_compute_starts_anew():
    metric = metrics.build("mse", REGRESSION, ())
    for shift in (1.0, 2.0):
        add_batch(metric, {"references": np.zeros(3), "predictions": np.full(3, shift)})
        assert compute_metric(metric) == {"mse": shift**2}


def test_two_metrics_side_by_side_do_not_disturb_each_other_nor_numpy():
    columns = binary_columns()
    np.random.seed(5)
    expected_draw = np.random.random()
    np.random.seed(5)
    together = [
        metrics.build(name, SINGLE, BINARY) for name in ("accuracy", "f1", "roc_auc", "accuracy")
    ]
    for row in range(ROWS):
        for metric in together[: 3 if row % 2 else 4]:  # the second accuracy sees every other row
            add_batch(metric, {key: column[row : row + 1] for key, column in columns.items()})
    scores = [compute_metric(metric) for metric in together]
    assert np.random.random() == expected_draw
    assert scores[:3] == [
        stream(name, SINGLE, BINARY, columns) for name in ("accuracy", "f1", "roc_auc")
    ]
    assert scores[3] == stream(
        "accuracy", SINGLE, BINARY, {key: column[::2] for key, column in columns.items()}
    )
    assert [metric.name for metric in together] == ["accuracy", "f1", "roc_auc", "accuracy"]
    assert metric_inputs(together[2]) == ["prediction_scores", "references"]
    assert all(metric.keep_in_memory for metric in together)  # no files, no locks


def test_a_missing_column_is_named():
    metric = metrics.build("roc_auc", SINGLE, BINARY)
    with pytest.raises(UserError, match=r"'roc_auc' needs prediction_scores, but the task gives"):
        add_batch(metric, {"references": [0, 1], "predictions": [0, 1]})


@pytest.mark.parametrize("name", ["f1_macro", "roc_auc"])
def test_many_rows_are_scored_quickly(name):
    random = np.random.default_rng(6)
    columns = {
        "references": random.integers(0, 10, 32_000),
        "prediction_scores": random.random((32_000, 10)),
    }
    columns["predictions"] = columns["prediction_scores"].argmax(axis=1)
    metric = metrics.build(name, SINGLE, [str(number) for number in range(10)])
    started = time.process_time()
    for start in range(0, 32_000, 32):
        add_batch(metric, {key: column[start : start + 32] for key, column in columns.items()})
    compute_metric(metric)
    assert time.process_time() - started < 3  # measured: 0.2 and 0.4 s


@pytest.mark.parametrize(
    ("name", "problem_type", "labels", "text"),
    [
        (
            "acuracy",
            SINGLE,
            BINARY,
            "'acuracy' is not a metric for single_label_classification with 2 labels (did ",
        ),
        (
            "acuracy",
            SINGLE,
            BINARY,
            "(did you mean 'accuracy'?). Choose from accuracy, precision, recall, f1, ",
        ),
        (
            "f1",
            SINGLE,
            CLASSES,
            "'f1' does not fit single_label_classification with 5 labels (use f1_macro or f1_w",
        ),
        (
            "recall",
            MULTI,
            BINARY,
            "does not fit multi_label_classification with 2 labels (use recall_macro or ",
        ),
        (
            "accuracy",
            MULTI,
            LABELS,
            "with 4 labels (did you mean 'subset_accuracy'?). Choose from precision_macro, ",
        ),
        (
            "accuracy",
            REGRESSION,
            (),
            "'accuracy' does not fit regression. Choose from pearson, spearman, mse, rmse, ",
        ),
        ("sacrebleu", REGRESSION, (), "r2, or hub:NAME for a metric of the Hub."),
        ("hub:", SINGLE, BINARY, "'hub:' is not a metric for"),
        ("hub::mrpc", SINGLE, BINARY, "'hub::mrpc' is not a metric for"),
    ],
)
def test_a_name_that_does_not_fit(name, problem_type, labels, text):
    with pytest.raises(UserError) as caught:
        metrics.validate(["hub:fits", name], problem_type, labels)
    assert str(caught.value).startswith("--metrics: ")
    assert text in str(caught.value)
    with pytest.raises(UserError, match=re.escape(str(caught.value))):
        metrics.build(name, problem_type, labels)


def test_the_defaults_fit_and_can_choose_the_best_step():
    for problem_type, names in metrics.DEFAULTS.items():
        metrics.validate([*names, "hub:sacrebleu", "hub:glue:mrpc"], problem_type, CLASSES)


def test_the_core_knows_which_scores_are_better_when_smaller():
    smaller = {name for name, score in metrics.SCORES.items() if score.better == "min"}
    assert smaller == {"mse", "rmse", "mae", "hamming_loss"}
    assert smaller == metrics.SCORES.keys() & set(SMALLER_IS_BETTER)


def test_the_names_of_scores_are_known_in_advance():
    names = ("accuracy", "recall_per_class", "f1_macro")
    expected = ("accuracy", "recall[no]", "recall[yes]", "f1_macro")
    assert metrics.score_names(names, ("no", "yes")) == expected
    assert metrics.score_names((*names, "hub:glue:mrpc"), ("no", "yes")) is None


def test_a_score_of_tokens_counts_those_with_a_label():
    references = np.array([[0, 1, 2, -100], [2, -100, -100, -100]])
    predictions = np.array([[0, 2, 2, 1], [1, 0, 0, 0]])
    for name in ("accuracy", "f1_macro", "recall_per_class"):
        flat, metric = metrics.build(name, SINGLE, "abc"), metrics.TokenMetric(name, "abc")
        add_batch(flat, {"references": [0, 1, 2, 2], "predictions": [0, 2, 2, 1]})
        expected = compute_metric(flat)
        for rows in (slice(0, 1), slice(1, 2)):
            values = {"references": references[rows], "predictions": predictions[rows]}
            add_batch(metric, {key: torch.tensor(value) for key, value in values.items()})
        assert compute_metric(metric) == pytest.approx(expected)
        add_batch(metric, {"references": np.full((2, 3), -100), "predictions": np.zeros((2, 3))})
        assert np.isnan(metric.compute()[name])
    with pytest.raises(UserError, match="'roc_auc' cannot be computed for tokens"):
        metrics.validate_token_metrics(("accuracy", "roc_auc"), ("a", "b", "c"))
    with pytest.raises(UserError, match="'hub:seqeval' cannot be computed for tokens"):
        metrics.validate_token_metrics(("hub:seqeval",), ("a", "b", "c"))


def test_names_are_checked_without_the_slow_imports():
    code = (
        "import sys; from ftloop.tasks import metrics\n"
        "metrics.validate(['accuracy', 'hub:glue:mrpc'], metrics.SINGLE, ['no', 'yes'])\n"
        "print([name for name in ('evaluate', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def hub_offline(monkeypatch, tmp_path):
    import evaluate
    import huggingface_hub

    # As HF_HUB_OFFLINE=1 sets it; both libraries read the environment when they are imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", False)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    # evaluate appends its folder of loaded scripts; that of an earlier test would be found first.
    monkeypatch.setattr(
        sys, "path", [entry for entry in sys.path if not Path(entry, "evaluate_modules").is_dir()]
    )
    for module in [name for name in sys.modules if name.partition(".")[0] == "evaluate_modules"]:
        monkeypatch.delitem(sys.modules, module)  # those of the folder that another test had
    monkeypatch.chdir(tmp_path)
    return evaluate.config


@pytest.mark.parametrize(
    "name", ["hub:nobody/no_such_metric", "hub:no_such_metric:config", "hub:./no_such_folder"]
)
def test_a_hub_metric_without_a_hub(name, hub_offline):
    started = time.monotonic()
    with pytest.raises(
        UserError, match=f"^--metrics: '{name}' cannot be loaded .*Couldn't find"
    ) as caught:
        metrics.build(name, SINGLE, BINARY)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert hub_offline.HF_EVALUATE_OFFLINE
    assert time.monotonic() - started < 2


SCRIPT = """
import datasets
import evaluate


class Agreement(evaluate.Metric):
    def _info(self):
        columns = [datasets.Features({"predictions": kind, "references": kind}) for kind in KINDS]
        return evaluate.MetricInfo(description="", citation="", features=columns)

    def _compute(self, predictions, references):
        share = sum(map(float.__eq__, predictions, references)) / len(references)
        is_strict = self.config_name == "strict"
        return {"agreement": share, "config_is_strict": is_strict, "rows": list(references)}


KINDS = [datasets.Value("float64"), datasets.Sequence(datasets.Value("float64"))]
"""


@pytest.mark.usefixtures("hub_offline")
def test_a_metric_script_in_a_folder(tmp_path):
    folder = tmp_path / "own" / "agreement"
    folder.mkdir(parents=True)
    (folder / "agreement.py").write_text(SCRIPT)
    scores = stream("hub:./own/agreement:strict", SINGLE, BINARY, binary_columns())
    expected = stream("accuracy", SINGLE, BINARY, binary_columns())["accuracy"]
    assert scores == {"agreement": expected, "config_is_strict": 1.0}
    assert all(type(value) is float for value in scores.values())
