"""Features equal a plain forward pass, for texts and images; the file, the probe, and errors."""

from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import run_script, run_script_of_ftloop, sentences, write_csv
from pyarrow import parquet
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ftloop.config import Config
from ftloop.data import Data
from ftloop.errors import UserError
from ftloop.report import features
from ftloop.report.feature_file import read_features
from ftloop.report.features import extract_features, write_features
from ftloop.tasks import ImageClassification, TextClassification


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of 60 + 23 rows of colours by split."""
    folder = tmp_path_factory.mktemp("features")
    counts = {"train": 60, "validation": 23}
    return {
        split: write_csv(folder / f"{split}.csv", sentences(count, seed))
        for seed, (split, count) in enumerate(counts.items())
    }


@pytest.fixture(scope="module")
def options(files, tiny):
    """Options of configs/text.py."""
    named = [word for pair in files.items() for word in pair]
    data = ("--data.files", *named, "--label", "colour")
    return ("--model", tiny("bert"), "--max-length", "32", *data)


@pytest.fixture(scope="module")
def run(options, tmp_path_factory):
    """A finished run of a few steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    training = ("--max-steps", "3", "--batch-size", "16", "--learning-rate", "5e-3")
    result = run_script("train.py", "configs/text.py", *options, *training, "--run-dir", folder)
    assert result.code == 0, result.err
    return folder


@pytest.fixture
def text_task(files, tmp_path):
    """`text_task(model, **options)`: a task on the rows of colours."""

    def build(model, **options):
        options = {"max_length": 32, **options}
        data = Data(files=files)
        return TextClassification(model=model, data=data, label_column="colour", **options)

    return build


@pytest.fixture
def features_of(tmp_path):
    """`features_of(task, model, split, pooling)`: the features, from batches of 4 rows."""

    def extract(task, model, split="validation", pooling="mean"):
        config = Config(task=task, run_dir=str(tmp_path / "run"), eval_batch_size=4)
        return extract_features(config, task, model, split, pooling)

    return extract


def last_hidden_states(task, model, texts):
    """Return the last hidden states of each text alone: without padding."""
    model.eval()
    states = []
    for text in texts:
        inputs = task.processor(text, return_tensors="pt")
        with torch.no_grad():
            states.append(model.base_model(**inputs).last_hidden_state[0])
    return states


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "electra", "modernbert"])
def test_padding_has_no_effect_on_pooled_texts(architecture, tiny, text_task, features_of):
    task = text_task(tiny(architecture))
    model = task.build_model()
    states = last_hidden_states(task, model, task.rows["validation"]["text"])
    first = torch.stack([state[0] for state in states])
    mean = torch.stack([state.mean(dim=0) for state in states])
    for pooling, expected in (("first", first), ("mean", mean)):
        row_ids, found = features_of(task, model, "validation", pooling)
        assert row_ids.tolist() == [*range(23)]
        assert found.dtype == numpy.float32
        assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_packing_changes_nothing(tiny, text_task, features_of):
    task = text_task(tiny("bert"))
    model = task.build_model()
    packed = text_task(tiny("bert"), packing=True)
    packed_model = packed.build_model()
    packed_model.load_state_dict(model.state_dict())
    for pooling in ("first", "mean"):
        expected = features_of(task, model, "validation", pooling)[1]
        found = features_of(packed, packed_model, "validation", pooling)[1]
        assert found == pytest.approx(expected, abs=1e-5)


def test_padding_may_be_on_the_left():
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    outputs = type("Outputs", (), {"last_hidden_state": hidden})
    inputs = {"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    assert features.pool(outputs, inputs, "first", None).tolist() == [[2, 3], [6, 7]]
    assert features.pool(outputs, inputs, "mean", None).tolist() == [[3, 4], [8, 9]]


def test_the_windows_of_a_text_are_averaged(tiny, text_task, features_of):
    windows = {"long_text": "windows", "window_overlap": 1}
    task = text_task(tiny("bert"), max_length=6, **windows)
    model = task.build_model()
    found = features_of(task, model)[1]
    dataset, expected = task.load_datasets()["validation"], []
    rows = [dataset[row]["input_ids"] for row in range(len(dataset))]
    with torch.no_grad():
        for input_ids in rows:
            means = [
                model.base_model(torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
                for ids in input_ids
            ]
            expected.append(torch.stack(means).mean(dim=0))
    assert max(map(len, rows)) > 1
    assert found == pytest.approx(torch.stack(expected).numpy(), abs=1e-5)


def test_the_precision_of_the_run_is_used_again_and_again(tiny, text_task, tmp_path):
    task = text_task(tiny("bert"))
    model = task.build_model()
    # accelerate allows one precision per process, until its state is reset.
    AcceleratorState._reset_state(reset_partial_state=True)
    config = Config(task=task, run_dir=str(tmp_path / "run"), precision="bf16")
    once = extract_features(config, task, model, "validation")[1]
    assert extract_features(config, task, model, "validation")[1].tolist() == once.tolist()
    AcceleratorState._reset_state(reset_partial_state=True)
    config = Config(task=task, run_dir=str(tmp_path / "run"))
    exact = extract_features(config, task, model, "validation")[1]
    error = numpy.abs(once - exact).max()
    assert 0 < error < 0.1


IMAGES = {
    "vit": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
    "swin": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 4,
        "patch_size": 4,
    },
    "resnet": {
        "embedding_size": 8,
        "depths": [1, 1],
        "hidden_sizes": [8, 16],
        "layer_type": "basic",
    },
}


@pytest.mark.parametrize("architecture", IMAGES)
def test_images_have_a_class_token_patches_or_a_feature_map(architecture, tmp_path, features_of):
    from PIL import Image

    generator = numpy.random.default_rng(0)
    for number in range(6):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), numpy.uint8)).save(file)
    model_options = dict(IMAGES[architecture])
    if architecture == "vit":
        model_options["patch_size"] = 8
    task = ImageClassification(
        model=architecture,
        init="random",
        model_options=model_options,
        image_size=32,
        data=Data(path=str(tmp_path / "photos"), stratify=False),
        augment=(),
    )
    torch.manual_seed(0)
    model = task.build_model().eval()
    dataset = task.load_datasets()["train"]
    batch = task.collate([dataset[row] for row in range(len(dataset))])
    with torch.no_grad():
        states = model.base_model(pixel_values=batch["pixel_values"]).last_hidden_state
    if architecture == "vit":
        first, mean = states[:, 0], states[:, 1:].mean(dim=1)
    else:
        first = mean = states.mean(dim=1 if states.ndim == 3 else (2, 3))
    for pooling, expected in (("first", first), ("mean", mean)):
        found = features_of(task, model, "train", pooling)[1]
        assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_command_writes_blocks_of_rows_and_probes_them(options, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "BLOCK_SIZE", 16)
    out = tmp_path / "features.parquet"
    command = ("features", "configs/text.py", *options, "--out", out)
    result = run_script_of_ftloop(*command, "--pooling", "first", "--probe")
    assert result.code == 0, result.err
    table = parquet.read_table(out)
    assert table.column_names == ["split", "row", "label", "features"]
    assert table["split"].to_pylist() == ["train"] * 60 + ["validation"] * 23
    assert table["row"].to_pylist() == [*range(60), *range(23)]
    rows = [*sentences(60, 0), *sentences(23, 1)]
    assert table["label"].to_pylist() == [row["colour"] for row in rows]
    assert parquet.ParquetFile(out).num_row_groups == 6
    assert not list(tmp_path.glob("*.tmp"))

    train_labels, train_features = read_features(out, "train")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(train_features, train_labels)
    labels, found = read_features(out, "validation")
    summary, header, probe, dummy = result.out.splitlines()
    assert summary.startswith("83 rows of 32 features (first of ")
    assert header.split() == ["split", "loss", "accuracy", "f1_macro"]
    assert probe.split()[:2] == ["validation", "probe"]
    assert float(probe.split()[3]) == pytest.approx(model.score(found, labels), abs=1e-4)
    majority = max(set(train_labels), key=train_labels.count)
    assert float(dummy.split()[3]) == pytest.approx(labels.count(majority) / 23, abs=1e-4)


def test_a_run_has_its_best_weights_and_those_it_began_with(run, tmp_path, options):
    files = [tmp_path / f"{name}.parquet" for name in ("best", "pretrained", "some")]
    best, pretrained, some = files
    (line,) = write_features(run, best, splits=("validation",))
    assert line.startswith("23 rows")
    write_features(run, pretrained, splits=("validation",), pretrained=True)
    words = ("--split", "validation", "--at-most", "7", "--out", some)
    result = run_script_of_ftloop("features", "configs/text.py", *options, *words)
    assert result.code == 0, result.err
    after, before, few = (parquet.read_table(file) for file in files)
    values = [numpy.stack(table["features"].to_numpy()) for table in (after, before, few)]
    assert numpy.abs(values[0] - values[1]).max() > 0.01
    assert len(few) == 7
    assert values[2] == pytest.approx(values[1][few["row"].to_numpy()], abs=1e-5)


@pytest.mark.parametrize(
    ("column", "separator", "kind"), [("colour", "e", "list"), ("tone", None, "double")]
)
def test_several_labels_and_numbers_are_probed_too(
    column, separator, kind, tiny, text_task, tmp_path
):
    out = tmp_path / "features.parquet"
    task = replace(text_task(tiny("bert")), label_column=(column,), label_separator=separator)
    config = Config(task=task, run_dir=str(tmp_path / "run"))
    lines = write_features(config, out, probe=True)
    assert kind in str(parquet.read_schema(out).field("label").type)
    probe_loss, dummy_loss = (float(line.split()[2]) for line in lines[2:])
    assert 0 < probe_loss < dummy_loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": "features.csv"}, "must end in .parquet"),
        ({"out": "nowhere/features.parquet"}, "there is no folder 'nowhere'"),
        ({"at_most": 0}, "at least 1"),
        ({"splits": ("train", "train")}, "a split twice"),
        ({"splits": ("validation",), "probe": True}, "learns from train"),
        ({"splits": ("train", "tset")}, "'tset' is not in the data"),
    ],
)
def test_invalid_options_are_errors_before_anything_is_computed(change, message, run, tmp_path):
    arguments = {"out": tmp_path / "out.parquet", "splits": ("train",), **change}
    with pytest.raises(UserError, match=message):
        write_features(run, Path(arguments.pop("out")), **arguments)
    assert not [*tmp_path.iterdir()]


def test_a_finished_run_takes_no_options(run, tmp_path):
    out = tmp_path / "out.parquet"
    result = run_script_of_ftloop("features", run, "--out", out, "--seed", "3")
    assert result.code == 2
    assert "--seed" in result.err
