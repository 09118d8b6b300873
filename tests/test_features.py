"""Features against a plain forward pass, for texts and images; the file, the probe, and what is refused."""

import numpy
import pytest
import torch
from conftest import run_script, sentences, write_csv
from pyarrow import parquet
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ftloop import Data, ImageClassification, TextClassification, UserError
from ftloop.report import features
from ftloop.report.features import extract, features_of


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Words for `--task.data.files`: 60 + 23 rows of colours."""
    folder = tmp_path_factory.mktemp("features")
    counts = {"train": 60, "validation": 23}
    return {
        split: write_csv(folder / f"{split}.csv", sentences(count, seed))
        for seed, (split, count) in enumerate(counts.items())
    }


@pytest.fixture(scope="module")
def words(files, tiny):
    named = [word for pair in files.items() for word in pair]
    sizes = ("--task.max-length", "32")
    return ("--task.model", tiny("bert"), *sizes, "--task.data.files", *named, "--task.label-column", "colour")


@pytest.fixture(scope="module")
def run(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    sizes = ("--max-steps", "3", "--batch-size", "16", "--learning-rate", "5e-3")
    result = run_script("train.py", "configs/text.py", *words, *sizes, "--run-dir", folder)
    assert result.code == 0, result.err
    return folder


def text_task(model, files, **options):
    options = {"max_length": 32, **options}
    return TextClassification(model=model, data=Data(files=files), label_column="colour", **options)


def plain_states(task, model, texts):
    """The last hidden states of one text at a time: no padding."""
    model.eval()
    for text in texts:
        inputs = task.processor(text, return_tensors="pt")
        with torch.no_grad():
            yield model.base_model(**inputs).last_hidden_state[0]


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "electra", "modernbert"])
def test_texts_are_pooled_as_without_padding(architecture, tiny, files):
    task = text_task(tiny(architecture), files)
    model = task.build_model()
    states = [*plain_states(task, model, task.rows["validation"]["text"])]
    for pooling, expected in (("first", [one[0] for one in states]), ("mean", [one.mean(dim=0) for one in states])):
        ids, found = features_of(task, model, "validation", pooling, batch_size=4)
        assert ids.tolist() == [*range(23)]
        assert found.dtype == numpy.float32
        assert found == pytest.approx(torch.stack(expected).numpy(), abs=1e-5)


def test_padding_may_be_on_the_left_and_packing_changes_nothing(tiny, files):
    task = text_task(tiny("bert"), files)
    model = task.build_model()
    first = {pooling: features_of(task, model, "validation", pooling)[1] for pooling in ("first", "mean")}
    packed = text_task(tiny("bert"), files, packing=True)
    other = packed.build_model()
    other.load_state_dict(model.state_dict())
    for pooling, expected in first.items():
        assert features_of(packed, other, "validation", pooling)[1] == pytest.approx(expected, abs=1e-5)

    outputs = type("Outputs", (), {"last_hidden_state": torch.arange(12.0).reshape(2, 3, 2)})
    batch = {"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    assert features.pool(outputs, batch, "first", None).tolist() == [[2, 3], [6, 7]]
    assert features.pool(outputs, batch, "mean", None).tolist() == [[3, 4], [8, 9]]


def test_the_windows_of_a_text_are_one_row(tiny, files):
    task = text_task(tiny("bert"), files, max_length=6, long_text="windows", window_overlap=1)
    model = task.build_model()
    found = features_of(task, model, "validation", "mean", batch_size=5)[1]
    rows, averaged = task.load()["validation"], []
    with torch.no_grad():
        for row in rows:
            states = [
                model.base_model(torch.tensor([ids])).last_hidden_state[0].mean(dim=0) for ids in row["input_ids"]
            ]
            averaged.append(torch.stack(states).mean(dim=0))
    assert max(map(len, rows["input_ids"])) > 1
    assert found == pytest.approx(torch.stack(averaged).numpy(), abs=1e-5)


IMAGES = {
    "vit": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "patch_size": 4},
    "resnet": {"embedding_size": 8, "depths": [1, 1], "hidden_sizes": [8, 16], "layer_type": "basic"},
}


@pytest.mark.parametrize("architecture", IMAGES)
def test_images_have_a_class_token_patches_or_a_feature_map(architecture, tmp_path):
    from PIL import Image

    random = numpy.random.default_rng(0)
    for number in range(6):
        file = tmp_path / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (32, 32, 3), numpy.uint8)).save(file)
    options = IMAGES[architecture] | ({"patch_size": 8} if architecture == "vit" else {})
    task = ImageClassification(
        model=architecture,
        init="random",
        model_options=options,
        image_size=32,
        data=Data(path=str(tmp_path), stratify=False),
        augment=(),
    )
    torch.manual_seed(0)
    model = task.build_model().eval()
    rows = task.load()["train"]
    with torch.no_grad():
        states = model.base_model(pixel_values=task.collate([*rows])["pixel_values"]).last_hidden_state
    mean = {"vit": states[:, 1:].mean(dim=1)} if architecture == "vit" else {}
    mean = mean.get(architecture, states.mean(dim=1 if states.ndim == 3 else (2, 3)))
    first = states[:, 0] if architecture == "vit" else mean
    for pooling, expected in (("first", first), ("mean", mean)):
        found = features_of(task, model, "train", pooling, batch_size=4)[1]
        assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_command_writes_blocks_of_a_config_and_probes_them(words, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 16)
    out = tmp_path / "features.parquet"
    command = ("-m", "features", "configs/text.py", *words, "--out", out, "--pooling", "first", "--probe")
    result = run_script("ftloop/cli/__main__.py", *command[1:])
    assert result.code == 0, result.err
    table = parquet.read_table(out)
    assert table.column_names == ["split", "row", "label", "features"]
    assert table["split"].to_pylist() == ["train"] * 60 + ["validation"] * 23
    assert table["row"].to_pylist() == [*range(60), *range(23)]
    assert table["label"].to_pylist() == [row["colour"] for seed, n in ((0, 60), (1, 23)) for row in sentences(n, seed)]
    assert parquet.ParquetFile(out).num_row_groups == 6
    assert not (tmp_path / "features.parquet.tmp").exists()

    labels, found = features.read(out, "train")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(found, labels)
    labels, found = features.read(out, "validation")
    said, head, probed, dummy = result.out.splitlines()
    assert said.startswith("83 rows of 32 features (first of ")
    assert head.split() == ["split", "loss", "accuracy", "f1_macro"]
    assert probed.split()[:2] == ["validation", "probe"]
    assert float(probed.split()[3]) == pytest.approx(probe.score(found, labels), abs=1e-4)
    shares = {colour: [row["colour"] for row in sentences(60, 0)].count(colour) for colour in ("red", "green", "blue")}
    most = max(shares, key=shares.get)
    assert float(dummy.split()[3]) == pytest.approx(labels.count(most) / 23, abs=1e-4)


def test_of_a_run_the_kept_weights_or_those_it_began_with(run, tmp_path, words):
    kept, began, some = (str(tmp_path / f"{name}.parquet") for name in ("kept", "began", "some"))
    assert extract(str(run), (), ("validation",), kept)[0].startswith("23 rows")
    extract(str(run), (), ("validation",), began, pretrained=True)
    result = run_script(
        "ftloop/cli/__main__.py",
        "features",
        "configs/text.py",
        *words,
        "--split",
        "validation",
        "--at-most",
        "7",
        "--out",
        some,
    )
    assert result.code == 0, result.err
    after, before, few = (parquet.read_table(file) for file in (kept, began, some))
    values = [numpy.stack(table["features"].to_numpy()) for table in (after, before, few)]
    assert numpy.abs(values[0] - values[1]).max() > 0.01
    assert values[2] == pytest.approx(values[1][few["row"].to_numpy()], abs=1e-5)
    assert len(few) == 7


@pytest.mark.parametrize(("column", "separator", "kind"), [("colour", "e", "list"), ("tone", None, "double")])
def test_several_labels_and_numbers_are_probed_too(column, separator, kind, words, tmp_path):
    out = str(tmp_path / "features.parquet")
    options = (*words[:-1], column, *(("--task.label-separator", separator) if separator else ()))
    lines = extract("configs/text.py", options, ("train", "validation"), out, probe=True)
    assert kind in str(parquet.read_schema(out).field("label").type)
    probe, dummy = (float(line.split()[2]) for line in lines[2:])
    assert 0 < probe < dummy  # the loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": "features.csv"}, "must be .parquet"),
        ({"out": "nowhere/features.parquet"}, "there is no folder 'nowhere'"),
        ({"at_most": 0}, "at least 1"),
        ({"splits": ("train", "train")}, "named twice"),
        ({"splits": ("validation",), "probe": True}, "learns from train"),
        ({"splits": ("train", "tset")}, "'tset' is not in the data"),
        ({"words": ("--seed", "3")}, "a run has its options"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_computed(change, message, run, tmp_path):
    options = {"source": str(run), "words": (), "splits": ("train",), "out": str(tmp_path / "out.parquet"), **change}
    with pytest.raises(UserError, match=message):
        extract(**options)
    assert not [*tmp_path.iterdir()]
