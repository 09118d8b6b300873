"""The result of a row depends neither on padding nor on its batch, for many architectures.

Tiny random models are built as a run builds them, and exported. Their predictions in batches of 1
(unpadded) and of 64 rows (padded) are compared with those of a `pipeline` on the exported model in
a fresh process.
"""

from functools import cache

import pytest
from conftest import write_csv

from benchmarks.architectures import (
    IMAGE,
    REFUSED,
    TEXT,
    TEXTS,
    difference,
    draw_images,
    make_image_model,
    make_model,
    predict_by_pipelines,
)
from ftloop.data import Data
from ftloop.errors import UserError
from ftloop.tasks import ImageClassification, TextClassification, build_predictor


def predict(task, model, rows, batch_size):
    """Return the probabilities of new rows by name, as predict.py computes them."""
    from accelerate import Accelerator

    from ftloop.evaluation import build_eval_loader, iterate_predictions

    accelerator = Accelerator(cpu=True)
    predictor = build_predictor(task)
    loader = build_eval_loader(predictor.prepare(rows), task, accelerator, batch_size)
    predictions = [None] * len(rows)
    for values in iterate_predictions(model, loader, task, accelerator):
        row_ids = values.pop("row_ids").tolist()
        formatted = predictor.format_predictions(values)
        for row, prediction in zip(row_ids, formatted, strict=True):
            predictions[row] = prediction["probabilities"]
    return predictions


def export(task, folder):
    folder.mkdir()
    model = task.build_model()
    task.export(model, model.state_dict(), folder)
    return task.from_finished_run(str(folder))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("architectures")


@pytest.fixture(scope="module")
def text_predictions(home):
    """Return a cached function of the architecture: the predictions in batches of 1 and of 64."""
    from datasets import Dataset

    rows = [{"text": text, "label": "abc"[row % 3]} for row, text in enumerate(TEXTS)]
    data = Data(path=write_csv(home / "texts.csv", rows), validation=0)

    @cache
    def of(architecture):
        folder = make_model(home / architecture, architecture)
        task = TextClassification(model=folder, data=data, max_length=32)
        exported = export(task, home / f"{architecture}-exported")
        new = Dataset.from_dict({"text": TEXTS})
        model = exported.build_model()
        return [predict(exported, model, new, batch_size) for batch_size in (1, 64)]

    return of


@pytest.fixture(scope="module")
def image_predictions(home):
    from datasets import Dataset

    files = draw_images(home)
    rows = [{"image": file, "label": "abc"[row % 3]} for row, file in enumerate(files)]
    data = Data(path=write_csv(home / "images.csv", rows), validation=0)

    @cache
    def of(architecture):
        folder = make_image_model(home / architecture, architecture)
        task = ImageClassification(model=folder, data=data)
        exported = export(task, home / f"{architecture}-exported")
        new = Dataset.from_dict({"image": files})
        model = exported.build_model()
        return [predict(exported, model, new, batch_size) for batch_size in (1, 4)]

    of.files = files
    return of


@pytest.fixture(scope="module")
def by_pipeline(home, text_predictions, image_predictions):
    """Predictions of pipelines on all exported models, in one fresh process."""
    for architecture in TEXT:
        text_predictions(architecture)
    for architecture in IMAGE:
        image_predictions(architecture)
    jobs = [
        {"kind": kind, "rows": rows, "models": {name: f"{home / name}-exported" for name in names}}
        for kind, rows, names in (
            ("text-classification", TEXTS, TEXT),
            ("image-classification", image_predictions.files, IMAGE),
        )
    ]
    texts, images = predict_by_pipelines(home, jobs)
    return texts | images


@pytest.mark.parametrize("architecture", TEXT)
def test_a_text_has_the_same_result_in_any_batch_and_in_a_pipeline(
    architecture, text_predictions, by_pipeline
):
    alone, padded = text_predictions(architecture)
    for predictions in (padded, *by_pipeline[architecture]):
        assert difference(predictions, alone) < 1e-5


@pytest.mark.parametrize("architecture", IMAGE)
def test_an_image_has_the_same_result_in_any_batch_and_in_a_pipeline(
    architecture, image_predictions, by_pipeline
):
    alone, together = image_predictions(architecture)
    for predictions in (together, *by_pipeline[architecture]):
        assert difference(predictions, alone) < 1e-5


def test_at_least_25_architectures_are_tested():
    assert len(TEXT) >= 25
    assert len(IMAGE) >= 6


@pytest.mark.parametrize("architecture", REFUSED)
def test_architectures_that_compute_with_padding_are_refused(architecture, home):
    folder = make_model(home / architecture, architecture)
    rows = [{"text": text, "label": "abc"[row % 3]} for row, text in enumerate(TEXTS)]
    data = Data(path=write_csv(home / "refused.csv", rows), validation=0)
    task = TextClassification(model=folder, data=data, max_length=32)
    with pytest.raises(UserError, match=r"depend on padding|cannot compute a short text beside"):
        task.build_model()
