"""Image models by the commands a user types: trained, resumed, evaluated, and used to predict."""

import json
import logging
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from conftest import is_untouched, ranks, run_script
from interrupt import Interrupted, interrupt_at_step, read_log, read_results
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from ftloop import UserError
from ftloop.data import Data
from ftloop.data.labels import Labels
from ftloop.tasks import ImageClassification

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
}
STAGES = {"depths": [1, 1], "hidden_sizes": [8, 16], "num_stages": 2}
ARCHITECTURES = {
    "vit": TINY,
    "deit": TINY,
    "dinov2": {name: value for name, value in TINY.items() if name != "intermediate_size"},
    "swin": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 4,
        "patch_size": 4,
    },
    "convnext": STAGES,
    "resnet": {
        "embedding_size": 8,
        "depths": [1, 1],
        "hidden_sizes": [8, 16],
        "layer_type": "basic",
    },
}
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def draw(file: Path, colour: str, seed: int, size: tuple[int, int] = (40, 30)) -> str:
    """A noisy image of one colour."""
    noise = numpy.random.default_rng(seed).integers(-30, 31, (*size, 3))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((numpy.array(COLOURS[colour]) + noise).clip(0, 255).astype(numpy.uint8)).save(
        file
    )
    return str(file)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with train.csv (24 rows), test.csv (9 rows) and the images of their rows."""
    folder = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 24), ("test", 9)):
        lines = ["image,label,tone,tags"]
        for row in range(count):
            colour = list(COLOURS)[row % 3]
            draw(folder / split / f"{row}.png", colour, seed=row + 100 * (split == "test"))
            tags = f"{colour};{'low' if row % 2 else 'high'}"
            lines.append(f"{split}/{row}.png,{colour},{row % 3 + 0.25},{tags}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def tiny_image(tmp_path_factory):
    """`tiny_image("vit")`: a folder with a random model for 32 pixels and 5 classes."""
    home = tmp_path_factory.mktemp("models")

    def make(architecture: str, **processor) -> str:
        folder = home / architecture
        if not folder.exists():
            torch.manual_seed(0)
            sizes = {**ARCHITECTURES[architecture], "architectures": []}
            config = AutoConfig.for_model(architecture, image_size=32, num_labels=5, **sizes)
            AutoModelForImageClassification.from_config(config).save_pretrained(folder)
        settings = {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": 32, "width": 32},
            "resample": 3,
            "image_mean": [0.4, 0.5, 0.6],
            "image_std": [0.2, 0.25, 0.3],
            **processor,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        return str(folder)

    return make


def train(photos: Path, run: Path, *words: str):
    options = ["--data", str(photos), "--data.validation", "6", "--batch-size", "6"]
    return run_script("train.py", "configs/image.py", *options, "--run-dir", str(run), *words)


def from_scratch(architecture: str, **options) -> list[str]:
    sizes = {**ARCHITECTURES[architecture], **options}
    words = [f"{name}={json.dumps(value)}" for name, value in sizes.items()]
    return ["--init", "random", "--model", architecture, "--model-options", *words]


# Models


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_architecture_trains_and_is_evaluated_to_the_same_numbers(
    architecture, photos, tmp_path
):
    words = [
        *from_scratch(architecture),
        "--image-size",
        "32",
        "--max-steps",
        "2",
        "--log-every",
        "1",
    ]
    result = train(photos, tmp_path / "run", *words, "--learning-rate", "1e-3")
    assert result.code == 0, result.err
    assert "mean and standard deviation are 0.5" in result.err
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["test"]
    evaluated = run_script("evaluate.py", tmp_path / "run", "--json", "--batch-size", "4")
    assert evaluated.code == 0, evaluated.err
    assert json.loads(evaluated.out) == pytest.approx(scores, rel=1e-5)


@pytest.fixture(scope="module")
def finished(photos, tiny_image, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    result = train(
        photos, run, "--model", tiny_image("vit"), "--epochs", "8", "--learning-rate", "1e-2"
    )
    assert result.code == 0, result.err
    # A head of another size is replaced, and the log says so.
    assert "so they are new and random: classifier.bias, classifier.weight" in result.err
    assert (
        "images of 32 x 32 pixels: the shorter side is resized to 32 and the center" in result.err
    )
    return run


def test_it_learns(finished):
    assert json.loads((finished / "scores.json").read_text())["test"]["accuracy"] > 0.8


def test_predictions_are_those_of_a_pipeline(finished, tmp_path):
    from transformers import pipeline

    logging.getLogger("transformers.pipelines.base").setLevel(logging.ERROR)
    colours = [list(COLOURS)[row % 3] for row in range(5)]
    files = [
        draw(tmp_path / f"{row}.png", colour, row, (30 + 7 * row, 50))
        for row, colour in enumerate(colours)
    ]
    result = run_script("predict.py", finished, *files)
    assert result.code == 0, result.err
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert [answer["image"] for answer in answers] == files
    classify = pipeline("image-classification", str(finished / "model"), device="cpu")
    for answer, file in zip(answers, files, strict=True):
        # Not to the last bit: other batches, other orders of summation.
        expected = {found["label"]: found["score"] for found in classify(file, top_k=None)}
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-5)


def test_paths_in_a_table_start_at_its_folder(finished, photos, tmp_path):
    out = ("--out", tmp_path / "out.csv")
    result = run_script("predict.py", finished, "--file", photos / "test.csv", *out)
    assert result.code == 0, result.err
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 10


def test_images_within_a_table(finished, tmp_path):
    """As `datasets` writes them to Parquet: bytes, which are neither decoded nor printed."""
    from datasets import Dataset, Features, Image as ImageFeature, Value

    images = [draw(tmp_path / f"{row}.png", list(COLOURS)[row % 3], row) for row in range(18)]
    cells = [{"bytes": Path(image).read_bytes(), "path": Path(image).name} for image in images]
    rows = {"image": cells, "label": [list(COLOURS)[row % 3] for row in range(18)]}
    table = Dataset.from_dict(rows, Features({"image": ImageFeature(), "label": Value("string")}))
    table.to_parquet(tmp_path / "train.parquet")
    result = train(
        tmp_path / "train.parquet", tmp_path / "run", *from_scratch("vit"), "--max-steps", "2"
    )
    assert result.code == 0, result.err
    by_path, by_bytes = (
        [json.loads(line) for line in run_script("predict.py", finished, *words).out.splitlines()]
        for words in (images, ["--file", tmp_path / "train.parquet"])
    )
    assert [row["image"] for row in by_bytes] == [Path(image).name for image in images]
    assert [row["probabilities"] for row in by_bytes] == [row["probabilities"] for row in by_path]


def test_a_folder_stands_for_its_images_and_a_plot_shows_them(finished, tmp_path):
    names = ("b.png", "a.PNG", "more/c.png")
    files = [draw(tmp_path / "scans" / name, "red", 0, (200, 30)) for name in names]
    for name in ("notes.txt", "more/.hidden.png", "__MACOSX/d.png", "one/two/deep.png"):
        draw(tmp_path / "scans" / "e.png", "red", 0)
        (tmp_path / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "scans" / "e.png").rename(tmp_path / "scans" / name)
    result = run_script("predict.py", finished, tmp_path / "scans", "--plot", tmp_path / "bars.pdf")
    assert result.code == 0, result.err
    assert [json.loads(line)["image"] for line in result.out.splitlines()] == sorted(files)
    assert "found 3 images in" in result.err
    assert (tmp_path / "bars.pdf").read_bytes().startswith(b"%PDF")
    (tmp_path / "empty").mkdir()
    result = run_script("predict.py", finished, tmp_path / "empty")
    assert result.code == 2
    assert "contain no images" in result.err


def test_new_images_that_cannot_be_read_are_named(finished, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    good = [draw(tmp_path / f"{row}.png", "red", row) for row in range(2)]
    words = [*good, tmp_path / "text.png", "nowhere.png", "--block-size", "2"]
    result = run_script("predict.py", finished, *words, "--out", tmp_path / "out.csv")
    assert result.code == 2
    expected = "2 unreadable image(s), the first one in row 2 (from 0)"
    for part in (expected, "text.png", "nowhere.png"):
        assert part in result.err


def test_a_run_is_evaluated_on_unaugmented_train_images(finished):
    results = [run_script("evaluate.py", finished, "--split", "train", "--json") for _ in range(2)]
    assert results[0].out == results[1].out
    assert json.loads(results[0].out)["accuracy"] > 0.8


@pytest.mark.parametrize("architecture", ["vit", "deit", "swin"])
def test_another_size_keeps_the_weights(architecture, photos, tiny_image, tmp_path):
    """At 48 pixels, logits are those of transformers' own interpolation of positions."""
    task = ImageClassification(model=tiny_image(architecture), image_size=48)
    names = tuple(f"LABEL_{number}" for number in range(5))  # those of its head, which is kept
    vars(task)["labels"] = Labels("single_label_classification", names)
    model = task.build_model().eval()
    own = AutoModelForImageClassification.from_pretrained(tiny_image(architecture)).eval()
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = own(pixels, interpolate_pos_encoding=True).logits
        assert torch.allclose(model(pixels).logits, expected, atol=1e-5)
    words = ["--model", task.model, "--image-size", "48", "--max-steps", "1"]
    result = train(photos, tmp_path / "run", *words)
    assert result.code == 0, result.err
    assert "made for images of 32 pixels, now of 48" in result.err
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "model")
    assert processor.crop_size == {"height": 48, "width": 48}
    assert run_script("predict.py", tmp_path / "run", photos / "test" / "0.png").code == 0


CONVNEXT = {"image_processor_type": "ConvNextImageProcessor"}
BIT = {"image_processor_type": "BitImageProcessor"}


@pytest.mark.parametrize(
    ("settings", "view"),
    [
        ({"size": {"height": 32, "width": 32}}, (32, 32)),
        (
            {
                "size": {"shortest_edge": 36},
                "do_center_crop": True,
                "crop_size": {"height": 32, "width": 32},
            },
            (36, 32),
        ),
        ({**CONVNEXT, "size": {"shortest_edge": 28}, "crop_pct": 0.875}, (32, 28)),
        ({**BIT, "size": {"shortest_edge": 32}, "do_center_crop": False}, (32, 32)),
    ],
    ids=["square", "crop", "crop_pct", "no crop"],
)
def test_the_view_is_the_processors(settings, view, tiny_image):
    task = ImageClassification(model=tiny_image("vit", **settings))
    assert (task.resized, task.size) == view
    assert list(task.processor.image_mean) == [0.4, 0.5, 0.6]
    assert task.processor.resample == 3
    doubled = ImageClassification(model=task.model, image_size=2 * task.size)
    assert (doubled.resized, doubled.size) == (2 * view[0], 2 * view[1])


def test_a_processor_without_normalisation_is_taken_as_it_is(tiny_image):
    processor = ImageClassification(model=tiny_image("vit", do_normalize=False)).processor
    assert [*processor.image_mean, *processor.image_std] == [0, 0, 0, 1, 1, 1]


# Labels of all kinds


@pytest.mark.parametrize(
    "words",
    [
        ["--label", "tags", "--label-separator", ";", "--augment", "crop", "cutmix"],
        ["--label", "tone"],
        ["--augment", "crop", "mixup", "cutmix"],
    ],
    ids=["multi-label", "regression", "mixed"],
)
def test_all_kinds_of_labels(words, photos, tmp_path):
    words = [*from_scratch("vit"), "--image-size", "16", "--max-steps", "2", *words]
    result = train(photos, tmp_path / "run", *words)
    assert result.code == 0, result.err
    evaluated = run_script("evaluate.py", tmp_path / "run", "--json")
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["test"]
    # A correlation may be near 0.
    assert json.loads(evaluated.out) == pytest.approx(scores, rel=1e-5, abs=1e-6)
    assert run_script("predict.py", tmp_path / "run", photos / "test" / "0.png").code == 0


# The laws


def words_of_law(photos: Path) -> list[str]:
    return [
        *("--data", str(photos), "--data.validation", "6", *from_scratch("vit")),
        *("--image-size", "16", "--augment", "crop", "flip", "jitter", "mixup"),
        *("--batch-size", "6", "--micro-batch-size", "2", "--learning-rate", "1e-3"),
        *("--epochs", "2", "--log-every", "1", "--save-every", "2"),
    ]


def test_two_processes_are_one(photos, tmp_path):
    words = ["configs/image.py", *words_of_law(photos), "--run-dir"]
    one = run_script("train.py", *words, tmp_path / "one")
    assert one.code == 0, one.err
    environment = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    two = ranks(2, "train.py", *map(str, (*words, tmp_path / "two")), **environment)
    assert two.code == 0, two.err
    logs = [read_log(tmp_path / name) for name in ("one", "two")]
    for split, count in (("train", 6), ("validation", 2)):
        losses = logs[0][split, "loss"]
        assert len(losses) == count
        assert logs[1][split, "loss"] == pytest.approx(losses, rel=1e-4)


def test_a_resumed_run_ends_with_the_same_bits(photos, tmp_path, monkeypatch):
    words = ["configs/image.py", *words_of_law(photos), "--run-dir"]
    assert run_script("train.py", *words, tmp_path / "whole").code == 0
    with monkeypatch.context() as patched:
        interrupt_at_step(patched, 5)
        with pytest.raises(Interrupted):
            run_script("train.py", *words, tmp_path / "parts")
    resumed = run_script("train.py", *words, tmp_path / "parts", "--workers", "2")
    assert resumed.code == 0, resumed.err
    assert "resum" in resumed.err
    assert read_results(tmp_path / "parts") == read_results(tmp_path / "whole")


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--model MODEL --model-options hiden_size=3",
            "has no 'hiden_size' (did you mean 'hidden_size'?)",
        ),
        ("--model MODEL --image-size 0", "--image-size 0 is not at least 1 pixel"),
        ("--model MODEL --image-size 36", "--image-size 36 is not a multiple of 8 pixels"),
        ("--model MODEL --image picture", "no column 'picture'"),
        ("--model MODEL --image tone --label label", "must hold paths or encoded images"),
        (
            "--model MODEL --image-folder nowhere",
            "--image-folder 'nowhere': there is no such folder",
        ),
        ("--model MODEL --label tone --augment mixup", "--augment mixup mixes classes or labels"),
        ("--model bert --init random", "cannot be loaded"),
        ("--model MODEL --init random --model-options num_channels=1", "but images have 3"),
        ("--model FOLDER/timm", "its image processor cannot be loaded"),
    ],
)
def test_bad_input_is_one_clear_error(words, message, photos, tiny_image, tmp_path):
    shutil.copytree(tiny_image("vit"), tmp_path / "timm")
    (tmp_path / "timm" / "preprocessor_config.json").write_text("{")
    words = words.replace("MODEL", tiny_image("vit")).replace("FOLDER", str(tmp_path)).split()
    result = train(photos, tmp_path / "run", *words)
    assert result.code == 2, result.err
    assert message in result.err
    assert result.err.count("error:") == 1
    assert is_untouched(tmp_path / "run")


def test_streams_are_for_texts():
    with pytest.raises(UserError, match="streaming"):
        ImageClassification(model="a/b", data=Data(path="a/b", streaming=True)).validate()


# Folders of classes, and the quickstart


def rows_in_ledger(run):
    """Return the number of training rows, from the plan in the first line of the ledger."""
    return json.loads((run / "ledger.jsonl").read_text().splitlines()[0])["num_rows"]


def test_class_folders(tmp_path):
    for split, count in (("train", 8), ("test", 3)):
        for colour in COLOURS:
            for row in range(count):
                ending = (".png", ".PNG", ".jpg", ".JPEG")[row % 4]
                draw(tmp_path / "photos" / split / colour / f"{row}{ending}", colour, row)
    words = [*from_scratch("vit"), "--image-size", "16"]
    result = train(tmp_path / "photos", tmp_path / "run", *words)
    assert result.code == 0, result.err
    assert "9 optimizer steps of" in result.err
    assert rows_in_ledger(tmp_path / "run") == 18
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert set(config["label2id"]) == set(COLOURS)


def test_the_quickstart_trains_and_is_evaluated(tmp_path):
    words = ["--run-dir", tmp_path / "run", "--max-steps", "20", "--eval-every", "20"]
    result = run_script("train.py", "configs/quickstart_image.py", *words)
    assert result.code == 0, result.err
    assert "20 optimizer steps of" in result.err
    assert rows_in_ledger(tmp_path / "run") == 1293
    evaluated = run_script("evaluate.py", tmp_path / "run", "--json")
    assert json.loads(evaluated.out) == pytest.approx(
        json.loads((tmp_path / "run" / "scores.json").read_text())["test"]
    )
